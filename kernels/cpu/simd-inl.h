// Per-target helpers: vector type, partial loads and stores, sums, exp, erf. Included once per SIMD
// target.
#if defined(MPINFER_KERNELS_CPU_SIMD_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef MPINFER_KERNELS_CPU_SIMD_INL_H
#undef MPINFER_KERNELS_CPU_SIMD_INL_H
#else
#define MPINFER_KERNELS_CPU_SIMD_INL_H
#endif

#include <hwy/highway.h>

#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace mpinfer::kernels::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using Vec = hn::Vec<FloatTag>;
inline constexpr FloatTag kTag{};
inline constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(FloatTag()));
inline constexpr int64_t kPanelWidth = 2 * kLanes;

// The first n < kLanes elements of p, zeros behind them.
HWY_INLINE Vec load_partial(const float* p, int64_t n) {
  HWY_ALIGN float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
  return hn::Load(kTag, lanes);
}

HWY_INLINE void store_partial(Vec v, float* p, int64_t n) {
  HWY_ALIGN float lanes[kLanes];
  hn::Store(v, kTag, lanes);
  std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
}

HWY_INLINE float sum_of_lanes(Vec v) {
  return hn::GetLane(hn::SumOfLanes(kTag, v));
}
HWY_INLINE float max_of_lanes(Vec v) {
  return hn::GetLane(hn::MaxOfLanes(kTag, v));
}

// e^x by Cody-Waite reduction and the polynomial of Cephes expf, about 1 ulp; 0 below -86, e^88
// above 88, NaN for NaN.
HWY_INLINE Vec exp_of(Vec x) {
  const hn::RebindToSigned<FloatTag> int_tag;
  const Vec clamped = hn::Min(hn::Max(x, hn::Set(kTag, -86.0F)), hn::Set(kTag, 88.0F));
  const Vec n = hn::Round(hn::Mul(clamped, hn::Set(kTag, 1.44269504088896341F)));
  Vec r = hn::NegMulAdd(n, hn::Set(kTag, 0.693359375F), clamped);
  r = hn::NegMulAdd(n, hn::Set(kTag, -2.12194440e-4F), r);
  Vec p = hn::Set(kTag, 1.9875691500e-4F);
  p = hn::MulAdd(p, r, hn::Set(kTag, 1.3981999507e-3F));
  p = hn::MulAdd(p, r, hn::Set(kTag, 8.3334519073e-3F));
  p = hn::MulAdd(p, r, hn::Set(kTag, 4.1665795894e-2F));
  p = hn::MulAdd(p, r, hn::Set(kTag, 1.6666665459e-1F));
  p = hn::MulAdd(p, r, hn::Set(kTag, 5.0000001201e-1F));
  const Vec y = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(kTag, 1.0F));
  const auto exponent = hn::ShiftLeft<23>(hn::ConvertTo(int_tag, n));
  const Vec scaled = hn::BitCast(kTag, hn::Add(hn::BitCast(int_tag, y), exponent));
  const Vec cut = hn::IfThenZeroElse(hn::Lt(x, hn::Set(kTag, -86.0F)), scaled);
  return hn::IfThenElse(hn::IsNaN(x), x, cut);
}

// 1 / (1 + e^-x); NaN for NaN.
HWY_INLINE Vec sigmoid_of(Vec x) {
  const Vec one = hn::Set(kTag, 1.0F);
  return hn::Div(one, hn::Add(one, exp_of(hn::Neg(x))));
}

// tanh(x) = 1 - 2 / (e^2x + 1)
HWY_INLINE Vec tanh_of(Vec x) {
  const Vec one = hn::Set(kTag, 1.0F);
  return hn::Sub(one, hn::Div(hn::Set(kTag, 2.0F), hn::Add(exp_of(hn::Add(x, x)), one)));
}

// erf by the rational approximation of Eigen on [-4, 4], absolute error below 1e-6.
HWY_INLINE Vec erf_of(Vec x) {
  const Vec c = hn::Min(hn::Max(x, hn::Set(kTag, -4.0F)), hn::Set(kTag, 4.0F));
  const Vec s = hn::Mul(c, c);
  Vec p = hn::Set(kTag, -2.72614225801306e-10F);
  p = hn::MulAdd(p, s, hn::Set(kTag, 2.77068142495902e-08F));
  p = hn::MulAdd(p, s, hn::Set(kTag, -2.10102402082508e-06F));
  p = hn::MulAdd(p, s, hn::Set(kTag, -5.69250639462346e-05F));
  p = hn::MulAdd(p, s, hn::Set(kTag, -7.34990630326855e-04F));
  p = hn::MulAdd(p, s, hn::Set(kTag, -2.95459980854025e-03F));
  p = hn::MulAdd(p, s, hn::Set(kTag, -1.60960333262415e-02F));
  Vec q = hn::Set(kTag, -1.45660718464996e-05F);
  q = hn::MulAdd(q, s, hn::Set(kTag, -2.13374055278905e-04F));
  q = hn::MulAdd(q, s, hn::Set(kTag, -1.68282697438203e-03F));
  q = hn::MulAdd(q, s, hn::Set(kTag, -7.37332916720468e-03F));
  q = hn::MulAdd(q, s, hn::Set(kTag, -1.42647390514189e-02F));
  return hn::Div(hn::Mul(c, p), q);
}

}  // namespace mpinfer::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
