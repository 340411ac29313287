// What every kernel file shares: conversions, vectors, warp and block sums, the launch helper.
// Launches carry the programmatic-dependent-launch attribute: a kernel may start while the one
// before it drains, so each kernel calls wait_for_previous() before it writes, and before it reads
// what may still be written. Some read earlier what older kernels left (combine, the experts'
// second product, decode attention): between the writer and such a reader stands a kernel that lets
// the next one start after its own wait, when all before it is done.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "kernels/cuda.h"

namespace mpinfer::kernels::cuda {

using bf16 = __nv_bfloat16;

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(bf16 x) {
  return __bfloat162float(x);
}
__device__ inline float to_float(__half x) {
  return __half2float(x);
}
template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T v[N];
};

__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Within two units of the last place; results below 2^-126 are zero.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
constexpr float kLog2E = 1.4426950408889634F;

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffU, x, offset);
  return x;
}

// Sum over the block's threads (a multiple of 32, at most 1024), the same on every thread.
__device__ inline float block_sum(float x) {
  __shared__ float parts[32];
  x = warp_sum(x);
  const int warps = (static_cast<int>(blockDim.x) + 31) / 32;
  if (warps == 1) return x;
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = static_cast<int>(threadIdx.x % 32) < warps ? parts[threadIdx.x % 32] : 0.0F;
  return warp_sum(x);
}

// cluster: so many consecutive blocks run side by side and reach each other's shared memory.
template <class... Params, class... Args>
void launch_clusters(unsigned cluster, void (*kernel)(Params...), dim3 grid, dim3 block,
                     size_t shared_bytes, cudaStream_t stream, Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Args&&... args) {
  launch_clusters(1, kernel, grid, block, shared_bytes, stream, args...);
}

inline int64_t size_of(ElementType type) {
  return type == ElementType::kF32 || type == ElementType::kI32 ? 4 : 2;
}

// Calls f(T{}) for the activation type.
template <class F>
void with_type(ElementType dtype, F f) {
  if (dtype == ElementType::kBF16) return f(bf16{});
  if (dtype == ElementType::kF16) return f(__half{});
  f(0.0F);
}

inline bool aligned_for(const View& view, int64_t elements) {
  const int64_t bytes = elements * size_of(view.dtype);
  return reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(bytes) == 0 &&
         view.stride % elements == 0;
}

inline unsigned blocks_for(int64_t items, int64_t a_block) {
  return static_cast<unsigned>((items + a_block - 1) / a_block);
}

}  // namespace mpinfer::kernels::cuda
