# One ctest entry a group of resume/resume.py: what a start makes of an earlier one.
find_package(Python3 COMPONENTS Interpreter)
if(TARGET mpinfer AND Python3_FOUND)
  foreach(group layouts damage complete refused lock)
    add_test(NAME resume_${group} COMMAND Python3::Interpreter "${CMAKE_CURRENT_SOURCE_DIR}/e2e/resume/resume.py"
      --binary $<TARGET_FILE:mpinfer> ${group})
    set_tests_properties(resume_${group} PROPERTIES TIMEOUT 300)
  endforeach()
endif()
