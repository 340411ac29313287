// GEMM over packed panels, and its form that keeps only each row's maximum (the greedy head).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>

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

// One row tile times panels [panel, panel + count): whole panels into out, the ragged last one by a
// copy.
template <class Rows>
void gemm_tile(const GemmArgs& args, int64_t first_row, int64_t rows, int64_t panel,
               int64_t count) {
  const auto* panels = static_cast<const typename Rows::Element*>(args.panels);
  const int64_t panel_step = args.depth * kPanelWidth;
  const int64_t column = panel * kPanelWidth;
  const int64_t cols = HWY_MIN(count * kPanelWidth, args.out_features - column);
  float* out = args.out + first_row * args.out_stride + column;
  const bool whole = cols == count * kPanelWidth;
  float edge[kRowTile * kPanelWidth];
  const MicroArgs micro_args = {.c = whole ? out : edge,
                                .c_stride = whole ? args.out_stride : kPanelWidth,
                                .a = args.packed_a + first_row * args.depth,
                                .b = panels + panel * panel_step,
                                .b_step = kPanelWidth,
                                .panel_step = panel_step,
                                .depth = args.depth};
  const auto index = static_cast<size_t>(rows - 1);
  (count > 1 ? kMicroMany<Rows>[index] : kMicro<Rows>[index])(micro_args);
  if (!whole) {
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(out + r * args.out_stride, edge + r * kPanelWidth,
                  static_cast<size_t>(cols) * sizeof(float));
    }
  }
  if (args.scale != 1.0F || args.bias != nullptr) {
    finish_tile(out, args.out_stride, rows, cols, args.scale,
                args.bias == nullptr ? nullptr : args.bias + column);
  }
}

template <class Rows>
void gemm_of(const GemmArgs& args, int64_t panel_begin, int64_t panel_end) {
  const RowTiles tiles = {.rows = args.rows, .row_tile = kRowTile};
  const int64_t num_tiles = tiles.count();
  const int64_t whole_panels = args.out_features / kPanelWidth;
  const int64_t group = num_tiles == 1 ? panels_at_once(args.rows) : 1;
  for (int64_t panel = panel_begin; panel < panel_end;) {
    const int64_t count = panel + group <= HWY_MIN(panel_end, whole_panels) ? group : 1;
    for (int64_t t = 0; t < num_tiles; ++t) {
      gemm_tile<Rows>(args, tiles.begin(t), tiles.size(t), panel, count);
    }
    panel += count;
  }
}

void gemm(const GemmArgs& args, int64_t panel_begin, int64_t panel_end) {
  switch (args.dtype) {
    case DType::kBF16:
      return gemm_of<Bf16Rows>(args, panel_begin, panel_end);
    case DType::kF16:
      return gemm_of<F16Rows>(args, panel_begin, panel_end);
    default:
      return gemm_of<F32Rows>(args, panel_begin, panel_end);
  }
}

// Folds logits [rows, kPanelWidth] of which the first cols are real, ids from first_id, into the
// state.
void fold_max(const MaxState& state, const float* logits, int64_t first_row, int64_t rows,
              int64_t cols, int32_t first_id) {
  const hn::RebindToSigned<FloatTag> int_tag;
  const auto ids = hn::Iota(int_tag, first_id);
  for (int64_t r = 0; r < rows; ++r) {
    float* best = state.best + (first_row + r) * kPanelWidth;
    int32_t* id = state.id + (first_row + r) * kPanelWidth;
    for (int64_t half = 0; half < kPanelWidth && half < cols; half += kLanes) {
      Vec x = hn::LoadU(kTag, logits + r * kPanelWidth + half);
      if (cols - half < kLanes) {
        const auto real = hn::FirstN(kTag, static_cast<size_t>(cols - half));
        x = hn::IfThenElse(real, x, hn::Set(kTag, -HUGE_VALF));
      }
      const Vec old = hn::LoadU(kTag, best + half);
      const auto more = hn::Gt(x, old);
      if (!hn::AllFalse(kTag, hn::IsNaN(x))) state.has_nan[first_row + r] = 1;
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
  const RowTiles tiles = {.rows = args.rows, .row_tile = kRowTile};
  const auto* panels = static_cast<const typename Rows::Element*>(args.panels);
  const int64_t panel_step = args.depth * kPanelWidth;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t column = panel * kPanelWidth;
    for (int64_t t = 0; t < tiles.count(); ++t) {
      const int64_t rows = tiles.size(t);
      kMicro<Rows>[static_cast<size_t>(rows - 1)]({.c = scratch,
                                                   .c_stride = kPanelWidth,
                                                   .a = args.packed_a + tiles.begin(t) * args.depth,
                                                   .b = panels + panel * panel_step,
                                                   .b_step = kPanelWidth,
                                                   .depth = args.depth});
      fold_max(state, scratch, tiles.begin(t), rows,
               HWY_MIN(kPanelWidth, args.out_features - column),
               first_id + static_cast<int32_t>(column));
    }
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
