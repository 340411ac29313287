# mpinfer with armed fault points, and the same with a simulated engine: for tests and scripts/bench/kills.
set(test_program_links mpinfer_options mpinfer_job mpinfer_planner mpinfer_engine)
add_executable(mpinfer_faulty "${CMAKE_SOURCE_DIR}/apps/commands/replica.cpp" support/armed_fault_points.cpp
  $<TARGET_OBJECTS:mpinfer_commands>)
target_link_libraries(mpinfer_faulty PRIVATE ${test_program_links})
add_executable(mpinfer_simulated support/simulated_replica.cpp support/armed_fault_points.cpp
  $<TARGET_OBJECTS:mpinfer_commands>)
target_link_libraries(mpinfer_simulated PRIVATE ${test_program_links})
