mpinfer_test(unit_comm
  SOURCES support/main.cpp unit/comm/watch_test.cpp
  LINKS mpinfer_comm_host)
