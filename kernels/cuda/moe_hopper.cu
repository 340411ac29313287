// Grouped products of the experts on sm_90a. Blocks stay and walk tiles of up to 128 sorted rows by
// 256 outputs; a producer warpgroup fetches each weight tile, one run of memory, by one bulk copy,
// and rows, the first product's gathered by cp.async, the second's by boxes, through a ring of four
// stages (a stage is full when its copies have landed: no thread waits for them). Each of two
// consumer warpgroups multiplies 128 outputs by all rows with wgmma, weights as its left operand:
// few rows cost no more than they are, in sixteens. A finished tile (gate, bias) is turned in
// shared memory and leaves by itself, in boxes, while the next one is multiplied. Where experts
// have many rows two blocks are a cluster: row tiles of one expert go through its weights together,
// each block fetching half of a weight tile for both, so that a third less comes from the L2 cache;
// a stage is empty when both have read it. A row's bits are the same in both forms and among any
// rows. The same arguments and results as expert_product, which other devices use.

#include "kernels/cuda/device/expert_tiles.cuh"

namespace mpinfer::kernels::cuda {
namespace {

// What a warp's 16 outputs of slab m (64 of the warpgroup's 128) give for N rows, turned, into a
// panel of rows at `to`. The gate is known when this is compiled: a choice a value keeps the values
// from being computed side by side.
template <class T, ExpertGate kGate, int N>
__device__ void finish(const ExpertProduct& a, const float (&d)[N / 8][4], const float* bias, int m,
                       uint32_t to, int warp, int lane) {
  const int r = lane / 4;
  const float add[2] = {bias == nullptr ? 0.0F : bias[r], bias == nullptr ? 0.0F : bias[r + 8]};
  const auto place = [&](int row, int chunk) {  // of 16 bytes
    return to + static_cast<uint32_t>(row * 128 + (chunk ^ (row & 7)) * 16);
  };
#pragma unroll
  for (int n = 0; n < N / 8; n += 2) {
    if constexpr (kGate == ExpertGate::kNone) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&from)[4] = d[n + i / 2];
        const int h = i % 2;
        words[i] = pack<T>(from[2 * h] + add[h], from[2 * h + 1] + add[h]);
      }
      const int i = lane / 8;
      store_matrices_transposed(place((n + i / 2) * 8 + lane % 8, warp * 2 + i % 2), words);
    } else {
      // Gates stand in even outputs, which are rows of even r here, ups in the odd ones beside: the
      // lanes of even r compute outputs 0-7, those of odd r outputs 8-15.
      const bool odd = (r & 1) != 0;
      uint32_t words[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float values[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float low = d[n + i][c] + add[0];
          const float high = d[n + i][2 + c] + add[1];
          const float got = __shfl_xor_sync(0xffffffffU, odd ? low : high, 4);
          values[c] = gate_value(kGate, odd ? got : low, odd ? high : got, a.alpha, a.limit);
        }
        const int from = r < 4 ? 2 * r : 2 * r - 7;  // who has gated value r
        words[i] = __shfl_sync(0xffffffffU, pack<T>(values[0], values[1]), from * 4 + lane % 4);
      }
      store_matrices_transposed(place((n + lane / 8 % 2) * 8 + lane % 8, m * 4 + warp), words);
    }
  }
}

// Finished rows of a consumer, a panel of 64 columns. One thread.
__device__ inline void send(const Maps& maps, uint32_t from, const Tile& tile, int64_t column) {
  int row = 0;
  const auto store = [&](const CUtensorMap& map, int rows) {
    store_box(map, static_cast<int>(column), tile.place + row,
              from + static_cast<uint32_t>(row) * 128);
    row += rows;
  };
  while (row + 64 <= tile.rows) store(maps.out, 64);
  while (row < tile.rows) store(maps.rest, kExpertPlaces);
  commit_stores();
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

struct Consumer {
  int group, warp, lane;
  __device__ Consumer()
      : group(static_cast<int>(threadIdx.x) / 128 - 1),
        warp(static_cast<int>(threadIdx.x) / 32 % 4),
        lane(static_cast<int>(threadIdx.x) % 32) {}
};

// A tile of up to N rows: each warpgroup 128 of its outputs, in two slabs, by all rows.
template <class T, ExpertGate kGate, bool kTwo, int N>
__device__ void multiply_tile(const ExpertProduct& a, const Maps& maps, const Shared& shared,
                              const Tile& tile, Ring& ring, const Consumer& me) {
  constexpr bool kGated = kGate != ExpertGate::kNone;
  const auto panels = static_cast<int>((a.in_features + 63) / 64);
  float d[2][N / 8][4] = {};
  int before = 0;  // the stage of the step before
  for (int k = 0; k < panels; ++k) {
    barrier_wait(shared.full(ring.stage), ring.phase);
    fence_shared_writes();
    const uint32_t rows_at = shared.a(ring.stage);
    const uint32_t weight_at = shared.b(ring.stage) + static_cast<uint32_t>(me.group) * 128 * 128;
    warpgroup_arrive();
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
#pragma unroll
      for (uint32_t m = 0; m < 2; ++m) {
        warpgroup_multiply<T>(d[m], operand(weight_at + m * 64 * 128 + i * 32, 16, 1024),
                              operand(rows_at + i * 32, 16, 1024), true);
      }
    }
    warpgroup_commit();
    warpgroup_wait<1>();
    if (k > 0) release<kTwo>(shared.empty(before), me.lane);
    before = ring.stage;
    ring.advance();
  }
  warpgroup_wait<0>();
  release<kTwo>(shared.empty(before), me.lane);
  const int64_t first = int64_t{tile.column} * 256 + me.group * 128;  // of the outputs
  const int64_t columns = kGated ? a.out_features / 2 : a.out_features;
  const auto finish_slab = [&](int m, uint32_t to) {
    const int64_t output = first + m * 64 + me.warp * 16;
    const float* bias = a.bias == nullptr || output >= a.out_features
                            ? nullptr
                            : a.bias + tile.expert * a.out_features + output;
    finish<T, kGate, N>(a, d[m], bias, m, to, me.warp, me.lane);
  };
  // Two panels, side by side where there is room.
  constexpr uint32_t kOther = 2 * N * 128 <= kOutBytes ? N * 128 : 0;
#pragma unroll
  for (int m = 0; m < (kGated ? 1 : 2); ++m) {
    const int64_t column = kGated ? first / 2 : first + m * 64;
    if (column >= columns) continue;
    const uint32_t to = shared.out(me.group) + static_cast<uint32_t>(m) * kOther;
    if (m == 0 || kOther == 0) {
      if (threadIdx.x % 128 == 0) wait_stores_read();
      named_wait(1 + me.group, 128);
    }
    finish_slab(m, to);
    if constexpr (kGated) finish_slab(1, to);
    fence_shared_writes();
    named_wait(1 + me.group, 128);
    if (threadIdx.x % 128 == 0) send(maps, to, tile, column);
  }
}

template <class T, ExpertGate kGate, bool kTwo>
__device__ void consume(const ExpertProduct& a, const Maps& maps, const Shared& shared) {
  const Consumer me;
  const auto panels = static_cast<int>((a.in_features + 63) / 64);
  Walk<kTwo> walk(a);
  Ring ring{kStages};
  while (walk.more()) {
    const Tile tile = walk.take();  // the producer has brought it near
    const auto multiply = [&](auto rows) {
      multiply_tile<T, kGate, kTwo, rows>(a, maps, shared, tile, ring, me);
    };
    switch ((tile.rows + 15) / 16) {
      case 0:
        for (int k = 0; k < panels; ++k) {
          barrier_wait(shared.full(ring.stage), ring.phase);
          release<kTwo>(shared.empty(ring.stage), me.lane);
          ring.advance();
        }
        break;
      case 1:
        multiply(std::integral_constant<int, 16>{});
        break;
      case 2:
        multiply(std::integral_constant<int, 32>{});
        break;
      case 3:
        multiply(std::integral_constant<int, 48>{});
        break;
      case 4:
        multiply(std::integral_constant<int, 64>{});
        break;
      case 5:
        multiply(std::integral_constant<int, 80>{});
        break;
      case 6:
        multiply(std::integral_constant<int, 96>{});
        break;
      case 7:
        multiply(std::integral_constant<int, 112>{});
        break;
      default:
        multiply(std::integral_constant<int, 128>{});
        break;
    }
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
    let_next_start();  // after the wait: kernels behind read older results before theirs
    consume<T, kGate, kTwo>(a, maps, shared);
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
  constexpr int64_t kManyRows = 96;
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

}  // namespace

bool expert_product_hopper(cudaStream_t stream, const ExpertProduct& args, int num_processors) {
  const bool gated = args.gate != ExpertGate::kNone;
  Maps maps{};
  const int64_t columns = gated ? args.out_features / 2 : args.out_features;
  const auto map_out = [&](CUtensorMap& map, int box_rows) {
    return make_rows_map(map, args.out.data, columns, args.max_places, args.out.stride, box_rows);
  };
  if (!map_out(maps.out, 64) || !map_out(maps.rest, kExpertPlaces) ||
      (!gated && !make_rows_map(maps.rows, args.a.data, args.in_features, args.max_places,
                                args.a.stride, kExpertPlaces))) {
    return false;
  }
  args.a.dtype == ElementType::kBF16 ? choose_gate<bf16>(stream, args, maps, num_processors)
                                     : choose_gate<__half>(stream, args, maps, num_processors);
  return true;
}

}  // namespace mpinfer::kernels::cuda
