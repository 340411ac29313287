# One ctest entry a group of cli/cli.py: what the commands print, refuse and return.
find_package(Python3 COMPONENTS Interpreter)
if(TARGET mpinfer AND Python3_FOUND)
  foreach(group devices options ranks cores precedence check tokenize plan)
    add_test(NAME cli_${group} COMMAND Python3::Interpreter "${CMAKE_CURRENT_SOURCE_DIR}/e2e/cli/cli.py"
      --binary $<TARGET_FILE:mpinfer> ${group})
    set_tests_properties(cli_${group} PROPERTIES TIMEOUT 300)
  endforeach()
endif()
