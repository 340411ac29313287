// The router's choice, a warp a row: scores in registers, top_k by as many maxima over the warp.
#include <algorithm>
#include <cfloat>

#include "kernels/cuda/device/experts.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr float kLeast = -FLT_MAX;  // what is left to choose is never below; taken ones are -inf

struct Best {
  float value;
  int id;
};

// The largest, of equal ones the lowest id; the same on every lane.
__device__ Best warp_best(Best mine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float value = __shfl_xor_sync(0xffffffffU, mine.value, offset);
    const int id = __shfl_xor_sync(0xffffffffU, mine.id, offset);
    if (value > mine.value || (value == mine.value && id < mine.id)) mine = {value, id};
  }
  return mine;
}

template <int kEach>
__device__ Best lane_best(const float (&values)[kEach], int lane) {
  Best best{-INFINITY, INT32_MAX};
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (values[i] > best.value) best = {values[i], lane + 32 * i};
  }
  return best;
}

// Lane l holds experts l, l + 32, …; takes those outside the best groups out of the choice.
template <int kEach>
__device__ void keep_groups(float (&choice)[kEach], const RouteArgs& a, int lane) {
  const int size = a.num_experts / a.num_groups;
  float mine = -INFINITY;  // lane g: score of group g
  for (int g = 0; g < a.num_groups; ++g) {
    float part[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      part[i] = (lane + 32 * i) / size == g ? choice[i] : -INFINITY;
    }
    const Best first = warp_best(lane_best(part, lane));
    float sum = first.value;
    if (a.best_of_group > 1 && size > 1) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (lane + 32 * i == first.id) part[i] = -INFINITY;
      }
      sum += warp_best(lane_best(part, lane)).value;
    }
    if (lane == g) mine = fmaxf(sum, kLeast);
  }
  unsigned kept = 0;
  for (int i = 0; i < a.top_groups; ++i) {
    const Best best = warp_best({mine, lane});
    kept |= 1U << best.id;
    if (lane == best.id) mine = -INFINITY;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = lane + 32 * i;
    if (e < a.num_experts && (kept >> (e / size) & 1U) == 0) choice[i] = kLeast;
  }
}

// One row: what lane k < top_k chose in rank k, and its weight.
template <int kEach>
__device__ Best route_row(const RouteArgs& a, const float* logits, int lane) {
  float scores[kEach];
  float choice[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = lane + 32 * i;
    scores[i] = -INFINITY;
    if (e < a.num_experts) scores[i] = logits[e] + (a.bias == nullptr ? 0.0F : a.bias[e]);
  }
  if (a.sigmoid) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) scores[i] = 1.0F / (1.0F + expf(-scores[i]));
  } else {
    const float most = warp_best(lane_best(scores, lane)).value;
    float sum = 0.0F;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      scores[i] = lane + 32 * i < a.num_experts ? expf(scores[i] - most) : 0.0F;
      sum += scores[i];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < kEach; ++i) scores[i] /= sum;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = lane + 32 * i;
    choice[i] = -INFINITY;
    if (e < a.num_experts) {
      const float value = scores[i] + (a.correction == nullptr ? 0.0F : a.correction[e]);
      choice[i] = value >= kLeast ? value : kLeast;
    }
  }
  if (a.num_groups > 1) keep_groups(choice, a, lane);
  Best mine{0.0F, 0};
  float sum = 0.0F;
  for (int k = 0; k < a.top_k; ++k) {
    const Best best = warp_best(lane_best(choice, lane));
    float score = 0.0F;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (lane + 32 * i == best.id) {
        score = scores[i];
        choice[i] = -INFINITY;
      }
    }
    score = __shfl_sync(0xffffffffU, score, best.id % 32);
    sum += score;
    if (lane == k) mine = {score, best.id};
  }
  mine.value *= a.renormalise ? a.scale / (sum + 1e-20F) : a.scale;
  return mine;
}

template <int kEach>
__global__ void __launch_bounds__(kWarps * 32)
    route_kernel(int32_t* experts, float* weights, RouteArgs a) {
  let_next_start();
  __shared__ int counts[32 * kEach];  // of this block: few experts take all of a long step's rows
  for (int e = static_cast<int>(threadIdx.x); e < 32 * kEach; e += kWarps * 32) counts[e] = 0;
  wait_for_previous();
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; row < a.rows;
       row += int64_t{gridDim.x} * kWarps) {
    const Best mine = route_row<kEach>(a, a.logits + row * a.stride, lane);
    if (lane >= a.top_k) continue;
    experts[row * a.top_k + lane] = mine.id;
    weights[row * a.top_k + lane] = mine.value;
    if (a.counts != nullptr) atomicAdd(counts + mine.id, 1);
  }
  if (a.counts == nullptr) return;
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < a.num_experts; e += kWarps * 32) {
    if (counts[e] != 0) atomicAdd(a.counts + e, static_cast<unsigned long long>(counts[e]));
  }
}

template <int kEach>
void launch_route(cudaStream_t stream, int32_t* experts, float* weights, const RouteArgs& args) {
  constexpr unsigned kMostBlocks = 2048;
  launch(route_kernel<kEach>, std::min(blocks_for(args.rows, kWarps), kMostBlocks), kWarps * 32, 0,
         stream, experts, weights, args);
}

template <class T>
__global__ void add_gated_kernel(T* out, int64_t out_stride, const T* x, int64_t x_stride,
                                 const float* gate, int64_t gate_stride, int64_t cols) {
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const float factor = 1.0F / (1.0F + __expf(-gate[row * gate_stride]));
  for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) {
    T& to = out[row * out_stride + c];
    to = from_float<T>(to_float(to) + factor * to_float(x[row * x_stride + c]));
  }
  let_next_start();
}

}  // namespace

void route(cudaStream_t stream, int32_t* experts, float* weights, const RouteArgs& args) {
  if (args.num_experts <= 64) return launch_route<2>(stream, experts, weights, args);
  if (args.num_experts <= 128) return launch_route<4>(stream, experts, weights, args);
  if (args.num_experts <= 256) return launch_route<8>(stream, experts, weights, args);
  launch_route<32>(stream, experts, weights, args);
}

void add_gated(cudaStream_t stream, const View& out, const View& x, const View& gate, int64_t rows,
               int64_t cols) {
  with_type(out.dtype, [&](auto type) {
    using T = decltype(type);
    launch(add_gated_kernel<T>, static_cast<unsigned>(rows), 256, 0, stream,
           static_cast<T*>(out.data), out.stride, static_cast<const T*>(x.data), x.stride,
           static_cast<const float*>(gate.data), gate.stride, cols);
  });
}

}  // namespace mpinfer::kernels::cuda
