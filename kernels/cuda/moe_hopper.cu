// Grouped products of the experts on sm_90a. Blocks stay and walk tiles of 128 sorted rows by 256
// outputs; a producer warpgroup gathers rows by cp.async and fetches each weight tile, one run of
// memory, by one bulk copy, through a ring of four stages (a stage is full when its copies have
// landed: no thread waits for them); two consumer warpgroups of 64 rows
// multiply by wgmma and finish a tile (gate, bias, scatter to choices) while the producer is
// already on the next. The same arguments and results as expert_product, which other devices use.
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
  int rows;    // of kRows that exist
  int place;   // of its first row in the sorted choices
  int column;  // tile of outputs
};

__device__ inline Tile tile_at(const ExpertProduct& a, int index, int column_tiles) {
  const int2 tile = a.order.tiles[index / column_tiles];
  const int begin = a.order.offsets[tile.x] + tile.y;
  return {tile.x, min(kRows, a.order.offsets[tile.x + 1] - begin), begin, index % column_tiles};
}

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

template <class T, bool kGather>
__device__ void produce(const ExpertProduct& a, const Shared& shared, int tiles, int column_tiles) {
  constexpr int kPasses = kRows * 8 / 128;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int chunk = thread % 8;
  const int first_row = thread / 8;
  const auto panels = static_cast<int>((a.in_features + 63) / 64);
  Ring ring;
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const Tile tile = tile_at(a, t, column_tiles);
    const T* rows[kPasses];
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int row = first_row + i * 16;
      const int place = tile.place + min(row, tile.rows - 1);
      const int64_t from = kGather ? a.order.choices[place] / a.top_k : place;
      rows[i] = static_cast<const T*>(a.a.data) + from * a.a.stride + chunk * 8;
    }
    const char* weight = static_cast<const char*>(a.weights) + tile.expert * a.stride_bytes +
                         int64_t{tile.column} * panels * kBBytes;
    for (int k = 0; k < panels; ++k) {
      barrier_wait(shared.empty(ring.stage), ring.phase ^ 1);
      if (thread == 0) {
        barrier_expect(shared.full(ring.stage), kBBytes);
        copy_bulk(shared.b(ring.stage), weight + int64_t{k} * kBBytes, kBBytes,
                  shared.full(ring.stage));
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

template <class T, ExpertGate kGate>
__device__ void finish_rows(const ExpertProduct& a, const Tile& tile, const float (&d)[32][4],
                            int group, int warp, int lane) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int r = group * 64 + warp * 16 + lane / 4 + h * 8;
    T* row = nullptr;
    if (r < tile.rows) {
      const bool gated = kGate != ExpertGate::kNone;
      const int64_t to = gated ? tile.place + r : a.order.choices[tile.place + r];
      row = static_cast<T*>(a.out.data) + to * a.out.stride;
    }
    finish<T, kGate>(a, tile, d, h, row, lane);
  }
}

template <class T, ExpertGate kGate>
__device__ void consume(const ExpertProduct& a, const Shared& shared, int tiles, int column_tiles) {
  const int group = static_cast<int>(threadIdx.x) / 128 - 1;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto panels = static_cast<int>((a.in_features + 63) / 64);
  Ring ring;
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    const Tile tile = tile_at(a, t, column_tiles);
    if (group * 64 >= tile.rows) {
      for (int k = 0; k < panels; ++k) {
        barrier_wait(shared.full(ring.stage), ring.phase);
        if (lane == 0) barrier_arrive(shared.empty(ring.stage));
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
      if (k > 0 && lane == 0) barrier_arrive(shared.empty(before));
      before = ring.stage;
      ring.advance();
    }
    warpgroup_wait<0>();
    if (lane == 0) barrier_arrive(shared.empty(before));
    if (group * 64 + warp * 16 >= tile.rows) continue;
    finish_rows<T, kGate>(a, tile, d, group, warp, lane);
  }
}

template <class T, ExpertGate kGate>
__global__ void __launch_bounds__(kThreads, 1) expert_kernel(ExpertProduct a) {
  extern __shared__ char memory[];
  const Shared shared{(shared_address(memory) + 1023U) & ~1023U};
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(shared.full(s), 128 + 1);
      barrier_init(shared.empty(s), 4 * kConsumers);  // a lane of each warp
    }
    fence_barrier_init();
  }
  __syncthreads();
  wait_for_previous();
  const auto column_tiles =
      static_cast<int>((a.out_features + kExpertTileRows - 1) / kExpertTileRows);
  const int tiles = *a.order.num_tiles * column_tiles;
  if (threadIdx.x < 128) {
    give_registers<56>();
    produce<T, kGate != ExpertGate::kNone>(a, shared, tiles, column_tiles);
  } else {
    take_registers<224>();
    consume<T, kGate>(a, shared, tiles, column_tiles);
  }
  let_next_start();
}

template <class T, ExpertGate kGate>
void launch_hopper(cudaStream_t stream, const ExpertProduct& args, int num_processors) {
  static const cudaError_t raised = cudaFuncSetAttribute(
      expert_kernel<T, kGate>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  static_cast<void>(raised);
  launch(expert_kernel<T, kGate>, static_cast<unsigned>(num_processors), kThreads, kSharedBytes,
         stream, args);
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
