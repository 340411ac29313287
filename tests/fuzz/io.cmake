mpinfer_test(fuzz_io
  SOURCES fuzz/io/fuzz_test.cpp support/main.cpp
  LINKS mpinfer_job)
target_compile_definitions(fuzz_io PRIVATE MPINFER_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
