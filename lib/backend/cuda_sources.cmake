# Stands beside CMakeLists.txt of this folder: what replaces no_cuda.cpp where the toolkit is found.
set(cuda_sources cuda_backend.cpp cuda_gemm.cpp cuda_heads.cpp cuda_latent.cpp cuda_moe.cpp
                 cuda_ops.cpp)
set(cuda_libraries mpinfer_cuda_kernels CUDA::cublasLt CUDA::cudart_static)
