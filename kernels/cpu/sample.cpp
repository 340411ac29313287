// Whole-row passes of the sampler: maximum with NaN check, and logits → unnormalised probabilities.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sample.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/simd-inl.h"
#include "kernels/cpu/tables.h"

HWY_BEFORE_NAMESPACE();
namespace mpinfer::kernels::cpu::HWY_NAMESPACE {
namespace {

RowMax row_max(const float* x, int64_t n) {
  Vec best = hn::Set(kTag, -HUGE_VALF);
  auto nan = hn::IsNaN(best);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec v = hn::LoadU(kTag, x + i);
    nan = hn::Or(nan, hn::IsNaN(v));
    best = hn::Max(best, v);
  }
  RowMax result = {.value = max_of_lanes(best), .index = 0, .has_nan = !hn::AllFalse(kTag, nan)};
  for (; i < n; ++i) {
    if (std::isnan(x[i])) result.has_nan = true;
    if (x[i] > result.value) result.value = x[i];
  }
  if (result.has_nan) return result;
  const Vec wanted = hn::Set(kTag, result.value);
  for (i = 0; i + kLanes <= n; i += kLanes) {
    if (!hn::AllFalse(kTag, hn::Eq(hn::LoadU(kTag, x + i), wanted))) break;
  }
  while (x[i] != result.value) ++i;
  result.index = i;
  return result;
}

HWY_INLINE Vec weight_of(Vec x, Vec max, Vec inverse_temperature, Vec threshold, Vec min_weight) {
  const Vec w = exp_of(hn::Mul(hn::Sub(x, max), inverse_temperature));
  return hn::IfThenElseZero(hn::And(hn::Ge(x, threshold), hn::Ge(w, min_weight)), w);
}

void weights(float* x, int64_t n, float max, float inverse_temperature, float threshold,
             float min_weight) {
  const Vec a = hn::Set(kTag, max);
  const Vec b = hn::Set(kTag, inverse_temperature);
  const Vec c = hn::Set(kTag, threshold);
  const Vec d = hn::Set(kTag, min_weight);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(weight_of(hn::LoadU(kTag, x + i), a, b, c, d), kTag, x + i);
  }
  if (i < n) {
    store_partial(weight_of(load_partial(x + i, n - i), a, b, c, d), x + i, n - i);
  }
}

void fill(KernelTable& table) {
  table.row_max = &row_max;
  table.weights = &weights;
}

}  // namespace
}  // namespace mpinfer::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mpinfer::kernels::cpu {
HWY_EXPORT(fill);
void fill_sample(KernelTable& table) {
  HWY_DYNAMIC_DISPATCH(fill)(table);
}
}  // namespace mpinfer::kernels::cpu
#endif
