// The register tile all matrix work goes through: kRows rows times kPanels panels of two vectors,
// depth ascending, one multiply-add a step and element. Sums start at zero or at c (carry), so
// cutting the depth changes nothing.
#if defined(MPINFER_KERNELS_CPU_MICRO_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef MPINFER_KERNELS_CPU_MICRO_INL_H
#undef MPINFER_KERNELS_CPU_MICRO_INL_H
#else
#define MPINFER_KERNELS_CPU_MICRO_INL_H
#endif

#include <array>
#include <utility>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mpinfer::kernels::cpu::HWY_NAMESPACE {

// AVX-512 and NEON have 32 vector registers, the others 16 or fewer.
inline constexpr int kRowTile = kLanes >= 16 ? 14 : HWY_ARCH_ARM ? 12 : 6;

struct MicroArgs {
  float* c = nullptr;  // [kRows, kPanels * kPanelWidth], rows c_stride apart
  int64_t c_stride = 0;
  const float* a = nullptr;  // [depth][kRows]
  const void* b = nullptr;   // [depth], b_step elements apart
  int64_t b_step = 0;
  int64_t panel_step = 0;  // elements from one panel to the next
  int64_t depth = 0;
  bool carry = false;
  const char* ahead = nullptr;  // memory to bring near meanwhile, ahead_step bytes a step of depth
  int64_t ahead_step = 0;
};
using MicroFunction = void (*)(const MicroArgs& args);

struct F32Rows {
  using Element = float;
  static HWY_INLINE void load(const float* p, Vec& low, Vec& high) {
    low = hn::LoadU(kTag, p);
    high = hn::LoadU(kTag, p + kLanes);
  }
};

struct Bf16Rows {
  using Element = uint16_t;
  static HWY_INLINE void load(const uint16_t* p, Vec& low, Vec& high) {
    const hn::RebindToUnsigned<FloatTag> word_tag;
    uint32_t const* const words = reinterpret_cast<const uint32_t*>(p);
    const auto both = hn::LoadU(word_tag, words);
    low = hn::BitCast(kTag, hn::ShiftLeft<16>(both));
    high = hn::BitCast(kTag, hn::And(both, hn::Set(word_tag, 0xffff0000U)));
  }
};

struct F16Rows {
  using Element = uint16_t;
  static HWY_INLINE void load(const uint16_t* p, Vec& low, Vec& high) {
    const hn::Rebind<hwy::float16_t, FloatTag> half_tag;
    const auto* const halves = reinterpret_cast<const hwy::float16_t*>(p);
    low = hn::PromoteTo(kTag, hn::LoadU(half_tag, halves));
    high = hn::PromoteTo(kTag, hn::LoadU(half_tag, halves + kLanes));
  }
};

template <class Rows, size_t kRows, size_t kPanels>
HWY_NOINLINE void micro(const MicroArgs& args) {
  Vec low[kPanels][kRows];
  Vec high[kPanels][kRows];
#pragma GCC unroll 16
  for (size_t p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
    for (size_t r = 0; r < kRows; ++r) {
      const float* c =
          args.c + static_cast<int64_t>(r) * args.c_stride + static_cast<int64_t>(p) * kPanelWidth;
      low[p][r] = args.carry ? hn::LoadU(kTag, c) : hn::Zero(kTag);
      high[p][r] = args.carry ? hn::LoadU(kTag, c + kLanes) : hn::Zero(kTag);
    }
  }
  const float* HWY_RESTRICT a = args.a;
  const auto* HWY_RESTRICT b = static_cast<const typename Rows::Element*>(args.b);
  const int64_t panel_step = args.panel_step;
  const char* ahead = args.ahead == nullptr ? static_cast<const char*>(args.b) : args.ahead;
  const int64_t ahead_step = args.ahead == nullptr ? 0 : args.ahead_step;
  for (int64_t k = args.depth; k > 0; --k) {
#pragma GCC unroll 16
    for (size_t p = 0; p < kPanels; ++p) {
      Vec b_low;
      Vec b_high;
      Rows::load(b + static_cast<int64_t>(p) * panel_step, b_low, b_high);
#pragma GCC unroll 16
      for (size_t r = 0; r < kRows; ++r) {
        const Vec x = hn::Set(kTag, a[r]);
        low[p][r] = hn::MulAdd(x, b_low, low[p][r]);
        high[p][r] = hn::MulAdd(x, b_high, high[p][r]);
      }
    }
    __builtin_prefetch(ahead, 0, 2);
    ahead += ahead_step;
    a += kRows;
    b += args.b_step;
  }
#pragma GCC unroll 16
  for (size_t p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
    for (size_t r = 0; r < kRows; ++r) {
      float* c =
          args.c + static_cast<int64_t>(r) * args.c_stride + static_cast<int64_t>(p) * kPanelWidth;
      hn::StoreU(low[p][r], kTag, c);
      hn::StoreU(high[p][r], kTag, c + kLanes);
    }
  }
}

// Panels a lone tile of few rows takes at once, so that enough sums are in flight to hide the
// latency of an add.
constexpr int64_t panels_at_once(int64_t rows) {
  return rows * 2 <= kRowTile ? 2 : 1;
}

template <class Rows, bool kMany, size_t... kIndices>
constexpr std::array<MicroFunction, sizeof...(kIndices)> micro_table(
    std::index_sequence<kIndices...>) {
  return {&micro < Rows, static_cast<int>(kIndices) + 1,
          kMany ? panels_at_once(static_cast<int>(kIndices) + 1) : 1 > ...};
}

// By rows - 1. One panel; panels_at_once(rows) panels.
template <class Rows>
inline constexpr std::array<MicroFunction, kRowTile> kMicro =
    micro_table<Rows, false>(std::make_index_sequence<kRowTile>());
template <class Rows>
inline constexpr std::array<MicroFunction, kRowTile> kMicroMany =
    micro_table<Rows, true>(std::make_index_sequence<kRowTile>());

// Four rows → columns [r, r + 4) of packed [depth][rows] by 4 × 4 transposes. Where width < 4, the
// rest of a store spills into the next step's first columns, which must be written later; the last
// step spills nothing.
HWY_INLINE void pack_four(float* HWY_RESTRICT packed, const float* const* a, int64_t rows,
                          int64_t width, int64_t depth) {
  const hn::FixedTag<float, 4> four;
  const hn::FixedTag<double, 2> pair;
  const int64_t end = width == 4 ? depth : depth - 1;
  int64_t k = 0;
  for (; k + 4 <= end; k += 4) {
    const auto r0 = hn::LoadU(four, a[0] + k);
    const auto r1 = hn::LoadU(four, a[1] + k);
    const auto r2 = hn::LoadU(four, a[2] + k);
    const auto r3 = hn::LoadU(four, a[3] + k);
    const auto a01 = hn::BitCast(pair, hn::InterleaveLower(four, r0, r1));
    const auto a23 = hn::BitCast(pair, hn::InterleaveLower(four, r2, r3));
    const auto b01 = hn::BitCast(pair, hn::InterleaveUpper(four, r0, r1));
    const auto b23 = hn::BitCast(pair, hn::InterleaveUpper(four, r2, r3));
    float* to = packed + k * rows;
    hn::StoreU(hn::BitCast(four, hn::InterleaveLower(pair, a01, a23)), four, to);
    hn::StoreU(hn::BitCast(four, hn::InterleaveUpper(pair, a01, a23)), four, to + rows);
    hn::StoreU(hn::BitCast(four, hn::InterleaveLower(pair, b01, b23)), four, to + 2 * rows);
    hn::StoreU(hn::BitCast(four, hn::InterleaveUpper(pair, b01, b23)), four, to + 3 * rows);
  }
  for (; k < depth; ++k) {
    for (int64_t i = 0; i < width; ++i) packed[k * rows + i] = a[i][k];
  }
}

// rows <= kRowTile rows of a → packed [depth][rows]; the last, narrow group first (see pack_four).
HWY_INLINE void pack_rows_of_a(float* packed, const float* a, int64_t stride, int64_t rows,
                               int64_t depth) {
  for (int64_t r = (rows - 1) / 4 * 4; r >= 0; r -= 4) {
    const int64_t width = HWY_MIN(rows - r, int64_t{4});
    const float* group[4];
    for (int64_t i = 0; i < 4; ++i) group[i] = a + (r + HWY_MIN(i, width - 1)) * stride;
    pack_four(packed + r, group, rows, width, depth);
  }
}

}  // namespace mpinfer::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
