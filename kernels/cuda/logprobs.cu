// Masks over the vocabulary, and the log-probabilities of tokens: of a given one with its rank, and
// of the most likely ones. One block a row; the order of the top is value, then lower id, as on the
// CPU. Sums are f64 partial sums of f32 exponentials in a fixed order.
#include "kernels/cuda/device/common.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

__device__ bool comes_before(float value, int32_t id, float than, int32_t than_id) {
  return value > than || (value == than && id < than_id);
}

__global__ void __launch_bounds__(kThreads)
    mask_logits_kernel(float* all, int64_t stride, int32_t cols, const uint32_t* masks,
                       const int32_t* row_masks) {
  wait_for_previous();
  const int64_t r = blockIdx.x;
  if (row_masks[r] < 0) return;
  const uint32_t* mask = masks + static_cast<int64_t>(row_masks[r]) * ((cols + 31) / 32);
  float* logits = all + r * stride;
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < cols; c += kThreads) {
    if ((mask[c / 32] >> (c % 32) & 1U) == 0) logits[c] = -INFINITY;
  }
}

struct Shared {
  float values[kWarps];
  int32_t ids[kWarps];
  double sums[kWarps];
  int32_t counts[kWarps];
  int32_t nan;
};

// The first of all (value, id) in the order of comes_before, on every thread.
__device__ void block_first(float* value, int32_t* id, Shared& s) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(0xffffffffU, *value, offset);
    const int32_t other_id = __shfl_xor_sync(0xffffffffU, *id, offset);
    if (comes_before(other, other_id, *value, *id)) {
      *value = other;
      *id = other_id;
    }
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    s.values[threadIdx.x / 32] = *value;
    s.ids[threadIdx.x / 32] = *id;
  }
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) {
    if (comes_before(s.values[w], s.ids[w], *value, *id)) {
      *value = s.values[w];
      *id = s.ids[w];
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    log_softmax_top_k_kernel(LogprobEntry* all_out, const float* all, int64_t stride, int32_t cols,
                             const int32_t* ids, int32_t num_top) {
  wait_for_previous();
  __shared__ Shared s;
  const int64_t r = blockIdx.x;
  const float* logits = all + r * stride;
  LogprobEntry* out = all_out + r * (1 + num_top);
  const int32_t token = ids[r];
  const auto thread = static_cast<int32_t>(threadIdx.x);
  if (thread == 0) s.nan = token < 0 ? 1 : 0;
  __syncthreads();
  float max = -INFINITY;
  int32_t max_id = INT32_MAX;
  bool nan = false;
  for (int32_t c = thread; c < cols; c += kThreads) {
    const float x = logits[c];
    nan = nan || x != x;
    if (comes_before(x, c, max, max_id)) {
      max = x;
      max_id = c;
    }
  }
  if (nan) s.nan = 1;
  block_first(&max, &max_id, s);
  if (s.nan != 0) {
    for (int32_t i = thread; i <= num_top; i += kThreads) out[i] = {NAN, 0};
    return;
  }
  const float chosen = logits[token];
  double sum = 0.0;
  int32_t before = 0;
  for (int32_t c = thread; c < cols; c += kThreads) {
    const float x = logits[c];
    sum += static_cast<double>(expf(x - max));
    if (comes_before(x, c, chosen, token)) ++before;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(0xffffffffU, sum, offset);
    before += __shfl_xor_sync(0xffffffffU, before, offset);
  }
  if (thread % 32 == 0) {
    s.sums[thread / 32] = sum;
    s.counts[thread / 32] = before;
  }
  __syncthreads();
  sum = 0.0;
  before = 0;
  for (int w = 0; w < kWarps; ++w) {
    sum += s.sums[w];
    before += s.counts[w];
  }
  const auto log_sum = static_cast<float>(log(sum));
  if (thread == 0) out[0] = {chosen - max - log_sum, before + 1};
  float last = INFINITY;
  int32_t last_id = -1;
  for (int32_t k = 0; k < num_top; ++k) {
    float best = -INFINITY;
    int32_t best_id = INT32_MAX;
    for (int32_t c = thread; c < cols; c += kThreads) {
      const float x = logits[c];
      if (comes_before(last, last_id, x, c) && comes_before(x, c, best, best_id)) {
        best = x;
        best_id = c;
      }
    }
    block_first(&best, &best_id, s);
    if (thread == 0) out[1 + k] = {best - max - log_sum, best_id};
    last = best;
    last_id = best_id;
  }
}

}  // namespace

void mask_logits(cudaStream_t stream, float* logits, int64_t stride, int64_t rows, int32_t cols,
                 const uint32_t* masks, const int32_t* row_masks) {
  launch(mask_logits_kernel, static_cast<unsigned>(rows), kThreads, 0, stream, logits, stride, cols,
         masks, row_masks);
}

void log_softmax_top_k(cudaStream_t stream, LogprobEntry* out, const float* logits, int64_t stride,
                       int64_t rows, int32_t cols, const int32_t* ids, int32_t num_top) {
  launch(log_softmax_top_k_kernel, static_cast<unsigned>(rows), kThreads, 0, stream, out, logits,
         stride, cols, ids, num_top);
}

}  // namespace mpinfer::kernels::cuda
