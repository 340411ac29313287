mpinfer_test(golden_model
  SOURCES golden/golden_test.cpp golden/replica.cpp golden/strict_pieces.cpp support/main.cpp
  LINKS mpinfer_model mpinfer_comm)
target_compile_definitions(golden_model PRIVATE MPINFER_GOLDEN_DIR="${CMAKE_CURRENT_SOURCE_DIR}/golden")
