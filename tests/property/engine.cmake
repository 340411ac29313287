mpinfer_test(property_scheduler
  SOURCES property/engine/scheduler_test.cpp support/main.cpp
  LINKS mpinfer_engine)

add_executable(bench_scheduler "${CMAKE_SOURCE_DIR}/scripts/bench/scheduler.cpp")
target_link_libraries(bench_scheduler PRIVATE mpinfer_engine)
add_executable(bench_plans "${CMAKE_SOURCE_DIR}/scripts/bench/plans.cpp")
target_link_libraries(bench_plans PRIVATE mpinfer_engine)
