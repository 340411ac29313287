// Grouped products of the experts on sm_90a. Blocks stay and walk tiles of 128 sorted rows by 256
// outputs; a producer warpgroup gathers rows by cp.async and fetches each weight tile, one run of
// memory, by one bulk copy, through a ring of four stages (a stage is full when its copies have
// landed: no thread waits for them); two consumer warpgroups of 64 rows multiply by wgmma and
// finish a tile (gate, bias, scatter to choices) while the producer is already on the next. Where
// experts have many rows two blocks are a cluster: row tiles of one expert go through its weights
// together, each block fetching half of a weight tile for both, so that a third less comes from the
// L2 cache; a stage is empty when both have read it. A row's bits are the same in both forms. The
// same arguments and results as expert_product, which other devices use.
#include "kernels/cuda/device/experts.cuh"
#include "kernels/cuda/device/handover.cuh"
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
constexpr int kSharedBytes = kStages * static_cast<int>(kStageBytes) + 1024 + 256;
static_assert(kRows == kExpertRowsHopper);

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
  __device__ uint32_t full(int stage) const {
    return stages + kStages * kStageBytes + static_cast<uint32_t>(stage) * 8;
  }
  __device__ uint32_t empty(int stage) const { return full(stage) + kStages * 8; }
};

// The weight tile of this step: whole, or this block's half to both blocks.
__device__ inline void fetch_weights(const Shared& shared, int stage, const char* weight,
                                     const Tile& tile, int rank) {
  if (tile.rows == 0) return barrier_arrive(shared.full(stage));
  barrier_expect(shared.full(stage), kBBytes);
  if (tile.shared) {
    const uint32_t half = static_cast<uint32_t>(rank) * (kBBytes / 2);
    copy_bulk_to_blocks(shared.b(stage) + half, weight + half, kBBytes / 2, shared.full(stage), 3);
  } else {
    copy_bulk(shared.b(stage), weight, kBBytes, shared.full(stage));
  }
}

template <class T, bool kGather, bool kTwo>
__device__ void produce(const ExpertProduct& a, const Shared& shared) {
  constexpr int kPasses = kRows * 8 / 128;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int chunk = thread % 8;
  const int first_row = thread / 8;
  const auto panels = static_cast<int>((a.in_features + 63) / 64);
  Walk<kTwo> walk(a);
  if (!walk.more()) return;
  Ring ring;
  Tile next = walk.take();
  int next_rows[kPasses];
  const auto find_rows = [&] {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int place = next.place + max(0, min(first_row + i * 16, next.rows - 1));
      next_rows[i] = kGather ? a.order.choices[place] : place;
    }
  };
  find_rows();
  for (bool more = true; more;) {
    const Tile tile = next;
    const T* rows[kPasses];
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int64_t from = kGather ? next_rows[i] / a.top_k : next_rows[i];
      rows[i] = static_cast<const T*>(a.a.data) + from * a.a.stride + chunk * 8;
    }
    more = walk.more();
    const char* weight = static_cast<const char*>(a.weights) + tile.expert * a.stride_bytes +
                         int64_t{tile.column} * panels * kBBytes;
    for (int k = 0; k < panels; ++k) {
      barrier_wait(shared.empty(ring.stage), ring.phase ^ 1);
      if (thread == 0) {
        fetch_weights(shared, ring.stage, weight + int64_t{k} * kBBytes, tile, walk.rank);
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

// Row h (0, 1) of this thread in out; null where the row does not exist. The gate is known when
// this is compiled: a choice a value keeps the values from being computed side by side.
template <class T, ExpertGate kGate>
__device__ void finish(const ExpertProduct& a, const Tile& tile, const float (&d)[32][4], int h,
                       T* row, int lane) {
  const int quad = lane % 4;
  const float* bias = a.bias == nullptr
                          ? nullptr
                          : a.bias + int64_t{tile.expert} * a.out_features + tile.column * 256;
  const int columns =
      static_cast<int>(min(a.out_features - int64_t{tile.column} * 256, int64_t{256}));
  const auto biased = [&](int n, int i) {
    const int column = n * 8 + quad * 2 + i;
    const float x = d[n][2 * h + i];
    return bias == nullptr || column >= columns ? x : x + bias[column];
  };
  if constexpr (kGate != ExpertGate::kNone) {
    // Four groups of eight columns at a time: four gated values each, eight bytes a lane.
#pragma unroll
    for (int n = 0; n < 32; n += 4) {
      float values[4];
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        values[g] = gate_value(kGate, biased(n + g, 0), biased(n + g, 1), a.alpha, a.limit);
      }
      uint32_t words[4];
#pragma unroll
      for (int g = 0; g < 4; ++g) words[g] = pack<T>(values[g], 0.0F);
      transpose_words(words, lane);
      const int column = (n + quad) * 4;
      if (row != nullptr && column < columns / 2) {
        const uint2 packed = make_uint2((words[0] & 0xffffU) | words[1] << 16,
                                        (words[2] & 0xffffU) | words[3] << 16);
        *reinterpret_cast<uint2*>(row + tile.column * 128 + column) = packed;
      }
    }
  } else {
#pragma unroll
    for (int n = 0; n < 32; n += 4) {
      uint32_t words[4];
#pragma unroll
      for (int g = 0; g < 4; ++g) words[g] = pack<T>(biased(n + g, 0), biased(n + g, 1));
      transpose_words(words, lane);
      const int column = (n + quad) * 8;
      if (row != nullptr && column < columns) {
        *reinterpret_cast<uint4*>(row + tile.column * 256 + column) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
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
__device__ void consume(const ExpertProduct& a, const Shared& shared) {
  constexpr bool kGated = kGate != ExpertGate::kNone;
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
    const int row = group * 64 + warp * 16 + lane / 4;
    int32_t to[2];  // places of rows row, row + 8 in out, read beside the last product
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int place = tile.place + min(row + h * 8, tile.rows - 1);
      to[h] = kGated ? place : a.order.choices[place];
    }
    warpgroup_wait<0>();
    release<kTwo>(shared.empty(before), lane);
    if (group * 64 + warp * 16 >= tile.rows) continue;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      T* out = row + h * 8 < tile.rows ? static_cast<T*>(a.out.data) + int64_t{to[h]} * a.out.stride
                                       : nullptr;
      finish<T, kGate>(a, tile, d, h, out, lane);
    }
  }
}

template <class T, ExpertGate kGate, bool kTwo>
__global__ void __launch_bounds__(kThreads, 1) expert_kernel(ExpertProduct a) {
  extern __shared__ char memory[];
  const Shared shared{(shared_address(memory) + 1023U) & ~1023U};
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(shared.full(s), 128 + 1);
      barrier_init(shared.empty(s), (kTwo ? 2 : 1) * 4 * kConsumers);  // a lane of each warp
    }
    fence_barrier_init();
  }
  kTwo ? cluster_sync() : __syncthreads();
  wait_for_previous();
  if (threadIdx.x < 128) {
    give_registers<56>();
    produce<T, kGate != ExpertGate::kNone, kTwo>(a, shared);
  } else {
    take_registers<224>();
    consume<T, kGate, kTwo>(a, shared);
  }
  if constexpr (kTwo) cluster_sync();  // until the other block writes here no more
  let_next_start();
}

template <class T, ExpertGate kGate, bool kTwo>
void launch_form(cudaStream_t stream, const ExpertProduct& args, int num_processors) {
  constexpr auto kKernel = expert_kernel<T, kGate, kTwo>;
  constexpr int kCluster = kTwo ? 2 : 1;
  static const cudaError_t raised =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  static_cast<void>(raised);
  launch_clusters(kCluster, kKernel, static_cast<unsigned>(num_processors / kCluster * kCluster),
                  kThreads, kSharedBytes, stream, args);
}

template <class T, ExpertGate kGate>
void launch_hopper(cudaStream_t stream, const ExpertProduct& args, int num_processors) {
  // Experts of many rows, most of whose tiles have a partner.
  constexpr int64_t kManyRows = 256;
  return args.max_choices >= kManyRows * args.num_experts
             ? launch_form<T, kGate, true>(stream, args, num_processors)
             : launch_form<T, kGate, false>(stream, args, num_processors);
}

template <class T>
void choose_gate(cudaStream_t stream, const ExpertProduct& args, int num_processors) {
  switch (args.gate) {
    case ExpertGate::kNone:
      return launch_hopper<T, ExpertGate::kNone>(stream, args, num_processors);
    case ExpertGate::kSilu:
      return launch_hopper<T, ExpertGate::kSilu>(stream, args, num_processors);
    case ExpertGate::kGelu:
      return launch_hopper<T, ExpertGate::kGelu>(stream, args, num_processors);
    case ExpertGate::kGeluTanh:
      return launch_hopper<T, ExpertGate::kGeluTanh>(stream, args, num_processors);
    case ExpertGate::kClampedSwiglu:
      return launch_hopper<T, ExpertGate::kClampedSwiglu>(stream, args, num_processors);
  }
}

}  // namespace

void expert_product_hopper(cudaStream_t stream, const ExpertProduct& args, int num_processors) {
  if (args.a.dtype == ElementType::kBF16) return choose_gate<bf16>(stream, args, num_processors);
  choose_gate<__half>(stream, args, num_processors);
}

}  // namespace mpinfer::kernels::cuda
