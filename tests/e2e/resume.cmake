# One ctest entry a group of resume/resume.py: what a start makes of an earlier one. Groups that need slow or dying ranks use
# the simulated engine or armed fault points.
find_package(Python3 COMPONENTS Interpreter)
if(TARGET mpinfer AND Python3_FOUND)
  function(resume_test program)
    foreach(group IN LISTS ARGN)
      add_test(NAME resume_${program}_${group} COMMAND Python3::Interpreter
        "${CMAKE_CURRENT_SOURCE_DIR}/e2e/resume/resume.py" --binary $<TARGET_FILE:${program}> ${group})
      set_tests_properties(resume_${program}_${group} PROPERTIES TIMEOUT 600)
      if(NOT group MATCHES "^(complete|refused|shards)$")
        set_tests_properties(resume_${program}_${group} PROPERTIES LABELS no-sanitizer)
      endif()
    endforeach()
  endfunction()
  resume_test(mpinfer layouts damage complete refused lock shards coordinates structured)
  resume_test(mpinfer_faulty faults)
  resume_test(mpinfer_simulated signals interrupt launcher stopped-rank end-time kills)
  foreach(group calls writes cases small-disk)
    add_test(NAME faults_${group} COMMAND Python3::Interpreter "${CMAKE_CURRENT_SOURCE_DIR}/e2e/faults/faults.py"
      --binary $<TARGET_FILE:mpinfer_simulated> --plain $<TARGET_FILE:mpinfer> ${group})
    set_tests_properties(faults_${group} PROPERTIES TIMEOUT 600 LABELS no-sanitizer)
  endforeach()
endif()
