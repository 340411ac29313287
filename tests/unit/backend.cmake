mpinfer_test(unit_backend
  SOURCES support/main.cpp unit/backend/thread_pool.cpp unit/backend/workspace.cpp
  LINKS mpinfer_backend)
