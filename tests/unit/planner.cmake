mpinfer_test(unit_planner
  SOURCES unit/planner/planner_test.cpp support/main.cpp
  LINKS mpinfer_planner mpinfer_model mpinfer_comm)
