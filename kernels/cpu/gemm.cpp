// GEMM over packed panels, and its form that keeps only each row's maximum (the greedy head).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>
#include <type_traits>

#include "kernels/cpu/micro-inl.h"
#include "kernels/cpu/tables.h"

HWY_BEFORE_NAMESPACE();
namespace mpinfer::kernels::cpu::HWY_NAMESPACE {
namespace {

void pack_a(float* packed, const float* a, int64_t stride, int64_t rows, int64_t depth) {
  pack_rows_of_a(packed, a, stride, rows, depth);
}

int64_t panel_position(DType dtype, int64_t j) {
  if (dtype != DType::kBF16) return j;
  return j < kLanes ? 2 * j : 2 * (j - kLanes) + 1;
}

// c[rows, cols] = scale * c + bias, in place.
void finish_tile(float* c, int64_t c_stride, int64_t rows, int64_t cols, float scale,
                 const float* bias) {
  const Vec factor = hn::Set(kTag, scale);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = c + r * c_stride;
    int64_t j = 0;
    for (; j + kLanes <= cols; j += kLanes) {
      const Vec x = hn::Mul(hn::LoadU(kTag, row + j), factor);
      hn::StoreU(bias == nullptr ? x : hn::Add(x, hn::LoadU(kTag, bias + j)), kTag, row + j);
    }
    for (; j < cols; ++j) row[j] = row[j] * scale + (bias == nullptr ? 0.0F : bias[j]);
  }
}

// Depth steps whose widened weights stay in the first-level cache beside a tile of A.
inline constexpr int64_t kDepthBlock = 256;
// Row tiles from which widening a block of weights once pays.
inline constexpr int64_t kWidenTiles = 16;

template <class Rows>
void widen(float* HWY_RESTRICT out, const typename Rows::Element* HWY_RESTRICT b, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec low;
    Vec high;
    Rows::load(b + k * kPanelWidth, low, high);
    hn::StoreU(low, kTag, out + k * kPanelWidth);
    hn::StoreU(high, kTag, out + k * kPanelWidth + kLanes);
  }
}

// What one thread works on: c = rows of packed A times panels of weights.
template <class Rows>
class Multiplier {
 public:
  using Element = typename Rows::Element;

  Multiplier(const GemmArgs& args, float* widened)
      : args_(args),
        tiles_{.rows = args.rows, .row_tile = kRowTile},
        num_tiles_(tiles_.count()),
        num_panels_((args.out_features + kPanelWidth - 1) / kPanelWidth),
        widened_(widened) {}

  // c [rows, count * kPanelWidth] = A times panels [panel, panel + count); count > 1 only for a
  // lone tile.
  void multiply(float* c, int64_t c_stride, int64_t panel, int64_t count) const {
    const Element* b = panel_at(panel);
    const bool widens = num_tiles_ >= kWidenTiles && !std::is_same_v<Rows, F32Rows>;
    const int64_t block = widens ? kDepthBlock : args_.depth;
    for (int64_t k = 0; k < args_.depth; k += block) {
      const int64_t depth = HWY_MIN(block, args_.depth - k);
      const Element* at = b + k * kPanelWidth;
      if (widens) widen<Rows>(widened_, at, depth);
      const bool last = panel + count >= num_panels_ && k + depth == args_.depth;
      const auto* next =
          last ? nullptr : reinterpret_cast<const char*>(at + depth * count * kPanelWidth);
      const int64_t bytes = depth * count * kPanelWidth * int64_t{sizeof(Element)};
      for (int64_t t = 0; t < num_tiles_; ++t) {
        const int64_t rows = tiles_.size(t);
        const auto index = static_cast<size_t>(rows - 1);
        const MicroArgs micro_args = {
            .c = c + tiles_.begin(t) * c_stride,
            .c_stride = c_stride,
            .a = args_.packed_a + tiles_.begin(t) * args_.depth + k * rows,
            .b = widens ? static_cast<const void*>(widened_) : at,
            .b_step = kPanelWidth,
            .panel_step = args_.depth * kPanelWidth,
            .depth = depth,
            .carry = k > 0,
            .ahead = next == nullptr ? nullptr : next + t * bytes / num_tiles_,
            .ahead_step = bytes / num_tiles_ / depth};
        (widens ? kMicro<F32Rows> : count > 1 ? kMicroMany<Rows> : kMicro<Rows>)[index](micro_args);
      }
    }
  }

 private:
  const Element* panel_at(int64_t panel) const {
    return static_cast<const Element*>(args_.panels) + panel * args_.depth * kPanelWidth;
  }

  const GemmArgs& args_;
  RowTiles tiles_;
  int64_t num_tiles_;
  int64_t num_panels_;
  float* widened_;
};

template <class Rows>
void gemm_of(const GemmArgs& args, float* scratch, int64_t panel_begin, int64_t panel_end) {
  const Multiplier<Rows> multiplier(args, scratch);
  float* edge = scratch + kDepthBlock * kPanelWidth;
  const int64_t whole_panels = args.out_features / kPanelWidth;
  const int64_t group = args.rows <= kRowTile ? panels_at_once(args.rows) : 1;
  for (int64_t panel = panel_begin; panel < panel_end;) {
    const int64_t count = panel + group <= HWY_MIN(panel_end, whole_panels) ? group : 1;
    const int64_t column = panel * kPanelWidth;
    const int64_t cols = HWY_MIN(count * kPanelWidth, args.out_features - column);
    const bool whole = panel < whole_panels;
    float* out = args.out + column;
    multiplier.multiply(whole ? out : edge, whole ? args.out_stride : kPanelWidth, panel, count);
    for (int64_t r = 0; r < args.rows && !whole; ++r) {
      std::memcpy(out + r * args.out_stride, edge + r * kPanelWidth,
                  static_cast<size_t>(cols) * sizeof(float));
    }
    if (args.scale != 1.0F || args.bias != nullptr) {
      finish_tile(out, args.out_stride, args.rows, cols, args.scale,
                  args.bias == nullptr ? nullptr : args.bias + column);
    }
    panel += count;
  }
}

void gemm(const GemmArgs& args, float* scratch, int64_t panel_begin, int64_t panel_end) {
  switch (args.dtype) {
    case DType::kBF16:
      return gemm_of<Bf16Rows>(args, scratch, panel_begin, panel_end);
    case DType::kF16:
      return gemm_of<F16Rows>(args, scratch, panel_begin, panel_end);
    default:
      return gemm_of<F32Rows>(args, scratch, panel_begin, panel_end);
  }
}

// Folds logits [rows, kPanelWidth] of which the first cols are real, ids from first_id, into the
// state.
void fold_max(const MaxState& state, const float* logits, int64_t rows, int64_t cols,
              int32_t first_id) {
  const hn::RebindToSigned<FloatTag> int_tag;
  const auto ids = hn::Iota(int_tag, first_id);
  for (int64_t r = 0; r < rows; ++r) {
    float* best = state.best + r * kPanelWidth;
    int32_t* id = state.id + r * kPanelWidth;
    for (int64_t half = 0; half < kPanelWidth && half < cols; half += kLanes) {
      Vec x = hn::LoadU(kTag, logits + r * kPanelWidth + half);
      if (cols - half < kLanes) {
        const auto real = hn::FirstN(kTag, static_cast<size_t>(cols - half));
        x = hn::IfThenElse(real, x, hn::Set(kTag, -HUGE_VALF));
      }
      const Vec old = hn::LoadU(kTag, best + half);
      const auto more = hn::Gt(x, old);
      if (!hn::AllFalse(kTag, hn::IsNaN(x))) state.has_nan[r] = 1;
      if (hn::AllFalse(kTag, more)) continue;
      hn::StoreU(hn::IfThenElse(more, x, old), kTag, best + half);
      const auto here = hn::Add(ids, hn::Set(int_tag, static_cast<int32_t>(half)));
      const auto kept = hn::LoadU(int_tag, id + half);
      hn::StoreU(hn::IfThenElse(hn::RebindMask(int_tag, more), here, kept), int_tag, id + half);
    }
  }
}

template <class Rows>
void gemm_max_of(const GemmArgs& args, const MaxState& state, float* scratch, int32_t first_id,
                 int64_t panel_begin, int64_t panel_end) {
  const Multiplier<Rows> multiplier(args, scratch);
  float* logits = scratch + kDepthBlock * kPanelWidth;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t column = panel * kPanelWidth;
    multiplier.multiply(logits, kPanelWidth, panel, 1);
    fold_max(state, logits, args.rows, HWY_MIN(kPanelWidth, args.out_features - column),
             first_id + static_cast<int32_t>(column));
  }
}

void gemm_max(const GemmArgs& args, const MaxState& state, float* scratch, int32_t first_id,
              int64_t panel_begin, int64_t panel_end) {
  switch (args.dtype) {
    case DType::kBF16:
      return gemm_max_of<Bf16Rows>(args, state, scratch, first_id, panel_begin, panel_end);
    case DType::kF16:
      return gemm_max_of<F16Rows>(args, state, scratch, first_id, panel_begin, panel_end);
    default:
      return gemm_max_of<F32Rows>(args, state, scratch, first_id, panel_begin, panel_end);
  }
}

int64_t gemm_scratch(int64_t rows) {
  return (kDepthBlock + rows) * kPanelWidth;
}

int64_t multiply_add_loop(int64_t steps) {
  constexpr size_t kSums = 12;
  Vec sums[kSums];
  for (size_t i = 0; i < kSums; ++i) sums[i] = hn::Set(kTag, static_cast<float>(i));
  const Vec factor = hn::Set(kTag, 0.999F);
  for (int64_t step = 0; step < steps; ++step) {
    for (size_t i = 0; i < kSums; ++i) sums[i] = hn::MulAdd(sums[i], factor, factor);
  }
  Vec total = sums[0];
  for (size_t i = 1; i < kSums; ++i) total = hn::Add(total, sums[i]);
  // The sum is never this value; asking keeps the loop.
  return sum_of_lanes(total) == -1.0F ? 0 : static_cast<int64_t>(kSums) * kLanes * 2;
}

void fill(KernelTable& table) {
  table.panel_width = kPanelWidth;
  table.row_tile = kRowTile;
  table.pack_a = &pack_a;
  table.gemm = &gemm;
  table.gemm_max = &gemm_max;
  table.gemm_scratch = &gemm_scratch;
  table.panel_position = &panel_position;
  table.multiply_add_loop = &multiply_add_loop;
}

}  // namespace
}  // namespace mpinfer::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mpinfer::kernels::cpu {
HWY_EXPORT(fill);
void fill_gemm(KernelTable& table) {
  HWY_DYNAMIC_DISPATCH(fill)(table);
}
}  // namespace mpinfer::kernels::cpu
#endif
