mpinfer_test(fuzz_text
  SOURCES fuzz/text/fuzz_test.cpp unit/text/tokenizer_folder.cpp support/main.cpp
  LINKS mpinfer_text)
target_compile_definitions(fuzz_text PRIVATE MPINFER_TOKENIZERS="${CMAKE_CURRENT_SOURCE_DIR}/unit/text/tokenizers")
