// The largest of logits, the lowest id of equals, and whether one of them is a NaN.
#pragma once

#include <cmath>

#include "kernels/cuda/device/common.cuh"

namespace mpinfer::kernels::cuda {

__device__ inline bool better(float value, int32_t id, float than, int32_t than_id) {
  return value > than || (value == than && id < than_id);
}

struct Best {
  float value = -INFINITY;
  int32_t id = INT32_MAX;
  bool has_nan = false;

  __device__ void take(float x, int32_t i) {
    has_nan = has_nan || x != x;
    if (better(x, i, value, id)) {
      value = x;
      id = i;
    }
  }
  __device__ void merge(const Best& other) {
    has_nan = has_nan || other.has_nan;
    if (better(other.value, other.id, value, id)) {
      value = other.value;
      id = other.id;
    }
  }
};

// The best of kLanes neighbouring lanes, on each of them.
template <int kLanes = 32>
__device__ inline Best lanes_best(Best mine) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    Best other;
    other.value = __shfl_xor_sync(0xffffffffU, mine.value, offset);
    other.id = __shfl_xor_sync(0xffffffffU, mine.id, offset);
    other.has_nan = __shfl_xor_sync(0xffffffffU, mine.has_nan ? 1 : 0, offset) != 0;
    mine.merge(other);
  }
  return mine;
}

// The block's best, on every thread.
__device__ inline Best block_best(Best mine) {
  __shared__ float values[32];
  __shared__ int32_t ids[32];
  __shared__ int nan;
  if (threadIdx.x == 0) nan = 0;
  __syncthreads();
  mine = lanes_best(mine);
  if (threadIdx.x % 32 == 0) {
    values[threadIdx.x / 32] = mine.value;
    ids[threadIdx.x / 32] = mine.id;
    if (mine.has_nan) nan = 1;
  }
  __syncthreads();
  Best best;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) {
    if (better(values[w], ids[w], best.value, best.id)) {
      best.value = values[w];
      best.id = ids[w];
    }
  }
  best.has_nan = nan != 0;
  __syncthreads();
  return best;
}

}  // namespace mpinfer::kernels::cuda
