mpinfer_test(parity_backend
  SOURCES support/main.cpp parity/backend_fixture.cpp parity/backend_attention.cpp
    parity/backend_attention_tiles.cpp parity/backend_gemm.cpp parity/backend_latent.cpp parity/backend_moe.cpp
    parity/backend_router.cpp parity/backend_rows.cpp parity/backend_sample.cpp parity/backend_logprobs.cpp
  LINKS mpinfer_backend)
# Not a test: prints speed of the CPU backend beside the measured multiply-add peak.
add_executable(bench_gemm "${CMAKE_SOURCE_DIR}/scripts/bench/gemm.cpp")
target_link_libraries(bench_gemm PRIVATE mpinfer_backend)
if(MPINFER_HAVE_CUDA)
  add_executable(bench_cuda_ops EXCLUDE_FROM_ALL "${CMAKE_SOURCE_DIR}/scripts/bench/cuda_ops.cpp")
  target_link_libraries(bench_cuda_ops PRIVATE mpinfer_backend)
endif()
