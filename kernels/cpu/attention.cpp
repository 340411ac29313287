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
#include "kernels/cpu/tables.h"

HWY_BEFORE_NAMESPACE();
namespace mpinfer::kernels::cpu::HWY_NAMESPACE {
namespace {

inline constexpr int64_t kKeyPanels = kKeyTile / kPanelWidth;

constexpr int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// Pieces of the scratch memory of one task; queries are (row, head of the group), row by row.
struct Scratch {
  float* q = nullptr;       // row tiles, each [head_dim][queries of the tile]
  float* keys = nullptr;    // [kKeyPanels][head_dim][kPanelWidth]
  float* scores = nullptr;  // [queries, kKeyTile]
  float* p = nullptr;       // one row tile: [keys of the tile][queries of the row tile]
  float* sums = nullptr;    // [queries, padded head_dim]
  float* value_edge =
      nullptr;  // [kKeyTile, kPanelWidth]: last columns of V where head_dim is no multiple
  float* row_max = nullptr;  // [queries]
  float* row_sum = nullptr;  // [queries]

  static int64_t floats(int64_t head_dim, int64_t queries) {
    return queries * (head_dim + kKeyTile + round_up(head_dim, kPanelWidth) + 2) +
           kKeyTile * (head_dim + kRowTile + kPanelWidth);
  }
  Scratch(float* at, int64_t head_dim, int64_t queries) {
    const auto take = [&at](int64_t n) {
      float* piece = at;
      at += n;
      return piece;
    };
    keys = take(kKeyTile * head_dim);
    p = take(kKeyTile * kRowTile);
    value_edge = take(kKeyTile * kPanelWidth);
    q = take(queries * head_dim);
    scores = take(queries * kKeyTile);
    sums = take(queries * round_up(head_dim, kPanelWidth));
    row_max = take(queries);
    row_sum = take(queries);
  }
};

// Keys [begin, end) of the tile that starts at position tile: offsets within the tile.
struct KeyRange {
  int64_t tile = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

const float* token_of(const AttentionArgs& args, const AttentionTask& task, const float* cache,
                      int64_t position) {
  const int64_t block = task.block_table[position / args.block_size];
  return cache + block * args.block_stride + task.kv_head * args.head_stride +
         (position % args.block_size) * args.token_stride;
}

// Keys one after the other in a block, from position on: at most limit.
int64_t run_length(const AttentionArgs& args, int64_t position, int64_t limit) {
  return HWY_MIN(limit, args.block_size - position % args.block_size);
}

// Four keys from k → columns [j, j + 4) of the transposed tile.
void transpose_four(float* HWY_RESTRICT keys, const float* HWY_RESTRICT k, int64_t token_stride,
                    int64_t head_dim, int64_t j) {
  const hn::FixedTag<float, 4> four;
  const hn::FixedTag<double, 2> pair;
  float* to = keys + j / kPanelWidth * head_dim * kPanelWidth + j % kPanelWidth;
  int64_t d = 0;
  for (; d + 4 <= head_dim; d += 4) {
    const auto r0 = hn::LoadU(four, k + d);
    const auto r1 = hn::LoadU(four, k + token_stride + d);
    const auto r2 = hn::LoadU(four, k + 2 * token_stride + d);
    const auto r3 = hn::LoadU(four, k + 3 * token_stride + d);
    const auto a01 = hn::BitCast(pair, hn::InterleaveLower(four, r0, r1));
    const auto a23 = hn::BitCast(pair, hn::InterleaveLower(four, r2, r3));
    const auto b01 = hn::BitCast(pair, hn::InterleaveUpper(four, r0, r1));
    const auto b23 = hn::BitCast(pair, hn::InterleaveUpper(four, r2, r3));
    float* at = to + d * kPanelWidth;
    hn::StoreU(hn::BitCast(four, hn::InterleaveLower(pair, a01, a23)), four, at);
    hn::StoreU(hn::BitCast(four, hn::InterleaveUpper(pair, a01, a23)), four, at + kPanelWidth);
    hn::StoreU(hn::BitCast(four, hn::InterleaveLower(pair, b01, b23)), four, at + 2 * kPanelWidth);
    hn::StoreU(hn::BitCast(four, hn::InterleaveUpper(pair, b01, b23)), four, at + 3 * kPanelWidth);
  }
  for (; d < head_dim; ++d) {
    for (int64_t i = 0; i < 4; ++i) to[d * kPanelWidth + i] = k[i * token_stride + d];
  }
}

void load_keys(const AttentionArgs& args, const AttentionTask& task, const KeyRange& range,
               float* keys) {
  for (int64_t j = range.begin; j < range.end;) {
    const int64_t position = range.tile + j;
    const float* k = token_of(args, task, args.k, position);
    int64_t run = run_length(args, position, range.end - j);
    for (; run > 0; --run, ++j, k += args.token_stride) {
      while (run >= 4 && j % 4 == 0) {
        transpose_four(keys, k, args.token_stride, args.head_dim, j);
        run -= 4;
        j += 4;
        k += 4 * args.token_stride;
      }
      if (run == 0) break;
      float* to = keys + j / kPanelWidth * args.head_dim * kPanelWidth + j % kPanelWidth;
      for (int64_t d = 0; d < args.head_dim; ++d) to[d * kPanelWidth] = k[d];
    }
  }
}

// scores[queries, keys of range] = q · keys, panels that hold a key of the range.
void score_keys(const Scratch& s, const RowTiles& tiles, const KeyRange& range, int64_t head_dim) {
  const int64_t last_panel = (range.end + kPanelWidth - 1) / kPanelWidth;
  for (int64_t panel = range.begin / kPanelWidth; panel < last_panel; ++panel) {
    for (int64_t t = 0; t < tiles.count(); ++t) {
      const auto index = static_cast<size_t>(tiles.size(t) - 1);
      kMicro<F32Rows>[index]({.c = s.scores + tiles.begin(t) * kKeyTile + panel * kPanelWidth,
                              .c_stride = kKeyTile,
                              .a = s.q + tiles.begin(t) * head_dim,
                              .b = s.keys + panel * head_dim * kPanelWidth,
                              .b_step = kPanelWidth,
                              .depth = head_dim});
    }
  }
}

// Scores → probabilities relative to the running maximum; sums and row_sum are rescaled to it.
// visible: the keys of the range this query sees, offsets within the tile.
void soften(const AttentionArgs& args, const Scratch& s, int64_t query, const KeyRange& range,
            const KeyRange& visible) {
  float* scores = s.scores + query * kKeyTile;
  const int64_t first = range.begin / kLanes * kLanes;
  const int64_t last = round_up(range.end, kLanes);
  for (int64_t j = first; j < visible.begin; ++j) scores[j] = 0.0F;
  for (int64_t j = visible.end; j < last; ++j) scores[j] = 0.0F;

  const Vec cap = hn::Set(kTag, args.softcap);
  const Vec factor = hn::Set(kTag, args.softcap > 0.0F ? args.scale / args.softcap : args.scale);
  Vec highest = hn::Set(kTag, -HUGE_VALF);
  for (int64_t j = first; j < last; j += kLanes) {
    Vec x = hn::Mul(hn::LoadU(kTag, scores + j), factor);
    if (args.softcap > 0.0F) x = hn::Mul(cap, tanh_of(x));
    hn::StoreU(x, kTag, scores + j);
  }
  for (int64_t j = first; j < visible.begin; ++j) scores[j] = -HUGE_VALF;
  for (int64_t j = visible.end; j < last; ++j) scores[j] = -HUGE_VALF;
  for (int64_t j = first; j < last; j += kLanes) {
    highest = hn::Max(highest, hn::LoadU(kTag, scores + j));
  }

  const float old_max = s.row_max[query];
  const float new_max = HWY_MAX(old_max, max_of_lanes(highest));
  const Vec shift = hn::Set(kTag, new_max);
  Vec total = hn::Zero(kTag);
  for (int64_t j = first; j < last; j += kLanes) {
    const Vec p = exp_of(hn::Sub(hn::LoadU(kTag, scores + j), shift));
    hn::StoreU(p, kTag, scores + j);
    total = hn::Add(total, p);
  }
  if (new_max != old_max) {
    const Vec correction = exp_of(hn::Set(kTag, old_max - new_max));
    s.row_sum[query] *= hn::GetLane(correction);
    const int64_t padded = round_up(args.head_dim, kPanelWidth);
    float* sums = s.sums + query * padded;
    for (int64_t d = 0; d < padded; d += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(kTag, sums + d), correction), kTag, sums + d);
    }
    s.row_max[query] = new_max;
  }
  s.row_sum[query] += sum_of_lanes(total);
}

// The columns of V behind the last whole panel, zero-padded to one.
void load_value_edge(const AttentionArgs& args, const AttentionTask& task, const KeyRange& range,
                     int64_t column, float* edge) {
  const auto bytes = static_cast<size_t>(args.head_dim - column) * sizeof(float);
  for (int64_t j = range.begin; j < range.end; ++j) {
    float* to = edge + j * kPanelWidth;
    std::memset(to, 0, static_cast<size_t>(kPanelWidth) * sizeof(float));
    std::memcpy(to, token_of(args, task, args.v, range.tile + j) + column, bytes);
  }
}

// sums += p · V over the keys of the range, for the row tile whose probabilities are packed in s.p.
void add_values(const AttentionArgs& args, const AttentionTask& task, const Scratch& s,
                const KeyRange& range, int64_t first_query, int64_t rows) {
  const int64_t padded = round_up(args.head_dim, kPanelWidth);
  const int64_t whole = args.head_dim / kPanelWidth * kPanelWidth;
  const auto index = static_cast<size_t>(rows - 1);
  float* sums = s.sums + first_query * padded;
  for (int64_t j = range.begin; j < range.end;) {
    const int64_t run = run_length(args, range.tile + j, range.end - j);
    const float* v = token_of(args, task, args.v, range.tile + j);
    for (int64_t d = 0; d < whole; d += kPanelWidth) {
      kMicro<F32Rows>[index]({.c = sums + d,
                              .c_stride = padded,
                              .a = s.p + (j - range.begin) * rows,
                              .b = v + d,
                              .b_step = args.token_stride,
                              .depth = run,
                              .carry = true});
    }
    j += run;
  }
  if (whole < args.head_dim) {
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
  const int64_t padded = round_up(args.head_dim, kPanelWidth);
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
  for (int64_t i = 0; i < queries; ++i) {
    const bool sink = args.sinks != nullptr;
    s.row_max[i] = sink ? args.sinks[task.kv_head * args.group + i % args.group] : -3.0e38F;
    s.row_sum[i] = sink ? 1.0F : 0.0F;
  }
}

void finish_queries(const AttentionArgs& args, const AttentionTask& task, const Scratch& s) {
  const int64_t padded = round_up(args.head_dim, kPanelWidth);
  for (int64_t i = 0; i < task.num_rows * args.group; ++i) {
    float* out = args.out + (task.first_row + i / args.group) * args.out_stride +
                 (task.kv_head * args.group + i % args.group) * args.head_dim;
    const Vec sum = hn::Set(kTag, s.row_sum[i]);
    const float* sums = s.sums + i * padded;
    int64_t d = 0;
    for (; d + kLanes <= args.head_dim; d += kLanes) {
      hn::StoreU(hn::Div(hn::LoadU(kTag, sums + d), sum), kTag, out + d);
    }
    if (d < args.head_dim) {
      store_partial(hn::Div(hn::LoadU(kTag, sums + d), sum), out + d, args.head_dim - d);
    }
  }
}

void attention(const AttentionArgs& args, const AttentionTask& task, float* scratch) {
  const RowTiles tiles = {.rows = task.num_rows * args.group, .row_tile = kRowTile};
  const Scratch s(scratch, args.head_dim, tiles.rows);
  start_queries(args, task, s, tiles);
  const int64_t end = task.first_position + task.num_rows;
  const int64_t begin =
      args.window == 0 ? 0 : HWY_MAX(int64_t{0}, task.first_position + 1 - args.window);
  const int64_t whole = args.head_dim / kPanelWidth * kPanelWidth;
  for (int64_t tile = begin / kKeyTile * kKeyTile; tile < end; tile += kKeyTile) {
    const KeyRange range = {.tile = tile,
                            .begin = HWY_MAX(begin - tile, int64_t{0}),
                            .end = HWY_MIN(end - tile, kKeyTile)};
    load_keys(args, task, range, s.keys);
    score_keys(s, tiles, range, args.head_dim);
    if (whole < args.head_dim) load_value_edge(args, task, range, whole, s.value_edge);
    for (int64_t i = 0; i < tiles.rows; ++i) {
      const int64_t position = task.first_position + i / args.group;
      const int64_t from = args.window == 0 ? 0 : position + 1 - args.window - tile;
      const int64_t first = HWY_MIN(HWY_MAX(range.begin, from), range.end);
      soften(args, s, i, range,
             {.tile = tile,
              .begin = first,
              .end = HWY_MAX(first, HWY_MIN(range.end, position + 1 - tile))});
    }
    for (int64_t t = 0; t < tiles.count(); ++t) {
      pack_rows_of_a(s.p, s.scores + tiles.begin(t) * kKeyTile + range.begin, kKeyTile,
                     tiles.size(t), range.end - range.begin);
      add_values(args, task, s, range, tiles.begin(t), tiles.size(t));
    }
  }
  finish_queries(args, task, s);
}

int64_t attention_scratch(int64_t head_dim, int64_t queries) {
  return Scratch::floats(head_dim, queries);
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
