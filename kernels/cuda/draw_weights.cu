// Weights drawn where they lie: a thread a Philox block of four consecutive elements of the tensor.
#include "kernels/cuda/device/experts.cuh"
#include "lib/core/philox.h"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// As the type the weight was declared with holds it.
__device__ float declared(float x, ElementType type) {
  if (type == ElementType::kBF16) return to_float(from_float<bf16>(x));
  if (type == ElementType::kF16) return to_float(from_float<__half>(x));
  return x;
}

__device__ void normals(float (&out)[4], const NormalArgs& a, int64_t block) {
  const auto bits = philox({.seed = a.seed,
                            .index = static_cast<uint64_t>(block),
                            .sample = static_cast<uint32_t>(a.tensor),
                            .position = static_cast<uint32_t>(a.tensor >> 32)});
#pragma unroll
  for (int pair = 0; pair < 4; pair += 2) {
    const float u = (static_cast<float>(bits[pair] >> 8) + 0.5F) * 0x1p-24F;
    const float v = (static_cast<float>(bits[pair + 1] >> 8) + 0.5F) * 0x1p-24F;
    const float radius = a.deviation * sqrtf(-2.0F * logf(u));
    float sine;
    float cosine;
    sincospif(2.0F * v, &sine, &cosine);
    out[pair] = radius * cosine;
    out[pair + 1] = radius * sine;
  }
}

// A line is what is consecutive in the tensor: a row, or where columns are, a column.
template <class T>
__global__ void __launch_bounds__(kThreads)
    draw_kernel(NormalArgs a, int64_t lines, int64_t length, int64_t line_stride) {
  const int64_t blocks = (length + 6) / 4;  // a line may start inside a block
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t line = index / blocks;
  if (line >= lines) return;
  const int64_t begin = a.begin + line * line_stride;
  const int64_t block = begin / 4 + index % blocks;
  float values[4];
  normals(values, a, block);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t at = block * 4 + i - begin;
    if (at < 0 || at >= length) continue;
    const int64_t row = a.first_row + (a.columns_together ? line : at) * a.row_step;
    const int64_t column = a.columns_together ? at : line;
    const int64_t place =
        a.tiled ? expert_place(row, column, a.in_features) : row * a.in_features + column;
    static_cast<T*>(a.weight)[place] = from_float<T>(declared(values[i], a.declared));
  }
}

}  // namespace

void draw_rows(cudaStream_t stream, const NormalArgs& args) {
  const int64_t lines = args.columns_together ? args.rows : args.in_features;
  const int64_t length = args.columns_together ? args.in_features : args.rows;
  const unsigned blocks = blocks_for(lines * ((length + 6) / 4), kThreads);
  with_type(args.dtype, [&](auto type) {
    draw_kernel<decltype(type)>
        <<<blocks, kThreads, 0, stream>>>(args, lines, length, args.line_stride);
  });
}

}  // namespace mpinfer::kernels::cuda
