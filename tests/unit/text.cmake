add_executable(tokenizer_tool support/tokenizer_tool.cpp)
target_link_libraries(tokenizer_tool PRIVATE mpinfer_text)

add_executable(template_tool support/template_tool.cpp)
target_link_libraries(template_tool PRIVATE mpinfer_text)

mpinfer_test(unit_text
  SOURCES unit/text/equal_test.cpp unit/text/grammar_test.cpp unit/text/grammars_test.cpp unit/text/hostile_test.cpp unit/text/matchers_test.cpp unit/text/number_range_test.cpp unit/text/template_test.cpp unit/text/tokenizer_folder.cpp support/main.cpp
  LINKS mpinfer_text)
target_compile_definitions(unit_text PRIVATE MPINFER_TOKENIZERS="${CMAKE_CURRENT_SOURCE_DIR}/unit/text/tokenizers"
  MPINFER_TEMPLATES="${CMAKE_CURRENT_SOURCE_DIR}/unit/text/templates")

add_executable(bench_grammar "${CMAKE_SOURCE_DIR}/scripts/bench/grammar.cpp")
target_link_libraries(bench_grammar PRIVATE mpinfer_text)
