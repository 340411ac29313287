mpinfer_test(io_mpi
  SOURCES support/mpi_main.cpp mpi/io/exchange_test.cpp
  LINKS mpinfer_io
  RANKS 1 2 4)
