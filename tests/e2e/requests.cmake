# One ctest entry a group of requests/requests.py: what rows may ask for. TEST_PYTHON names a Python with PyPI's openai; without
# one, its types are left out.
find_package(Python3 COMPONENTS Interpreter)
if(TARGET mpinfer AND Python3_FOUND)
  foreach(group oracle chi2 openai batch spool scores structured configs)
    add_test(NAME requests_${group} COMMAND Python3::Interpreter "${CMAKE_CURRENT_SOURCE_DIR}/e2e/requests/requests.py"
      --binary $<TARGET_FILE:mpinfer> ${group})
    set_tests_properties(requests_${group} PROPERTIES TIMEOUT 600)
    if(NOT group MATCHES "^(openai|scores)$")
      set_tests_properties(requests_${group} PROPERTIES LABELS no-sanitizer)
    endif()
  endforeach()
endif()
