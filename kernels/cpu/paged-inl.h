// Attention's view of the paged cache: the scratch memory of a task, the keys of a tile as vectors,
// prefetches. Included once per SIMD target.
#if defined(MPINFER_KERNELS_CPU_PAGED_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef MPINFER_KERNELS_CPU_PAGED_INL_H
#undef MPINFER_KERNELS_CPU_PAGED_INL_H
#else
#define MPINFER_KERNELS_CPU_PAGED_INL_H
#endif

#include "kernels/cpu.h"
#include "kernels/cpu/micro-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mpinfer::kernels::cpu::HWY_NAMESPACE {

inline constexpr int64_t kKeyVectors = kKeyTile / kLanes;
// The register tile of scores: queries times vectors of keys.
inline constexpr int64_t kScoreRows = 6;
inline constexpr int64_t kScoreVectors = kLanes >= 16 ? 4 : 2;

constexpr int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// Pieces of the scratch memory of one task; queries are (row, head of the group), row by row.
struct Scratch {
  float* q = nullptr;       // row tiles, each [head_dim][queries of the tile]
  float* keys = nullptr;    // [kKeyPanels][head_dim][kPanelWidth]
  float* scores = nullptr;  // [queries, kKeyTile]
  float* p = nullptr;       // one row tile: [keys of the tile][queries of the row tile]
  float* sums = nullptr;    // [queries, padded value_dim]
  float* value_edge =
      nullptr;  // [kKeyTile, kPanelWidth]: last columns of V where head_dim is no multiple
  float* row_max = nullptr;     // [queries]
  float* row_sum = nullptr;     // [queries]
  float* correction = nullptr;  // [queries]: a tile's maximum, then what old sums are scaled by

  static int64_t floats(int64_t head_dim, int64_t queries) {
    return queries * (head_dim + kKeyTile + round_up(head_dim, kPanelWidth) + 3) +
           kKeyTile * (head_dim + kRowTile + kPanelWidth) + 9 * 16;
  }
  Scratch(float* at, int64_t head_dim, int64_t queries) {
    const auto take = [&at](int64_t n) {
      float* piece = at;
      at += round_up(n, 16);
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
    correction = take(queries);
  }
};

// Keys [begin, end) of the tile that starts at position tile: offsets within the tile.
struct KeyRange {
  int64_t tile = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

inline const float* piece_of(const AttentionArgs& args, const AttentionTask& task,
                             const float* cache, int64_t position) {
  const int64_t block = task.block_table[position / args.block_size];
  return cache + block * args.block_stride + task.kv_head * args.head_stride;
}

inline const float* value_of(const AttentionArgs& args, const AttentionTask& task,
                             int64_t position) {
  return piece_of(args, task, args.v, position) + position % args.block_size * args.head_dim;
}

// Keys one after the other in a block, from position on: at most limit.
inline int64_t run_length(const AttentionArgs& args, int64_t position, int64_t limit) {
  return HWY_MIN(limit, args.block_size - position % args.block_size);
}

// The keys of a tile by vectors: component d of the keys of vector i is at[i] + d * step.
struct KeyVectors {
  const float* at[kKeyVectors] = {};
  int64_t step = 0;
};

// Copies the keys of a range into s.keys: of blocks that vectors do not divide, and of latent rows.
inline void gather_keys(const AttentionArgs& args, const AttentionTask& task, const KeyRange& range,
                        float* keys) {
  for (int64_t j = range.begin; j < range.end;) {
    const int64_t position = range.tile + j;
    const int64_t run = HWY_MIN(run_length(args, position, range.end - j), kLanes - j % kLanes);
    float* to = keys + j / kLanes * args.head_dim * kLanes + j % kLanes;
    if (args.latent) {
      const float* row = value_of(args, task, position);
      for (int64_t i = 0; i < run; ++i, row += args.head_dim) {
        for (int64_t d = 0; d < args.head_dim; ++d) to[d * kLanes + i] = row[d];
      }
      j += run;
      continue;
    }
    const float* from = piece_of(args, task, args.k, position) + position % args.block_size;
    for (int64_t d = 0; d < args.head_dim; ++d) {
      std::memcpy(to + d * kLanes, from + d * args.block_size,
                  static_cast<size_t>(run) * sizeof(float));
    }
    j += run;
  }
}

inline KeyVectors load_keys(const AttentionArgs& args, const AttentionTask& task,
                            const KeyRange& range, float* scratch) {
  KeyVectors keys;
  const bool direct = !args.latent && args.block_size % kLanes == 0;
  keys.step = direct ? args.block_size : kLanes;
  if (!direct) gather_keys(args, task, range, scratch);
  const int64_t first = range.begin / kLanes;
  const int64_t last = (range.end - 1) / kLanes;
  for (int64_t i = 0; i < kKeyVectors; ++i) {
    const int64_t used = HWY_MIN(HWY_MAX(i, first), last);  // others repeat one: never read
    const int64_t position = range.tile + used * kLanes;
    keys.at[i] = direct ? piece_of(args, task, args.k, position) + position % args.block_size
                        : scratch + used * args.head_dim * kLanes;
  }
  return keys;
}

// Brings keys or values of a range near, a cache line of 16 floats at a time.
inline void fetch_keys(const AttentionArgs& args, const AttentionTask& task,
                       const KeyRange& range) {
  if (args.latent) return;  // values of the same rows, which are fetched
  for (int64_t j = range.begin; j < range.end;) {
    const int64_t run = run_length(args, range.tile + j, range.end - j);
    const float* from = piece_of(args, task, args.k, range.tile + j);
    from += (range.tile + j) % args.block_size;
    for (int64_t d = 0; d < args.head_dim; ++d) {
      for (int64_t i = 0; i < run; i += 16) {
        __builtin_prefetch(from + d * args.block_size + i, 0, 2);
      }
    }
    j += run;
  }
}

inline void fetch_values(const AttentionArgs& args, const AttentionTask& task,
                         const KeyRange& range) {
  for (int64_t j = range.begin; j < range.end;) {
    const int64_t run = run_length(args, range.tile + j, range.end - j);
    const float* from = value_of(args, task, range.tile + j);
    for (int64_t i = 0; i < run * args.head_dim; i += 16) __builtin_prefetch(from + i, 0, 2);
    j += run;
  }
}

}  // namespace mpinfer::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
