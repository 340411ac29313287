# One ctest entry a group of lost-ranks/lost_ranks.py: ranks that die under Open MPI 5 with --with-ft ulfm. 77: there is none here.
find_package(Python3 COMPONENTS Interpreter)
if(TARGET mpinfer AND Python3_FOUND)
  foreach(group replicas twice stages moments ends engine first_turn kills)
    add_test(NAME lost_ranks_${group} COMMAND Python3::Interpreter "${CMAKE_CURRENT_SOURCE_DIR}/e2e/lost-ranks/lost_ranks.py"
      --simulated $<TARGET_FILE:mpinfer_simulated> --faulty $<TARGET_FILE:mpinfer_faulty> ${group})
    set_tests_properties(lost_ranks_${group} PROPERTIES TIMEOUT 300 SKIP_RETURN_CODE 77 LABELS no-sanitizer)
  endforeach()
endif()
