mpinfer_test(fuzz_text
  SOURCES fuzz/text/fuzz_test.cpp fuzz/text/template_fuzz_test.cpp fuzz/text/grammar_fuzz_test.cpp unit/text/tokenizer_folder.cpp support/main.cpp
  LINKS mpinfer_text)
target_compile_definitions(fuzz_text PRIVATE MPINFER_TOKENIZERS="${CMAKE_CURRENT_SOURCE_DIR}/unit/text/tokenizers"
  MPINFER_TEMPLATES="${CMAKE_CURRENT_SOURCE_DIR}/unit/text/templates")
