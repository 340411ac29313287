# The recipes of scripts/launch under a Slurm that the test starts, and two hosts made of namespaces. 77: not here, with the reason.
find_package(Python3 COMPONENTS Interpreter)
if(TARGET mpinfer AND Python3_FOUND)
  add_test(NAME slurm_recipes COMMAND Python3::Interpreter "${CMAKE_CURRENT_SOURCE_DIR}/e2e/slurm/slurm.py"
    --binary $<TARGET_FILE:mpinfer> --simulated $<TARGET_FILE:mpinfer_simulated>)
  set_tests_properties(slurm_recipes PROPERTIES TIMEOUT 400 SKIP_RETURN_CODE 77 LABELS no-sanitizer)
  add_test(NAME two_hosts COMMAND Python3::Interpreter "${CMAKE_CURRENT_SOURCE_DIR}/e2e/hosts/hosts.py"
    --binary $<TARGET_FILE:mpinfer> --simulated $<TARGET_FILE:mpinfer_simulated>)
  set_tests_properties(two_hosts PROPERTIES TIMEOUT 300 SKIP_RETURN_CODE 77 LABELS no-sanitizer)
endif()
