// What the expert kernels share: the place of an element of a tiled weight, the gates.
#pragma once

#include "kernels/cuda/device/common.cuh"

namespace mpinfer::kernels::cuda {

// Where row n of a weight stands: in sixteens, even rows before odd ones. The tensor cores give a
// thread results of rows r and r + 8: a gate and its up, or two neighbours.
__host__ __device__ inline int64_t expert_row(int64_t n) {
  return n / 16 * 16 + n % 2 * 8 + n % 16 / 2;
}

// Element (n, k) of a weight of in_features columns (cuda.h says the layout).
__host__ __device__ inline int64_t expert_place(int64_t n, int64_t k, int64_t in_features) {
  const int64_t panels = (in_features + kExpertTileCols - 1) / kExpertTileCols;
  const int64_t tile = n / kExpertTileRows * panels + k / kExpertTileCols;
  const int64_t row = expert_row(n % kExpertTileRows);
  const int64_t chunk = (k % kExpertTileCols / 8) ^ (row % 8);
  return (tile * kExpertTileRows + row) * kExpertTileCols + chunk * 8 + k % 8;
}

// 1 / (1 + e^-x), two instructions of the special functions' unit.
__device__ inline float sigmoid(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(1.0F + exp2_fast(x * -kLog2E)));
  return out;
}

__device__ inline float gate_value(ExpertGate kind, float gate, float up, float alpha,
                                   float limit) {
  switch (kind) {
    case ExpertGate::kSilu:
      return up * (gate * sigmoid(gate));
    case ExpertGate::kGelu:
      return up * 0.5F * gate * (1.0F + erff(gate * 0.70710678118654752F));
    case ExpertGate::kGeluTanh:
      return up * 0.5F * gate *
             (1.0F + tanhf(0.7978845608028654F * (gate + 0.044715F * gate * gate * gate)));
    case ExpertGate::kClampedSwiglu: {
      const float g = fminf(gate, limit);
      return (fminf(fmaxf(up, -limit), limit) + 1.0F) * (g * sigmoid(alpha * g));
    }
    default:
      return gate;
  }
}

}  // namespace mpinfer::kernels::cuda
