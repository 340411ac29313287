// Products of few rows (a batch of decode rows) on sm_90a, finished where they are computed: gate
// and up become the activation, logits a row's maximum. Reading the weight is what takes time, and
// a launch costs as much as reading a small one. Blocks stay and walk tiles of `columns` outputs
// through a ring (product_ring.cuh); a warpgroup for each 64 rows multiplies.
#include <algorithm>

#include "kernels/cuda/device/best.cuh"
#include "kernels/cuda/device/experts.cuh"
#include "kernels/cuda/device/product_ring.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kMostGroups = kProductRows / 64;
constexpr int kMostThreads = 128 * (1 + kMostGroups);
constexpr int kMostStages = 16;
static_assert(kMostStages <= RingMemory::kMostStages);

struct Work {
  ProductMaps maps;
  int32_t num_rows, n, panels, tiles;
  int32_t groups;  // of 64 rows
  int32_t stages;
};

struct GateEnd {
  View out;
  const float* bias;  // [n] or null
};
struct MaxEnd {
  MaxPair* parts;  // [blocks, rows]
  int32_t first_id;
};

// A thread has two rows, lane / 4 and eight more, and of every eight columns two: gate and up of
// one output. Four groups of eight columns make four outputs, eight bytes a lane; the last groups
// may be fewer.
template <class T, ExpertGate kGate, int N>
__device__ void finish(const Work& w, const GateEnd& end, const float (&d)[N / 8][4], int tile,
                       int row0, int lane) {
  const int quad = lane % 4;
  const int left = w.n - tile * N;
  const float* bias = end.bias == nullptr ? nullptr : end.bias + tile * N;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = row0 + lane / 4 + h * 8;
    T* to = static_cast<T*>(end.out.data) + int64_t{row} * end.out.stride + tile * (N / 2);
#pragma unroll
    for (int n = 0; n < N / 8; n += 4) {
      uint32_t words[4];
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        if (n + g >= N / 8) {
          words[g] = 0;
          continue;
        }
        float gate = d[n + g][2 * h];
        float up = d[n + g][2 * h + 1];
        const int column = (n + g) * 8 + quad * 2;
        if (bias != nullptr && column < left) {
          gate += bias[column];
          up += bias[column + 1];
        }
        words[g] = pack<T>(gate_value(kGate, gate, up, 0.0F, 0.0F), 0.0F);
      }
      transpose_words(words, lane);
      const int column = (n + quad) * 4;
      if (row < w.num_rows && column < min(left, N) / 2) {
        *reinterpret_cast<uint2*>(to + column) = make_uint2((words[0] & 0xffffU) | words[1] << 16,
                                                            (words[2] & 0xffffU) | words[3] << 16);
      }
    }
  }
}

// Columns come in the order of their ids: of equals the first stays.
template <int N>
__device__ void take(Best (&best)[2], const Work& w, const MaxEnd& end, const float (&d)[N / 8][4],
                     int tile, int lane) {
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int column = tile * N + n * 8 + lane % 4 * 2 + e % 2;
      const float x = d[n][e];
      Best& mine = best[e / 2];
      if (column >= w.n) continue;
      mine.has_nan = mine.has_nan || x != x;
      if (x > mine.value) {
        mine.value = x;
        mine.id = end.first_id + column;
      }
    }
  }
}

__device__ inline void leave_best(Best mine, const Work& w, const MaxEnd& end, int row, int lane) {
  mine = lanes_best<4>(mine);
  if (lane % 4 != 0 || row >= w.num_rows) return;
  end.parts[int64_t{blockIdx.x} * w.num_rows + row] = {mine.value, mine.has_nan ? -1 : mine.id};
}

template <class T, ExpertGate kGate, int N, class End>
__device__ void consume(const Work& w, const RingMemory& shared, const End& end) {
  wait_for_previous();
  const int group = static_cast<int>(threadIdx.x) / 128 - 1;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row0 = group * 64 + static_cast<int>(threadIdx.x) / 32 % 4 * 16;
  const uint32_t rows = shared.weight_bytes + static_cast<uint32_t>(group) * 8192;
  const auto release = [&](int stage) {
    if (lane == 0) barrier_arrive(shared.empty(stage));
  };
  Ring ring{w.stages};
  float d[N / 8][4];
  [[maybe_unused]] Best best[2];
  for (int tile = static_cast<int>(blockIdx.x); tile < w.tiles;
       tile += static_cast<int>(gridDim.x)) {
    multiply_panels<T>(d, shared, ring, w.panels, rows, 0, release);
    if constexpr (std::is_same_v<End, GateEnd>) {
      finish<T, kGate, N>(w, end, d, tile, row0, lane);
    } else {
      take<N>(best, w, end, d, tile, lane);
    }
  }
  if constexpr (std::is_same_v<End, MaxEnd>) {
    for (int h = 0; h < 2; ++h) leave_best(best[h], w, end, row0 + lane / 4 + h * 8, lane);
  }
}

template <class T, ExpertGate kGate, int N, class End>
__global__ void __launch_bounds__(kMostThreads, 1)
    product_kernel(const __grid_constant__ Work w, const End end) {
  extern __shared__ char memory[];
  const RingMemory shared{RingMemory::base_in(memory), N * 128,
                          N * 128 + static_cast<uint32_t>(w.groups) * 8192};
  const auto first = static_cast<int>(blockIdx.x);
  const auto step = static_cast<int>(gridDim.x);
  const int panels = (w.tiles - first + step - 1) / step * w.panels;
  const auto place_of = [&](int i) {
    return PanelPlace{i % w.panels * 64, (first + i / w.panels * step) * N, 0};
  };
  // A lane of each warp says empty.
  if (threadIdx.x == 0) fill_ring(w.maps, shared, w.stages, 4 * w.groups, panels, place_of);
  __syncthreads();
  let_next_start();
  if (threadIdx.x < 128) {
    give_registers<24>();
    if (threadIdx.x == 0) feed_ring(w.maps, shared, w.stages, panels, place_of);
  } else {
    take_registers<112>();
    consume<T, kGate, N>(w, shared, end);
  }
}

// The width that leaves the processor with most to do the least.
int choose_columns(int64_t n, int num_processors) {
  int best = 0;
  int64_t least = 0;
  for (const int columns : {64, 96, 112, 128}) {
    const int64_t tiles = (n + columns - 1) / columns;
    const int64_t most = (tiles + num_processors - 1) / num_processors * columns;
    if (best == 0 || most <= least) {
      best = columns;
      least = most;
    }
  }
  return best;
}

// False: the driver makes no tensor maps.
bool make_work(Work& work, const ProductArgs& a, int columns) {
  work.num_rows = static_cast<int32_t>(a.rows);
  work.n = static_cast<int32_t>(a.n);
  work.panels = static_cast<int32_t>((a.k + 63) / 64);
  work.tiles = static_cast<int32_t>((a.n + columns - 1) / columns);
  work.groups = static_cast<int32_t>((a.rows + 63) / 64);
  return make_product_maps(work.maps, a, columns, 64 * work.groups);
}

template <class T, ExpertGate kGate, int N, class End>
int launch_product(cudaStream_t stream, Work& work, const End& end, int num_processors) {
  static const cudaError_t raised =
      cudaFuncSetAttribute(product_kernel<T, kGate, N, End>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, RingMemory::kMostBytes);
  static_cast<void>(raised);
  const int stage_bytes = N * 128 + work.groups * 8192;
  work.stages = std::min(kMostStages, (RingMemory::kMostBytes - RingMemory::kRoom) / stage_bytes);
  const int blocks = std::min(work.tiles, num_processors);
  if (blocks == work.tiles) work.stages = std::min(work.stages, work.panels);
  launch(product_kernel<T, kGate, N, End>, static_cast<unsigned>(blocks),
         static_cast<unsigned>(128 * (1 + work.groups)),
         static_cast<size_t>(RingMemory::kRoom + work.stages * stage_bytes), stream, work, end);
  return blocks;
}

// Blocks launched; 0: the driver makes no tensor maps.
template <class T, ExpertGate kGate, class End>
int launch_columns(cudaStream_t stream, const ProductArgs& a, const End& end, int num_processors) {
  const int columns = choose_columns(a.n, num_processors);
  Work work{};
  if (!make_work(work, a, columns)) return 0;
  if (columns == 64) return launch_product<T, kGate, 64>(stream, work, end, num_processors);
  if (columns == 96) return launch_product<T, kGate, 96>(stream, work, end, num_processors);
  if (columns == 112) return launch_product<T, kGate, 112>(stream, work, end, num_processors);
  return launch_product<T, kGate, 128>(stream, work, end, num_processors);
}

template <class T>
int launch_gate(cudaStream_t stream, const ProductArgs& a, const GateEnd& end, Gate gate,
                int num_processors) {
  switch (gate) {
    case Gate::kGelu:
      return launch_columns<T, ExpertGate::kGelu>(stream, a, end, num_processors);
    case Gate::kGeluTanh:
      return launch_columns<T, ExpertGate::kGeluTanh>(stream, a, end, num_processors);
    default:
      return launch_columns<T, ExpertGate::kSilu>(stream, a, end, num_processors);
  }
}

}  // namespace

bool product_hopper_takes(const ProductArgs& a) {
  return product_ring_takes(a) && a.rows <= kProductRows;
}

bool product_gated_hopper(cudaStream_t stream, const ProductArgs& a, const View& out,
                          const float* bias, Gate gate, int num_processors) {
  const GateEnd end{out, bias};
  return (a.a.dtype == ElementType::kBF16
              ? launch_gate<bf16>(stream, a, end, gate, num_processors)
              : launch_gate<__half>(stream, a, end, gate, num_processors)) > 0;
}

int product_max_hopper(cudaStream_t stream, const ProductArgs& a, MaxPair* parts, int32_t first_id,
                       int num_processors) {
  const MaxEnd end{parts, first_id};
  return a.a.dtype == ElementType::kBF16
             ? launch_columns<bf16, ExpertGate::kNone>(stream, a, end, num_processors)
             : launch_columns<__half, ExpertGate::kNone>(stream, a, end, num_processors);
}

}  // namespace mpinfer::kernels::cuda
