mpinfer_test(unit_model
  SOURCES unit/model/config_test.cpp unit/model/lm_head_test.cpp unit/model/expert_placement_test.cpp unit/model/loader_test.cpp unit/model/model_folder.cpp
    unit/model/boundary_test.cpp unit/model/rope_test.cpp unit/model/safetensors_test.cpp support/main.cpp
  LINKS mpinfer_model mpinfer_comm)
target_compile_definitions(unit_model PRIVATE MPINFER_GOLDEN_DIR="${CMAKE_CURRENT_SOURCE_DIR}/golden")
