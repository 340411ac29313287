mpinfer_test(mpi_communicator
  SOURCES support/mpi_main.cpp mpi/comm/communicator_test.cpp mpi/comm/conformance.cpp mpi/comm/gpu_sums_test.cpp
  LINKS mpinfer_comm
  RANKS 1 2 3 4 8)
mpinfer_test(mpi_host
  SOURCES support/mpi_main.cpp mpi/comm/host_test.cpp
  LINKS mpinfer_comm_host
  RANKS 1 2 4 8)
# The counter over TCP: its owner must make progress by itself.
add_test(NAME mpi_host_tcp COMMAND ${MPIEXEC_EXECUTABLE} -n 3 --oversubscribe --mca btl tcp,self --mca osc ^sm
  $<TARGET_FILE:mpi_host>)
get_test_property(mpi_host_2 ENVIRONMENT mpi_environment)
set_tests_properties(mpi_host_tcp PROPERTIES TIMEOUT 300 ENVIRONMENT "${mpi_environment}")
