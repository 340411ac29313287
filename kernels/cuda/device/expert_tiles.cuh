// How blocks of moe_hopper.cu walk tiles of sorted rows and outputs, and what feeds them: a ring of
// stages in shared memory, rows and weights of 64 features each.
#pragma once

#include "kernels/cuda/device/experts.cuh"
#include "kernels/cuda/device/tensor_map.cuh"
#include "kernels/cuda/device/warpgroup.cuh"

namespace mpinfer::kernels::cuda {

constexpr int kConsumers = 2;
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr int kRows = 64 * kConsumers;
constexpr int kStages = 4;
constexpr uint32_t kABytes = kRows * 128;
constexpr uint32_t kBBytes = static_cast<uint32_t>(kExpertTileRows) * 128;
constexpr uint32_t kStageBytes = kABytes + kBBytes;
constexpr uint32_t kOutBytes = kRows * 128;  // a panel of finished rows on its way out
constexpr int kSharedBytes =
    kStages * static_cast<int>(kStageBytes + 32) + kConsumers * static_cast<int>(kOutBytes);
static_assert(kRows == kExpertRowsHopper);

// Rows in boxes of 64, and of kExpertPlaces.
struct RowMaps {
  CUtensorMap many, few;
};
struct Maps {
  RowMaps rows;  // of the second product
  RowMaps out;
};

// Calls f(map, the box's first row) for so many rows and what is left of their last kExpertPlaces.
template <class F>
__device__ inline void for_boxes(const RowMaps& maps, int rows, F f) {
  int row = 0;
  for (; row + 64 <= rows; row += 64) f(maps.many, row);
  for (; row < rows; row += kExpertPlaces) f(maps.few, row);
}

struct Tile {
  int expert;
  int rows;     // of kRows that exist; none of a tile without a partner
  int place;    // of its first row in the sorted choices
  int column;   // tile of outputs
  bool shared;  // the other block of the cluster multiplies rows by the same weights
};

// What this block multiplies. Two blocks take two row tiles together: of one expert, each its rows
// by the same outputs; else the tiles of both in turn, whose weights each block fetches by itself.
template <bool kTwo>
__device__ inline Tile tile_at(const ExpertProduct& a, int index, int column_tiles, int num_tiles,
                               int rank) {
  const int at = index / column_tiles;
  int column = index % column_tiles;
  if constexpr (!kTwo) {
    const ExpertTile tile = a.order.tiles[at];
    return {tile.expert, tile.rows, tile.place, column, false};
  } else {
    const ExpertTile first = a.order.tiles[2 * at];
    const bool partner = 2 * at + 1 < num_tiles;
    const ExpertTile second = partner ? a.order.tiles[2 * at + 1] : first;
    const bool shared = partner && first.expert == second.expert;
    bool is_second = rank != 0;
    if (!shared) {
      is_second = 2 * column + rank >= column_tiles;
      column = (2 * column + rank) % column_tiles;
    }
    const ExpertTile tile = is_second ? second : first;
    return {tile.expert, is_second && !partner ? 0 : tile.rows, tile.place, column, shared};
  }
}

// The tiles of a block, one after the other.
template <bool kTwo>
struct Walk {
  const ExpertProduct& a;
  int column_tiles;
  int num_tiles;  // of rows
  int rank;
  int index;
  int step;
  int end;
  __device__ explicit Walk(const ExpertProduct& product)
      : a(product),
        column_tiles(static_cast<int>((a.out_features + kExpertTileRows - 1) / kExpertTileRows)),
        num_tiles(*a.order.num_tiles),
        rank(kTwo ? static_cast<int>(cluster_rank()) : 0),
        index(static_cast<int>(blockIdx.x) / (kTwo ? 2 : 1)),
        step(static_cast<int>(gridDim.x) / (kTwo ? 2 : 1)),
        end((kTwo ? (num_tiles + 1) / 2 : num_tiles) * column_tiles) {}
  __device__ bool more() const { return index < end; }
  __device__ Tile take() {
    const Tile tile = tile_at<kTwo>(a, index, column_tiles, num_tiles, rank);
    index += step;
    return tile;
  }
};

struct Shared {
  uint32_t stages;
  __device__ uint32_t a(int stage) const {
    return stages + static_cast<uint32_t>(stage) * kStageBytes;
  }
  __device__ uint32_t b(int stage) const { return a(stage) + kABytes; }
  __device__ uint32_t out(int consumer) const {
    return a(kStages) + static_cast<uint32_t>(consumer) * kOutBytes;
  }
  __device__ uint32_t tile(int stage) const {
    return out(kConsumers) + static_cast<uint32_t>(stage) * 16;
  }
  __device__ uint32_t full(int stage) const {
    return tile(kStages) + static_cast<uint32_t>(stage) * 8;
  }
  __device__ uint32_t empty(int stage) const { return full(stage) + kStages * 8; }
};

// The producer hands a tile over with its first stage; an expert of -1: there are no more.
__device__ inline void hand_over(uint32_t to, const Tile& tile) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(tile.expert),
               "r"(tile.rows), "r"(tile.place), "r"(tile.column)
               : "memory");
}
__device__ inline Tile handed_over(uint32_t from) {
  Tile tile{};
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(tile.expert), "=r"(tile.rows), "=r"(tile.place), "=r"(tile.column)
               : "r"(from)
               : "memory");
  return tile;
}

// Boxes of rows of a tile; gathered rows have none.
template <bool kGather>
__device__ inline int boxes_of(const Tile& tile) {
  return kGather ? 0 : (tile.rows + kExpertPlaces - 1) / kExpertPlaces;
}

// The weight tile of this step: whole, or this block's half to both blocks.
template <bool kGather>
__device__ void fetch_weights(const Shared& shared, int stage, const char* weight, const Tile& tile,
                              int rank) {
  if (tile.rows == 0) return barrier_arrive(shared.full(stage));
  barrier_expect(shared.full(stage),
                 kBBytes + static_cast<uint32_t>(boxes_of<kGather>(tile)) * kExpertPlaces * 128);
  if (tile.shared) {
    const uint32_t half = static_cast<uint32_t>(rank) * (kBBytes / 2);
    copy_bulk_to_blocks(shared.b(stage) + half, weight + half, kBBytes / 2, shared.full(stage), 3);
  } else {
    copy_bulk(shared.b(stage), weight, kBBytes, shared.full(stage));
  }
}

__device__ inline const char* weight_of(const ExpertProduct& a, int expert, int column) {
  const int64_t panels = (a.in_features + 63) / 64;
  return static_cast<const char*>(a.weights) + expert * a.stride_bytes + column * panels * kBBytes;
}

// While the choices are being sorted: the weights that this block needs first, if every expert has
// a tile. One thread.
__device__ inline void prefetch_weights(const ExpertProduct& a) {
  if (a.max_choices < 4 * a.num_experts) return;
  const auto column_tiles =
      static_cast<int>((a.out_features + kExpertTileRows - 1) / kExpertTileRows);
  const auto expert = static_cast<int>(blockIdx.x) / column_tiles;
  if (expert >= a.num_experts) return;
  const int64_t panels = (a.in_features + 63) / 64;
  prefetch_bulk(weight_of(a, expert, static_cast<int>(blockIdx.x) % column_tiles),
                static_cast<uint32_t>(min(panels, int64_t{kStages})) * kBBytes);
}

// Rows of the first product, one choice each: 128 threads.
template <class T, bool kTwo>
__device__ void produce_gathered(const ExpertProduct& a, const Shared& shared) {
  constexpr int kPasses = kRows * 8 / 128;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int chunk = thread % 8;
  const int first_row = thread / 8;
  const auto panels = static_cast<int>((a.in_features + 63) / 64);
  if (!kTwo && thread == 0) prefetch_weights(a);
  wait_for_previous();
  Walk<kTwo> walk(a);
  Ring ring{kStages};
  bool more = walk.more();
  Tile next{};
  int next_rows[kPasses];
  const auto find_rows = [&] {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      next_rows[i] = a.order.choices[next.place + max(0, min(first_row + i * 16, next.rows - 1))];
    }
  };
  if (more) {
    next = walk.take();
    find_rows();
  }
  while (more) {
    const Tile tile = next;
    const T* rows[kPasses];
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int64_t from = next_rows[i] / a.top_k;
      rows[i] = static_cast<const T*>(a.a.data) + from * a.a.stride + chunk * 8;
    }
    more = walk.more();
    const char* weight = weight_of(a, tile.expert, tile.column);
    for (int k = 0; k < panels; ++k) {
      barrier_wait(shared.empty(ring.stage), ring.phase ^ 1);
      if (thread == 0) {
        if (k == 0) hand_over(shared.tile(ring.stage), tile);
        fetch_weights<true>(shared, ring.stage, weight + int64_t{k} * kBBytes, tile, walk.rank);
      }
      const bool valid = k * 64 + chunk * 8 < a.in_features;
      const uint32_t to = shared.a(ring.stage) + static_cast<uint32_t>(first_row * 128) +
                          static_cast<uint32_t>((chunk ^ (first_row & 7)) * 16);
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        if (first_row + i * 16 < tile.rows) {
          copy_async(to + static_cast<uint32_t>(i * 16 * 128), valid ? rows[i] + k * 64 : rows[i],
                     valid);
        }
      }
      arrive_with_copies(shared.full(ring.stage));
      ring.advance();
      if (k == 0 && more) {
        next = walk.take();
        find_rows();
      }
    }
  }
  barrier_wait(shared.empty(ring.stage), ring.phase ^ 1);
  if (thread == 0) {
    hand_over(shared.tile(ring.stage), {.expert = -1});
    barrier_arrive(shared.full(ring.stage));
  }
  barrier_arrive(shared.full(ring.stage));
}

// Rows of the second product, which stand together: one thread. The order of the choices is older
// than the first product, so the first weights are on their way before that one is done.
template <bool kTwo>
__device__ void produce(const ExpertProduct& a, const RowMaps& maps, const Shared& shared) {
  const auto panels = static_cast<int>((a.in_features + 63) / 64);
  Walk<kTwo> walk(a);
  Ring ring{kStages};
  int early = 0;
  bool first = true;
  while (walk.more()) {
    const Tile tile = walk.take();
    const char* weight = weight_of(a, tile.expert, tile.column);
    if (first) {
      early = min(kStages, panels);
      hand_over(shared.tile(0), tile);
      for (int k = 0; k < early; ++k) {
        fetch_weights<false>(shared, k, weight + int64_t{k} * kBBytes, tile, walk.rank);
      }
      wait_for_previous();
      first = false;
    }
    for (int k = 0; k < panels; ++k) {
      barrier_wait(shared.empty(ring.stage), ring.phase ^ 1);
      if (--early < 0) {
        if (k == 0) hand_over(shared.tile(ring.stage), tile);
        fetch_weights<false>(shared, ring.stage, weight + int64_t{k} * kBBytes, tile, walk.rank);
      }
      for_boxes(maps, tile.rows, [&](const CUtensorMap& map, int row) {
        copy_box(shared.a(ring.stage) + static_cast<uint32_t>(row) * 128, map, k * 64,
                 tile.place + row, shared.full(ring.stage));
      });
      ring.advance();
    }
  }
  barrier_wait(shared.empty(ring.stage), ring.phase ^ 1);
  hand_over(shared.tile(ring.stage), {.expert = -1});
  barrier_arrive(shared.full(ring.stage));
}

}  // namespace mpinfer::kernels::cuda
