mpinfer_test(fuzz_model
  SOURCES fuzz/model/fuzz_test.cpp fuzz/model/mutate.cpp unit/model/model_folder.cpp support/main.cpp
  LINKS mpinfer_model)
target_compile_definitions(fuzz_model PRIVATE MPINFER_GOLDEN_DIR="${CMAKE_CURRENT_SOURCE_DIR}/golden"
  MPINFER_FUZZ_CORPUS="${CMAKE_CURRENT_SOURCE_DIR}/fuzz/model/corpus")
