// Grouped products of the experts on sm_90a. Blocks stay and walk tiles of up to 128 sorted rows by
// 256 outputs; a producer warpgroup fetches each weight tile, one run of memory, by one bulk copy,
// and rows, the first product's gathered by cp.async, the second's by boxes, through a ring of four
// stages (a stage is full when its copies have landed: no thread waits for them). Each of two
// consumer warpgroups multiplies 128 outputs by all rows with wgmma, weights as its left operand:
// few rows cost no more than they are, in sixteens. A finished tile (gate, bias) is turned on its
// way into shared memory and leaves by itself, in boxes, while the next one is multiplied. Where
// experts have many rows two blocks are a cluster: row tiles of one expert go through its weights
// together, each block fetching half of a weight tile for both, so that a third less comes from the
// L2 cache; a stage is empty when both have read it. A row's bits are the same in both forms and
// among any rows. The same arguments and results as expert_product, which other devices use.

#include "kernels/cuda/device/expert_tiles.cuh"

namespace mpinfer::kernels::cuda {
namespace {

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

// A consumer's panel of finished rows in shared memory, 64 outputs of each.
__device__ inline uint32_t place_in(uint32_t panel, int row, int chunk) {
  return panel + static_cast<uint32_t>(row * 128 + (chunk ^ (row & 7)) * 16);
}

// What a warp's 16 outputs of slab m (64 of the warpgroup's 128) give for N rows. A thread has
// neighbours, or a gate and its up, by pairs of rows. The gate is known when this is compiled: a
// choice a value keeps the values from being computed side by side.
template <class T, ExpertGate kGate, int N>
__device__ void finish(const ExpertProduct& a, const float (&d)[N / 8][4], const float (&add)[2],
                       int m, uint32_t panel, const Consumer& me) {
  if constexpr (kGate == ExpertGate::kNone) {
    const int row = me.lane % 4 * 2;
    const int chunk = me.warp * 2 + me.lane / 16;
    const auto byte = static_cast<uint32_t>(me.lane / 4 % 4 * 4);
    const uint32_t at[2] = {place_in(panel, row, chunk) + byte,
                            place_in(panel, row + 1, chunk) + byte};
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        store_shared(at[c] + static_cast<uint32_t>(n * 1024),
                     pack<T>(d[n][c] + add[0], d[n][2 + c] + add[1]));
      }
    }
  } else {
    const uint32_t at = place_in(panel, me.lane % 16, m * 4 + me.warp);
#pragma unroll
    for (int n = 0; n < N / 8; n += 2) {
      uint32_t words[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float values[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          values[c] =
              gate_value(kGate, d[n + i][c] + add[0], d[n + i][2 + c] + add[1], a.alpha, a.limit);
        }
        words[i] = pack<T>(values[0], values[1]);
      }
      store_matrices_transposed(at + static_cast<uint32_t>(n * 1024), words);
    }
  }
}

// The last panel of a finished tile. It leaves when the first products of the next tile have been
// issued: the copy engine keeps who tells it of a panel waiting for the time of a step.
struct Finished {
  int rows = 0;  // none: there is none
  int place;
  int column;
};

// A consumer's panel leaves.
__device__ inline void send(const Maps& maps, const Shared& shared, const Finished& panel,
                            int64_t columns, const Consumer& me) {
  if (threadIdx.x % 128 == 0 && panel.rows > 0 && panel.column < columns) {
    for_boxes(maps.out, panel.rows, [&](const CUtensorMap& map, int row) {
      store_box(map, panel.column, panel.place + row,
                shared.out(me.group) + static_cast<uint32_t>(row) * 128);
    });
    commit_stores();
  }
  __syncwarp();
}

// A tile of up to N rows: each warpgroup 128 of its outputs, in two slabs, by all rows.
template <class T, ExpertGate kGate, bool kTwo, int N>
__device__ void multiply_tile(const ExpertProduct& a, const Maps& maps, const Shared& shared,
                              const Tile& tile, Ring& ring, Finished& finished,
                              const Consumer& me) {
  constexpr bool kGated = kGate != ExpertGate::kNone;
  const auto panels = static_cast<int>((a.in_features + 63) / 64);
  const auto columns = static_cast<int>(kGated ? a.out_features / 2 : a.out_features);
  float d[2][N / 8][4];
  const auto multiply_panel = [&](auto first) {
    barrier_wait(shared.full(ring.stage), ring.phase);
    if constexpr (kGated) fence_shared_writes();  // gathered rows
    const uint32_t rows_at = shared.a(ring.stage);
    const uint32_t weight_at = shared.b(ring.stage) + static_cast<uint32_t>(me.group) * 128 * 128;
    warpgroup_arrive();
#pragma unroll
    for (uint32_t m = 0; m < 2; ++m) {
      warpgroup_multiply<T, first>(d[m], operand(weight_at + m * 64 * 128, 16, 1024),
                                   operand(rows_at, 16, 1024), !first);
    }
#pragma unroll
    for (uint32_t i = 1; i < 4; ++i) {
#pragma unroll
      for (uint32_t m = 0; m < 2; ++m) {
        warpgroup_multiply<T>(d[m], operand(weight_at + m * 64 * 128 + i * 32, 16, 1024),
                              operand(rows_at + i * 32, 16, 1024), true);
      }
    }
    warpgroup_commit();
  };
  multiply_panel(std::true_type{});
  send(maps, shared, finished, columns, me);
  int before = ring.stage;  // the stage of the step before
  ring.advance();
  for (int k = 1; k < panels; ++k) {
    multiply_panel(std::false_type{});
    warpgroup_wait<1>();
    release<kTwo>(shared.empty(before), me.lane);
    before = ring.stage;
    ring.advance();
  }
  warpgroup_wait<0>();
#pragma unroll
  for (int m = 0; m < 2; ++m) warpgroup_settle(d[m]);
  release<kTwo>(shared.empty(before), me.lane);
  const int first = tile.column * 256 + me.group * 128;  // of the outputs
  finished = {tile.rows, tile.place, kGated ? first / 2 : first};
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    if (!kGated && m == 1) {
      send(maps, shared, finished, columns, me);
      finished.column += 64;
    }
    if (!kGated || m == 0) {  // the panel before has been read
      if (threadIdx.x % 128 == 0) wait_stores_read();
      named_wait(1 + me.group, 128);
    }
    const int64_t output = first + m * 64 + me.warp * 16 + me.lane / 4 * 2;
    float add[2] = {};
    if (a.bias != nullptr && output < a.out_features) {
      const float* bias = a.bias + tile.expert * a.out_features + output;
      add[0] = bias[0];
      add[1] = bias[1];
    }
    finish<T, kGate, N>(a, d[m], add, m, shared.out(me.group), me);
    if (!kGated || m == 1) {
      fence_shared_writes();
      named_wait(1 + me.group, 128);
    }
  }
}

template <class T, ExpertGate kGate, bool kTwo>
__device__ void consume(const ExpertProduct& a, const Maps& maps, const Shared& shared) {
  const Consumer me;
  const auto panels = static_cast<int>((a.in_features + 63) / 64);
  const auto columns =
      static_cast<int>(kGate != ExpertGate::kNone ? a.out_features / 2 : a.out_features);
  Ring ring{kStages};
  Finished finished;
  while (true) {
    barrier_wait(shared.full(ring.stage), ring.phase);
    const Tile tile = handed_over(shared.tile(ring.stage));
    if (tile.expert < 0) break;
    const auto multiply = [&](auto rows) {
      multiply_tile<T, kGate, kTwo, rows>(a, maps, shared, tile, ring, finished, me);
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
  send(maps, shared, finished, columns, me);
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
  const auto make_maps = [&](RowMaps& to, const View& rows, int64_t width) {
    return make_rows_map(to.many, rows.data, width, args.max_places, rows.stride, 64) &&
           make_rows_map(to.few, rows.data, width, args.max_places, rows.stride, kExpertPlaces);
  };
  if (!make_maps(maps.out, args.out, columns) ||
      (!gated && !make_maps(maps.rows, args.a, args.in_features))) {
    return false;
  }
  args.a.dtype == ElementType::kBF16 ? choose_gate<bf16>(stream, args, maps, num_processors)
                                     : choose_gate<__half>(stream, args, maps, num_processors);
  return true;
}

}  // namespace mpinfer::kernels::cuda
