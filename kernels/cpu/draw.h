// One draw from a row of logits: greedy, or temperature → min_p → top_k → top_p → draw.
#pragma once

#include <vector>

#include "kernels/cpu.h"

namespace mpinfer::kernels::cpu {

struct DrawParams {
  float temperature = 1.0F;  // < 1e-5: greedy
  float top_p = 1.0F;
  float min_p = 0.0F;
  int32_t top_k = 0;     // <= 0: off
  float uniform = 0.5F;  // in (0, 1)
};

// Memory kept from row to row.
struct DrawScratch {
  std::vector<int64_t> counts;
  std::vector<double> masses;
  std::vector<float> values;
  std::vector<int32_t> ids;
};

// The sum of n weights, in the order that draw() sums them.
double sum_of(const float* w, int64_t n, DrawScratch& scratch);

// Token id, or -1 for a row with a NaN, with nothing but -inf, or (not greedy) with +inf.
// Weights are w = exp((x - max) / temperature) in f32. min_p keeps w >= min_p; top_k keeps x >= the
// k-th largest x; top_p keeps, by descending w then ascending id, up to the token at which the sum
// reaches top_p times the sum of what is left. The draw walks the survivors by ascending id until
// their sum exceeds uniform times the total. Sums are f64. logits are overwritten.
int32_t draw(float* logits, int64_t n, const DrawParams& params, const KernelTable& kernels,
             DrawScratch& scratch);

}  // namespace mpinfer::kernels::cpu
