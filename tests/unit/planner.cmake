mpinfer_test(unit_planner
  SOURCES unit/planner/planner_test.cpp unit/planner/published_test.cpp support/main.cpp
  LINKS mpinfer_planner mpinfer_model mpinfer_comm)
target_compile_definitions(unit_planner PRIVATE MPINFER_PUBLISHED_DIR="${CMAKE_CURRENT_SOURCE_DIR}/unit/planner/published")
