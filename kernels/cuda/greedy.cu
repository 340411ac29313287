// Greedy draws: the maximum over a tile of logits, and over the parts of tensor-parallel ranks.
#include "kernels/cuda/device/best.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kMaxThreads = 256;

__global__ void max_tile_kernel(MaxPair* out, const float* logits, int64_t stride, int32_t cols,
                                int32_t first_id, bool first_tile) {
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const float* from = logits + row * stride;
  Best best;
  if (stride % 4 == 0) {
    const int32_t quads = cols / 4;
    for (int32_t q = static_cast<int32_t>(threadIdx.x); q < quads; q += kMaxThreads) {
      const auto x = reinterpret_cast<const float4*>(from)[q];
      best.take(x.x, first_id + 4 * q);
      best.take(x.y, first_id + 4 * q + 1);
      best.take(x.z, first_id + 4 * q + 2);
      best.take(x.w, first_id + 4 * q + 3);
    }
    for (int32_t c = quads * 4 + static_cast<int32_t>(threadIdx.x); c < cols; c += kMaxThreads) {
      best.take(from[c], first_id + c);
    }
  } else {
    for (int32_t c = static_cast<int32_t>(threadIdx.x); c < cols; c += kMaxThreads)
      best.take(from[c], first_id + c);
  }
  best = block_best(best);
  if (threadIdx.x != 0) return;
  if (best.id == INT32_MAX) best.id = first_id;  // nothing above -inf: the lowest id
  if (!first_tile) {
    const MaxPair old = out[row];
    if (old.id < 0) return;
    if (!better(best.value, best.id, old.value, old.id)) {
      best.value = old.value;
      best.id = old.id;
    }
  }
  out[row] = {best.value, best.has_nan ? -1 : best.id};
}

// A warp a row.
__global__ void merge_parts_kernel(MaxPair* out, const MaxPair* parts, int32_t count, int64_t rows,
                                   int32_t first_id) {
  wait_for_previous();
  const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  if (row >= rows) return;
  Best best;
  for (int32_t part = static_cast<int32_t>(threadIdx.x % 32); part < count; part += 32) {
    const MaxPair x = parts[part * rows + row];
    best.merge({x.value, x.id, x.id < 0});
  }
  best = lanes_best(best);
  if (threadIdx.x % 32 != 0) return;
  // Nothing above -inf: the lowest id.
  out[row] = {best.value, best.has_nan ? -1 : best.id == INT32_MAX ? first_id : best.id};
}

__global__ void merge_max_kernel(int32_t* ids, const MaxPair* gathered, int32_t parts,
                                 int64_t rows) {
  wait_for_previous();
  const int64_t r = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (r >= rows) return;
  MaxPair best = gathered[r];
  for (int32_t part = 1; part < parts && best.id >= 0; ++part) {
    const MaxPair other = gathered[part * rows + r];
    if (other.id < 0 || better(other.value, other.id, best.value, best.id)) best = other;
  }
  ids[r] = best.id;
}

}  // namespace

void max_tile(cudaStream_t stream, MaxPair* out, const float* logits, int64_t stride, int64_t rows,
              int64_t cols, int32_t first_id, bool first_tile) {
  launch(max_tile_kernel, static_cast<unsigned>(rows), kMaxThreads, 0, stream, out, logits, stride,
         static_cast<int32_t>(cols), first_id, first_tile);
}

void merge_parts(cudaStream_t stream, MaxPair* out, const MaxPair* parts, int32_t count,
                 int64_t rows, int32_t first_id) {
  launch(merge_parts_kernel, blocks_for(rows * 32, 128), 128, 0, stream, out, parts, count, rows,
         first_id);
}

void merge_max(cudaStream_t stream, int32_t* ids, const MaxPair* gathered, int32_t parts,
               int64_t rows) {
  launch(merge_max_kernel, blocks_for(rows, 256), 256, 0, stream, ids, gathered, parts, rows);
}

}  // namespace mpinfer::kernels::cuda
