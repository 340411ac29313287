// Grouped products of the experts on sm_90a. Blocks stay and walk tiles of 128 sorted rows by 256
// outputs; a producer warpgroup fetches each weight tile, one run of memory, by one bulk copy, and
// rows, the first product's gathered by cp.async, the second's by boxes, through a ring of four
// stages (a stage is full when its copies have landed: no thread waits for them); two consumer
// warpgroups of 64 rows multiply by wgmma and finish a tile (gate, bias) in shared memory, from
// where 64 rows go out by themselves while the next tile is multiplied. Where experts have many
// rows two blocks are a cluster: row tiles of one expert go through its weights
// together, each block fetching half of a weight tile for both, so that a third less comes from the
// L2 cache; a stage is empty when both have read it. A row's bits are the same in both forms. The
// same arguments and results as expert_product, which other devices use.
#include "kernels/cuda/device/experts.cuh"
#include "kernels/cuda/device/tensor_map.cuh"
#include "kernels/cuda/device/warpgroup.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kConsumers = 2;
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr int kRows = 64 * kConsumers;
constexpr int kStages = 4;
constexpr uint32_t kABytes = kRows * 128;
constexpr uint32_t kBBytes = static_cast<uint32_t>(kExpertTileRows) * 128;
constexpr uint32_t kStageBytes = kABytes + kBBytes;
constexpr int kBoxRows = 32;  // of the second product's rows
// Finished rows of a consumer on their way out: two panels of 64 rows and 64 columns.
constexpr uint32_t kOutPanel = 64 * 128;
constexpr int kOutColumns = 128;
constexpr uint32_t kOutBytes = 2 * kOutPanel;
constexpr int kSharedBytes =
    kStages * static_cast<int>(kStageBytes + 16) + kConsumers * static_cast<int>(kOutBytes);
static_assert(kRows == kExpertRowsHopper);

struct Maps {
  CUtensorMap rows;  // of the second product
  CUtensorMap out;
};

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

// Stage and phase of a ring that is walked without end.
struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

struct Shared {
  uint32_t stages;
  __device__ uint32_t a(int stage) const {
    return stages + static_cast<uint32_t>(stage) * kStageBytes;
  }
  __device__ uint32_t b(int stage) const { return a(stage) + kABytes; }
  __device__ uint32_t out(int consumer) const {
    return stages + kStages * kStageBytes + static_cast<uint32_t>(consumer) * kOutBytes;
  }
  __device__ uint32_t full(int stage) const {
    return out(kConsumers) + static_cast<uint32_t>(stage) * 8;
  }
  __device__ uint32_t empty(int stage) const { return full(stage) + kStages * 8; }
};

// Boxes of rows of a tile; gathered rows have none.
template <bool kGather>
__device__ inline int boxes_of(const Tile& tile) {
  return kGather ? 0 : (tile.rows + kBoxRows - 1) / kBoxRows;
}

// The weight tile of this step: whole, or this block's half to both blocks.
template <bool kGather>
__device__ void fetch_weights(const Shared& shared, int stage, const char* weight, const Tile& tile,
                              int rank) {
  if (tile.rows == 0) return barrier_arrive(shared.full(stage));
  barrier_expect(shared.full(stage),
                 kBBytes + static_cast<uint32_t>(boxes_of<kGather>(tile)) * kBoxRows * 128);
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
  if (!walk.more()) return;
  Ring ring;
  Tile next = walk.take();
  int next_rows[kPasses];
  const auto find_rows = [&] {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      next_rows[i] = a.order.choices[next.place + max(0, min(first_row + i * 16, next.rows - 1))];
    }
  };
  find_rows();
  for (bool more = true; more;) {
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
}

// Rows of the second product, which stand together: one thread. The order of the choices is older
// than the first product, so the first weights are on their way before that one is done.
template <bool kTwo>
__device__ void produce(const ExpertProduct& a, const CUtensorMap& map, const Shared& shared) {
  const auto panels = static_cast<int>((a.in_features + 63) / 64);
  Walk<kTwo> walk(a);
  Ring ring;
  int early = 0;
  bool first = true;
  while (walk.more()) {
    const Tile tile = walk.take();
    const char* weight = weight_of(a, tile.expert, tile.column);
    if (first) {
      early = min(kStages, panels);
      for (int k = 0; k < early; ++k) {
        fetch_weights<false>(shared, k, weight + int64_t{k} * kBBytes, tile, walk.rank);
      }
      wait_for_previous();
      first = false;
    }
    for (int k = 0; k < panels; ++k) {
      barrier_wait(shared.empty(ring.stage), ring.phase ^ 1);
      if (--early < 0) {
        fetch_weights<false>(shared, ring.stage, weight + int64_t{k} * kBBytes, tile, walk.rank);
      }
      for (int box = 0; box < boxes_of<false>(tile); ++box) {
        copy_box(shared.a(ring.stage) + static_cast<uint32_t>(box * kBoxRows * 128), map, k * 64,
                 tile.place + box * kBoxRows, shared.full(ring.stage));
      }
      ring.advance();
    }
  }
}

// Columns [kFirst, kFirst + 128) of what a warp's 16 rows give into panels at `to`. The gate is
// known when this is compiled: a choice a value keeps the values from being computed side by side.
template <class T, ExpertGate kGate, int kFirst>
__device__ void finish(const ExpertProduct& a, const Tile& tile, const float (&d)[32][4],
                       uint32_t to, int warp, int lane) {
  const int quad = lane % 4;
  const float* bias = a.bias == nullptr
                          ? nullptr
                          : a.bias + int64_t{tile.expert} * a.out_features + tile.column * 256;
  const int columns =
      static_cast<int>(min(a.out_features - int64_t{tile.column} * 256, int64_t{256}));
  const auto biased = [&](int n, int e) {
    const int column = n * 8 + quad * 2 + e % 2;
    return bias == nullptr || column >= columns ? d[n][e] : d[n][e] + bias[column];
  };
  const auto place = [&](int h, int row, int chunk) {  // of 16 bytes
    return to + static_cast<uint32_t>(chunk / 8) * kOutPanel +
           static_cast<uint32_t>((warp * 16 + h * 8 + row) * 128 + ((chunk % 8) ^ row) * 16);
  };
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if constexpr (kGate != ExpertGate::kNone) {
#pragma unroll
      for (int n = 0; n < 32; ++n) {
        const float value =
            gate_value(kGate, biased(n, 2 * h), biased(n, 2 * h + 1), a.alpha, a.limit);
        store_shared(place(h, lane / 4, n / 2) + static_cast<uint32_t>(n % 2 * 8 + quad * 2),
                     from_float<T>(value));
      }
    } else {
#pragma unroll
      for (int n = 0; n < kOutColumns / 8; n += 4) {
        uint32_t words[4];
#pragma unroll
        for (int g = 0; g < 4; ++g) {
          const int from = kFirst / 8 + n + g;
          words[g] = pack<T>(biased(from, 2 * h), biased(from, 2 * h + 1));
        }
        store_matrices(place(h, lane % 8, n + lane / 8), words);
      }
    }
  }
}

// Finished rows of a consumer, `columns` of 128 that exist: 64 rows as boxes, fewer by this
// warpgroup itself.
template <class T>
__device__ void send(const ExpertProduct& a, const CUtensorMap& map, uint32_t from, int64_t place,
                     int rows, int64_t column, int columns) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  if (rows == 64) {
    if (thread == 0) {
      store_box(map, static_cast<int>(column), static_cast<int>(place), from);
      if (columns > 64) {
        store_box(map, static_cast<int>(column) + 64, static_cast<int>(place), from + kOutPanel);
      }
      commit_stores();
    }
    return;
  }
  for (int i = thread; i < rows * 16; i += 128) {
    const int row = i / 16;
    const int chunk = i % 16;
    if (chunk * 8 >= columns) continue;
    const uint4 piece =
        load_shared(from + static_cast<uint32_t>(chunk / 8) * kOutPanel +
                    static_cast<uint32_t>(row * 128 + ((chunk % 8) ^ (row & 7)) * 16));
    *reinterpret_cast<uint4*>(static_cast<T*>(a.out.data) + (place + row) * a.out.stride + column +
                              chunk * 8) = piece;
  }
}

// A stage has been read by this warp: lane l tells block l of the cluster.
template <bool kTwo>
__device__ inline void release(uint32_t barrier, int lane) {
  if constexpr (kTwo) {
    if (lane < 2) barrier_arrive_at(barrier, static_cast<uint32_t>(lane));
  } else {
    if (lane == 0) barrier_arrive(barrier);
  }
}

template <class T, ExpertGate kGate, bool kTwo>
__device__ void consume(const ExpertProduct& a, const CUtensorMap& map, const Shared& shared) {
  constexpr bool kGated = kGate != ExpertGate::kNone;
  constexpr int kColumns = kGated ? 128 : 256;  // of a tile in out
  const int group = static_cast<int>(threadIdx.x) / 128 - 1;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto panels = static_cast<int>((a.in_features + 63) / 64);
  Walk<kTwo> walk(a);
  Ring ring;
  while (walk.more()) {
    const Tile tile = walk.take();  // the producer has brought it near
    if (group * 64 >= tile.rows) {
      for (int k = 0; k < panels; ++k) {
        barrier_wait(shared.full(ring.stage), ring.phase);
        release<kTwo>(shared.empty(ring.stage), lane);
        ring.advance();
      }
      continue;
    }
    float d[32][4];
    int before = 0;  // the stage of the step before
    for (int k = 0; k < panels; ++k) {
      barrier_wait(shared.full(ring.stage), ring.phase);
      fence_shared_writes();
      const uint32_t a_at = shared.a(ring.stage) + static_cast<uint32_t>(group) * 8192;
      const uint32_t b_at = shared.b(ring.stage);
      warpgroup_arrive();
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        warpgroup_multiply<T>(d, operand(a_at + i * 32, 16, 1024), operand(b_at + i * 32, 16, 1024),
                              k > 0 || i > 0);
      }
      warpgroup_commit();
      warpgroup_wait<1>();
      if (k > 0) release<kTwo>(shared.empty(before), lane);
      before = ring.stage;
      ring.advance();
    }
    warpgroup_wait<0>();
    release<kTwo>(shared.empty(before), lane);
    const int rows = min(64, tile.rows - group * 64);
    const int64_t column = int64_t{tile.column} * kColumns;
    const auto left =
        static_cast<int>(min(a.out_features / (kGated ? 2 : 1) - column, int64_t{kColumns}));
    const auto write = [&](auto first) {
      constexpr int kFirst = first;
      if (left <= kFirst) return;
      if (threadIdx.x % 128 == 0) wait_stores_read();
      named_wait(1 + group, 128);
      if (warp * 16 < rows) finish<T, kGate, kFirst>(a, tile, d, shared.out(group), warp, lane);
      fence_shared_writes();
      named_wait(1 + group, 128);
      send<T>(a, map, shared.out(group), tile.place + group * 64, rows, column + kFirst,
              min(left - kFirst, kOutColumns));
    };
    write(std::integral_constant<int, 0>{});
    if constexpr (!kGated) write(std::integral_constant<int, kOutColumns>{});
  }
  if (threadIdx.x % 128 == 0) wait_stores();
}

template <class T, ExpertGate kGate, bool kTwo>
__global__ void __launch_bounds__(kThreads, 1)
    expert_kernel(const __grid_constant__ ExpertProduct a, const __grid_constant__ Maps maps) {
  constexpr bool kGather = kGate != ExpertGate::kNone;
  extern __shared__ __align__(1024) char memory[];
  const Shared shared{shared_address(memory)};
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(shared.full(s), kGather ? 128 + 1 : 1);
      barrier_init(shared.empty(s), (kTwo ? 2 : 1) * 4 * kConsumers);  // a lane of each warp
    }
    fence_barrier_init();
  }
  kTwo ? cluster_sync() : __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<56>();
    if constexpr (kGather) {
      produce_gathered<T, kTwo>(a, shared);
    } else if (threadIdx.x == 0) {
      produce<kTwo>(a, maps.rows, shared);
    }
  } else {
    take_registers<224>();
    wait_for_previous();
    let_next_start();  // no block of it fits beside one of these: it takes the place of those done
    consume<T, kGate, kTwo>(a, maps.out, shared);
  }
  if constexpr (kTwo) cluster_sync();  // until the other block writes here no more
}

template <class T, ExpertGate kGate, bool kTwo>
void launch_form(cudaStream_t stream, const ExpertProduct& args, const Maps& maps,
                 int num_processors) {
  constexpr auto kKernel = expert_kernel<T, kGate, kTwo>;
  constexpr int kCluster = kTwo ? 2 : 1;
  static const cudaError_t raised =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  static_cast<void>(raised);
  launch_clusters(kCluster, kKernel, static_cast<unsigned>(num_processors / kCluster * kCluster),
                  kThreads, kSharedBytes, stream, args, maps);
}

template <class T, ExpertGate kGate>
void launch_hopper(cudaStream_t stream, const ExpertProduct& args, const Maps& maps,
                   int num_processors) {
  // Experts of many rows, most of whose tiles have a partner.
  constexpr int64_t kManyRows = 256;
  return args.max_choices >= kManyRows * args.num_experts
             ? launch_form<T, kGate, true>(stream, args, maps, num_processors)
             : launch_form<T, kGate, false>(stream, args, maps, num_processors);
}

template <class T>
void choose_gate(cudaStream_t stream, const ExpertProduct& args, const Maps& maps,
                 int num_processors) {
  switch (args.gate) {
    case ExpertGate::kNone:
      return launch_hopper<T, ExpertGate::kNone>(stream, args, maps, num_processors);
    case ExpertGate::kSilu:
      return launch_hopper<T, ExpertGate::kSilu>(stream, args, maps, num_processors);
    case ExpertGate::kGelu:
      return launch_hopper<T, ExpertGate::kGelu>(stream, args, maps, num_processors);
    case ExpertGate::kGeluTanh:
      return launch_hopper<T, ExpertGate::kGeluTanh>(stream, args, maps, num_processors);
    case ExpertGate::kClampedSwiglu:
      return launch_hopper<T, ExpertGate::kClampedSwiglu>(stream, args, maps, num_processors);
  }
}

bool map_of(CUtensorMap& map, const View& view, int64_t columns, int64_t rows, int box_rows) {
  return make_map<2>(
      map, view.data, {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)},
      {static_cast<cuuint64_t>(view.stride * 2)}, {64, static_cast<cuuint32_t>(box_rows)});
}

}  // namespace

bool expert_product_hopper(cudaStream_t stream, const ExpertProduct& args, int num_processors) {
  const bool gated = args.gate != ExpertGate::kNone;
  Maps maps{};
  if (!map_of(maps.out, args.out, gated ? args.out_features / 2 : args.out_features,
              args.max_choices, 64) ||
      (!gated && !map_of(maps.rows, args.a, args.in_features, args.max_choices, kBoxRows))) {
    return false;
  }
  args.a.dtype == ElementType::kBF16 ? choose_gate<bf16>(stream, args, maps, num_processors)
                                     : choose_gate<__half>(stream, args, maps, num_processors);
  return true;
}

}  // namespace mpinfer::kernels::cuda
