mpinfer_test(property_scheduler
  SOURCES property/engine/scheduler_test.cpp support/main.cpp
  LINKS mpinfer_engine)
