mpinfer_test(io_mpi
  SOURCES support/mpi_main.cpp mpi/io/exchange_test.cpp mpi/io/earlier_results_test.cpp
  LINKS mpinfer_job
  RANKS 1 2 4)
