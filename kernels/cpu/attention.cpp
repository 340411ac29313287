// Attention of consecutive rows of one sequence against one KV head, over the paged cache. Keys are
// taken in tiles of kKeyTile aligned at absolute positions, positions ascending, with a running
// maximum per query: a query's bits depend on its own position alone. Blocks below the window are
// never touched.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>

#include "kernels/cpu/micro-inl.h"
#include "kernels/cpu/paged-inl.h"
#include "kernels/cpu/tables.h"

HWY_BEFORE_NAMESPACE();
namespace mpinfer::kernels::cpu::HWY_NAMESPACE {
namespace {

template <size_t kRows>
HWY_NOINLINE void score(float* scores, const float* q, const float* const* keys, int64_t step,
                        int64_t head_dim) {
  constexpr size_t kVectors = kScoreVectors;
  Vec sums[kRows][kVectors];
  const float* at[kVectors];
#pragma GCC unroll 8
  for (size_t v = 0; v < kVectors; ++v) {
    at[v] = keys[v];
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) sums[r][v] = hn::Zero(kTag);
  }
  for (int64_t d = 0; d < head_dim; ++d) {
    Vec k[kVectors];
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) k[v] = hn::LoadU(kTag, at[v] + d * step);
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const Vec x = hn::Set(kTag, q[r]);
#pragma GCC unroll 8
      for (size_t v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(x, k[v], sums[r][v]);
    }
    q += kRows;
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      hn::StoreU(sums[r][v], kTag,
                 scores + static_cast<int64_t>(r) * kKeyTile + static_cast<int64_t>(v) * kLanes);
    }
  }
}

using ScoreFunction = void (*)(float*, const float*, const float* const*, int64_t, int64_t);
inline constexpr std::array<ScoreFunction, kScoreRows> kScore = {&score<1>, &score<2>, &score<3>,
                                                                 &score<4>, &score<5>, &score<6>};

// scores [queries, keys of range] = q · keys
void score_keys(const Scratch& s, const RowTiles& tiles, const KeyRange& range,
                const KeyVectors& keys, int64_t head_dim) {
  const int64_t first = range.begin / kLanes / kScoreVectors * kScoreVectors;
  for (int64_t v = first; v * kLanes < range.end; v += kScoreVectors) {
    for (int64_t t = 0; t < tiles.count(); ++t) {
      kScore[static_cast<size_t>(tiles.size(t) - 1)](
          s.scores + tiles.begin(t) * kKeyTile + v * kLanes, s.q + tiles.begin(t) * head_dim,
          keys.at + v, keys.step, head_dim);
    }
  }
}

// The keys of a range that the query at a position sees, as offsets [begin, end) within the tile.
KeyRange visible_keys(const AttentionArgs& args, const KeyRange& range, int64_t position) {
  const int64_t from = args.window == 0 ? 0 : position + 1 - args.window - range.tile;
  const int64_t begin = HWY_MIN(HWY_MAX(range.begin, from), range.end);
  const int64_t end = HWY_MAX(begin, HWY_MIN(range.end, position + 1 - range.tile));
  return {.tile = range.tile, .begin = begin, .end = end};
}

// Products → logits: scale, softcap, -inf for keys that are not visible. Returns the largest.
float logits_of(const AttentionArgs& args, float* scores, const KeyRange& range,
                const KeyRange& visible) {
  const int64_t first = range.begin / kLanes * kLanes;
  const int64_t last = round_up(range.end, kLanes);
  // Columns outside the range may hold anything, also signalling bits: replaced before they are
  // used.
  for (int64_t j = first; j < visible.begin; ++j) scores[j] = -HUGE_VALF;
  for (int64_t j = visible.end; j < last; ++j) scores[j] = -HUGE_VALF;
  const bool capped = args.softcap > 0.0F;
  const Vec cap = hn::Set(kTag, args.softcap);
  const Vec factor = hn::Set(kTag, capped ? args.scale / args.softcap : args.scale);
  const Vec none = hn::Set(kTag, -HUGE_VALF);
  Vec highest = none;
  for (int64_t j = first; j < last; j += kLanes) {
    const Vec product = hn::LoadU(kTag, scores + j);
    Vec x = hn::Mul(product, factor);
    if (capped) x = hn::IfThenElse(hn::Eq(product, none), none, hn::Mul(cap, tanh_of(x)));
    hn::StoreU(x, kTag, scores + j);
    highest = hn::Max(highest, x);
  }
  return max_of_lanes(highest);
}

// Logits → probabilities relative to a maximum, in place; returns their sum.
float exponents_of(float* scores, const KeyRange& range, float max) {
  const Vec shift = hn::Set(kTag, max);
  Vec total = hn::Zero(kTag);
  const int64_t last = round_up(range.end, kLanes);
  for (int64_t j = range.begin / kLanes * kLanes; j < last; j += kLanes) {
    const Vec p = exp_of(hn::Sub(hn::LoadU(kTag, scores + j), shift));
    hn::StoreU(p, kTag, scores + j);
    total = hn::Add(total, p);
  }
  return sum_of_lanes(total);
}

// Scores of a tile → probabilities relative to the running maximum; sums and row_sum are rescaled
// to it. In steps over all queries, so that the long dependency chains of different queries
// overlap.
void soften(const AttentionArgs& args, const AttentionTask& task, const Scratch& s,
            const KeyRange& range) {
  const int64_t queries = task.num_rows * args.group;
  for (int64_t i = 0; i < queries; ++i) {
    const KeyRange visible = visible_keys(args, range, task.first_position + i / args.group);
    s.correction[i] = logits_of(args, s.scores + i * kKeyTile, range, visible);
  }
  for (int64_t i = 0; i < queries; i += kLanes) {
    const Vec old_max = hn::LoadU(kTag, s.row_max + i);
    const Vec new_max = hn::Max(old_max, hn::LoadU(kTag, s.correction + i));
    const Vec correction = exp_of(hn::Sub(old_max, new_max));
    hn::StoreU(new_max, kTag, s.row_max + i);
    hn::StoreU(correction, kTag, s.correction + i);
    hn::StoreU(hn::Mul(hn::LoadU(kTag, s.row_sum + i), correction), kTag, s.row_sum + i);
  }
  for (int64_t i = 0; i < queries; ++i) {
    s.row_sum[i] += exponents_of(s.scores + i * kKeyTile, range, s.row_max[i]);
  }
  const int64_t padded = round_up(args.value_dim, kPanelWidth);
  for (int64_t i = 0; i < queries; ++i) {
    if (s.correction[i] == 1.0F) continue;
    const Vec correction = hn::Set(kTag, s.correction[i]);
    float* sums = s.sums + i * padded;
    for (int64_t d = 0; d < padded; d += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(kTag, sums + d), correction), kTag, sums + d);
    }
  }
}

// The columns of V behind the last whole panel, zero-padded to one.
void load_value_edge(const AttentionArgs& args, const AttentionTask& task, const KeyRange& range,
                     int64_t column, float* edge) {
  const auto bytes = static_cast<size_t>(args.value_dim - column) * sizeof(float);
  for (int64_t j = range.begin; j < range.end; ++j) {
    float* to = edge + j * kPanelWidth;
    std::memset(to, 0, static_cast<size_t>(kPanelWidth) * sizeof(float));
    std::memcpy(to, value_of(args, task, range.tile + j) + column, bytes);
  }
}

// sums += p · V over the keys of the range, for the row tile whose probabilities are packed in s.p.
void add_values(const AttentionArgs& args, const AttentionTask& task, const Scratch& s,
                const KeyRange& range, int64_t first_query, int64_t rows) {
  const int64_t padded = round_up(args.value_dim, kPanelWidth);
  const int64_t whole = args.value_dim / kPanelWidth * kPanelWidth;
  const auto index = static_cast<size_t>(rows - 1);
  const int64_t at_once = panels_at_once(rows);
  float* sums = s.sums + first_query * padded;
  for (int64_t j = range.begin; j < range.end;) {
    const int64_t run = run_length(args, range.tile + j, range.end - j);
    const float* v = value_of(args, task, range.tile + j);
    for (int64_t d = 0; d < whole;) {
      const int64_t panels = d + at_once * kPanelWidth <= whole ? at_once : 1;
      (panels > 1 ? kMicroMany<F32Rows>
                  : kMicro<F32Rows>)[index]({.c = sums + d,
                                             .c_stride = padded,
                                             .a = s.p + (j - range.begin) * rows,
                                             .b = v + d,
                                             .b_step = args.head_dim,
                                             .panel_step = kPanelWidth,
                                             .depth = run,
                                             .carry = true});
      d += panels * kPanelWidth;
    }
    j += run;
  }
  if (whole < args.value_dim) {
    kMicro<F32Rows>[index]({.c = sums + whole,
                            .c_stride = padded,
                            .a = s.p,
                            .b = s.value_edge + range.begin * kPanelWidth,
                            .b_step = kPanelWidth,
                            .depth = range.end - range.begin,
                            .carry = true});
  }
}

void start_queries(const AttentionArgs& args, const AttentionTask& task, const Scratch& s,
                   const RowTiles& tiles) {
  const int64_t queries = tiles.rows;
  const int64_t padded = round_up(args.value_dim, kPanelWidth);
  // q of a row is [group, head_dim] without gaps: gather it to [queries, head_dim] in the place of
  // sums.
  float* gathered = s.sums;
  const auto bytes = static_cast<size_t>(args.group * args.head_dim) * sizeof(float);
  for (int64_t r = 0; r < task.num_rows; ++r) {
    std::memcpy(
        gathered + r * args.group * args.head_dim,
        args.q + (task.first_row + r) * args.q_stride + task.kv_head * args.group * args.head_dim,
        bytes);
  }
  for (int64_t t = 0; t < tiles.count(); ++t) {
    pack_rows_of_a(s.q + tiles.begin(t) * args.head_dim, gathered + tiles.begin(t) * args.head_dim,
                   args.head_dim, tiles.size(t), args.head_dim);
  }
  std::memset(s.sums, 0, static_cast<size_t>(queries * padded) * sizeof(float));
  for (int64_t i = queries; i < round_up(queries, kLanes); ++i) {
    s.row_max[i] = s.row_sum[i] = s.correction[i] = 0.0F;  // whole vectors are computed
  }
  for (int64_t i = 0; i < queries; ++i) {
    const bool sink = args.sinks != nullptr;
    s.row_max[i] = sink ? args.sinks[task.kv_head * args.group + i % args.group] : -3.0e38F;
    s.row_sum[i] = sink ? 1.0F : 0.0F;
  }
}

void finish_queries(const AttentionArgs& args, const AttentionTask& task, const Scratch& s) {
  const int64_t padded = round_up(args.value_dim, kPanelWidth);
  for (int64_t i = 0; i < task.num_rows * args.group; ++i) {
    float* out = args.out + (task.first_row + i / args.group) * args.out_stride +
                 (task.kv_head * args.group + i % args.group) * args.value_dim;
    const Vec sum = hn::Set(kTag, s.row_sum[i]);
    const float* sums = s.sums + i * padded;
    int64_t d = 0;
    for (; d + kLanes <= args.value_dim; d += kLanes) {
      hn::StoreU(hn::Div(hn::LoadU(kTag, sums + d), sum), kTag, out + d);
    }
    if (d < args.value_dim) {
      store_partial(hn::Div(hn::LoadU(kTag, sums + d), sum), out + d, args.value_dim - d);
    }
  }
}

// Keys of positions [begin, end), in tiles, for queries that have been started.
void run_tiles(const AttentionArgs& args, const AttentionTask& task, const Scratch& s,
               int64_t begin, int64_t end) {
  const int64_t queries = task.num_rows * args.group;
  const RowTiles score_tiles = {.rows = queries, .row_tile = kScoreRows};
  const RowTiles tiles = {.rows = queries, .row_tile = kRowTile};
  const int64_t whole = args.value_dim / kPanelWidth * kPanelWidth;
  for (int64_t tile = begin / kKeyTile * kKeyTile; tile < end; tile += kKeyTile) {
    const KeyRange range = {.tile = tile,
                            .begin = HWY_MAX(begin - tile, int64_t{0}),
                            .end = HWY_MIN(end - tile, kKeyTile)};
    const KeyVectors keys = load_keys(args, task, range, s.keys);
    fetch_values(args, task, range);
    score_keys(s, score_tiles, range, keys, args.head_dim);
    const int64_t next = tile + kKeyTile;
    if (next < end) {
      fetch_keys(args, task, {.tile = next, .begin = 0, .end = HWY_MIN(end - next, kKeyTile)});
    }
    if (whole < args.value_dim) load_value_edge(args, task, range, whole, s.value_edge);
    soften(args, task, s, range);
    for (int64_t t = 0; t < tiles.count(); ++t) {
      pack_rows_of_a(s.p, s.scores + tiles.begin(t) * kKeyTile + range.begin, kKeyTile,
                     tiles.size(t), range.end - range.begin);
      add_values(args, task, s, range, tiles.begin(t), tiles.size(t));
    }
  }
}

RowTiles score_tiles_of(const AttentionArgs& args, const AttentionTask& task) {
  return {.rows = task.num_rows * args.group, .row_tile = kScoreRows};
}

// The shared tiles once for all rows, then each row's own with the state they left: the steps of a
// row, and so its bits, are those that it would take alone.
void attend_group(const AttentionArgs& args, const AttentionTask& task, float* scratch) {
  const int64_t queries = task.num_rows * args.group;
  const Scratch shared(scratch, args.head_dim, queries);
  const Scratch own(scratch + round_up(Scratch::floats(args.head_dim, queries), 16), args.head_dim,
                    args.group);
  AttentionTask together = task;
  together.first_position = task.shared_tokens;  // behind all that is looked at
  start_queries(args, together, shared, score_tiles_of(args, together));
  run_tiles(args, together, shared, 0, task.shared_tokens);
  const int64_t padded = round_up(args.value_dim, kPanelWidth);
  const auto bytes = [](int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); };
  for (int64_t r = 0; r < task.num_rows; ++r) {
    const AttentionTask one = {.block_table = task.block_table + r * task.block_table_stride,
                               .kv_head = task.kv_head,
                               .first_row = task.first_row + r,
                               .num_rows = 1,
                               .first_position = task.contexts[r] - 1};
    start_queries(args, one, own, score_tiles_of(args, one));
    const int64_t first = r * args.group;
    std::memcpy(own.row_max, shared.row_max + first, bytes(args.group));
    std::memcpy(own.row_sum, shared.row_sum + first, bytes(args.group));
    std::memcpy(own.sums, shared.sums + first * padded, bytes(args.group * padded));
    run_tiles(args, one, own, task.shared_tokens, task.contexts[r]);
    finish_queries(args, one, own);
  }
}

void attention(const AttentionArgs& args, const AttentionTask& task, float* scratch) {
  if (task.shared_tokens > 0) return attend_group(args, task, scratch);
  const Scratch s(scratch, args.head_dim, task.num_rows * args.group);
  start_queries(args, task, s, score_tiles_of(args, task));
  const int64_t begin =
      args.window == 0 ? 0 : HWY_MAX(int64_t{0}, task.first_position + 1 - args.window);
  run_tiles(args, task, s, begin, task.first_position + task.num_rows);
  finish_queries(args, task, s);
}

int64_t attention_scratch(int64_t head_dim, int64_t queries, int64_t group) {
  return round_up(Scratch::floats(head_dim, queries), 16) + Scratch::floats(head_dim, group);
}

void fill(KernelTable& table) {
  table.attention = &attention;
  table.attention_scratch = &attention_scratch;
}

}  // namespace
}  // namespace mpinfer::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mpinfer::kernels::cpu {
HWY_EXPORT(fill);
void fill_attention(KernelTable& table) {
  HWY_DYNAMIC_DISPATCH(fill)(table);
}
}  // namespace mpinfer::kernels::cpu
#endif
