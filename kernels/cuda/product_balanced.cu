// Gate and up of many rows on sm_90a, and the activation of what they give, in one kernel that
// leaves no processor idle. A cluster of two blocks multiplies tiles of 256 outputs, 128 a block,
// by up to 256 rows, of which each block fetches half for both; weights are the left operand, so
// rows cost what they are, in sixteens. Tiles are dealt out whole, but for the first one to two a
// cluster: those are cut into as many equal runs of panels as there are clusters. Who has a tile's
// end multiplies it first and leaves its sums in memory; who has its beginning multiplies that
// later, adds them in the order of k and finishes the tile.
#include <algorithm>

#include "kernels/cuda/device/experts.cuh"
#include "kernels/cuda/device/product_ring.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kOutputs = 128;  // of a block, 64 of each of two warpgroups
constexpr int kThreads = 3 * 128;
constexpr int kMostRows = 256;                     // of a tile
constexpr uint32_t kWeightBytes = kOutputs * 128;  // of a panel
static_assert(kMostRows * kOutputs == kBalancedSums);

struct Work {
  CUtensorMap weight;  // gates and ups of eight outputs each in turn
  CUtensorMap rows;
  CUtensorMap out;
  const float* bias;  // [n] or null
  float* sums;        // [blocks][N / 8][256 threads][4]
  int32_t* left;      // [blocks][2], whether sums are there; zeros between launches
  int32_t n, panels;
  int32_t row_tiles;
  int32_t tiles;
  int32_t cut;  // of them, the first
  int32_t stages;
  Gate gate;
};

// Strides need not grow from one dimension to the next. Gates and ups alternate in the weight's
// rows; a box holds eight gates, then their ups, and so on: a thread of the product has both.
bool make_gates_map(CUtensorMap& map, const ProductArgs& a) {
  const auto row = static_cast<cuuint64_t>(a.k) * 2;
  return make_map<4>(map, a.weight,
                     {static_cast<cuuint64_t>(a.k), 8, 2, static_cast<cuuint64_t>(a.n / 16)},
                     {2 * row, row, 16 * row}, {64, 8, 2, kOutputs / 16});
}
__device__ inline void copy_gates(uint32_t to, const CUtensorMap& map, int element, int sixteenth,
                                  uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %3, %4}], [%5];" ::"r"(to),
      "l"(&map), "r"(element), "r"(0), "r"(sixteenth), "r"(barrier)
      : "memory");
}

struct Segment {
  int tile;
  int begin;  // panels
  int end;
};

// What a cluster multiplies, in this order.
struct Walk {
  int panels, tiles, clusters;
  int at, end;  // panels of the tiles that are cut
  int whole;    // the next tile that is not
  __device__ Walk(const Work& w, int cluster, int num_clusters)
      : panels(w.panels),
        tiles(w.tiles),
        clusters(num_clusters),
        at(begin_of(w, cluster, num_clusters)),
        end(begin_of(w, cluster + 1, num_clusters)),
        whole(w.cut + cluster) {}
  __device__ static int begin_of(const Work& w, int cluster, int num_clusters) {
    return static_cast<int>(int64_t{w.cut} * w.panels * cluster / num_clusters);
  }
  __device__ bool next(Segment& segment) {
    if (at < end) {
      const int begin = at % panels;
      const int length = min(panels - begin, end - at);
      segment = {at / panels, begin, begin + length};
      at += length;
      return true;
    }
    if (whole >= tiles) return false;
    segment = {whole, 0, panels};
    whole += clusters;
    return true;
  }
};

// The same panel by panel.
struct Panels {
  Walk walk;
  Segment segment{};
  __device__ explicit Panels(const Walk& first) : walk(first) {}
  __device__ bool next() { return segment.begin < segment.end ? true : walk.next(segment); }
};

template <int N>
__device__ void produce(const Work& w, const RingMemory& memory, const Walk& walk, int rank) {
  const auto expect_weight = [&](const Segment& at, int stage) {
    barrier_expect(memory.full(stage), memory.stage_bytes);
    copy_gates(memory.weight(stage), w.weight, at.begin * 64,
               (at.tile / w.row_tiles * 2 + rank) * (kOutputs / 16), memory.full(stage));
  };
  Panels early(walk);
  int before = 0;  // weights on their way when the kernel before is done
  for (; before < w.stages && early.next(); ++before, ++early.segment.begin) {
    expect_weight(early.segment, before);
  }
  prefetch_map(w.rows);
  wait_for_previous();
  Ring ring{w.stages};
  for (Panels panel(walk); panel.next(); ++panel.segment.begin) {
    const Segment& at = panel.segment;
    if (--before < 0) {
      barrier_wait(memory.empty(ring.stage), ring.phase ^ 1);
      expect_weight(at, ring.stage);
    }
    copy_box_to_blocks(memory.rows(ring.stage) + static_cast<uint32_t>(rank * N / 2 * 128), w.rows,
                       at.begin * 64, at.tile % w.row_tiles * N + rank * N / 2,
                       memory.full(ring.stage), 3);
    ring.advance();
  }
}

// The gated outputs of a warp, eight, for N rows into a panel at `to`: a thread has gate and up of
// output lane / 4 and of rows lane % 4 * 2 + c of every eight.
template <class T, ExpertGate kGate, int N>
__device__ void finish(const Work& w, const float (&d)[N / 8][4], int output0, uint32_t to,
                       int chunk, int lane) {
  const auto bias_of = [&](int output) {
    return w.bias != nullptr && output < w.n ? w.bias[output] : 0.0F;
  };
  const float add_gate = bias_of(output0 + lane / 4 * 2);
  const float add_up = bias_of(output0 + lane / 4 * 2 + 1);
  const auto gated = [&](const float(&x)[4]) {
    return pack<T>(gate_value(kGate, x[0] + add_gate, x[2] + add_up, 0.0F, 0.0F),
                   gate_value(kGate, x[1] + add_gate, x[3] + add_up, 0.0F, 0.0F));
  };
  const uint32_t row = to + static_cast<uint32_t>(lane * 128 + (chunk ^ (lane & 7)) * 16);
  constexpr int kFours = N / 32 * 4;
#pragma unroll
  for (int n = 0; n < kFours; n += 4) {
    store_matrices_transposed(row + static_cast<uint32_t>(n) * 8 * 128,
                              {gated(d[n]), gated(d[n + 1]), gated(d[n + 2]), gated(d[n + 3])});
  }
  if constexpr (N / 8 > kFours) {
    store_matrices_transposed(row + static_cast<uint32_t>(kFours) * 8 * 128,
                              {gated(d[kFours]), gated(d[kFours + 1])});
  }
}

// Sums of a warpgroup in memory, those of each block at its own place.
template <int N>
struct Sums {
  const Work& w;
  int group, thread;
  __device__ float4* of(int block) const {
    return reinterpret_cast<float4*>(w.sums) + (int64_t{block} * (N / 8) * 2 + group) * 128 +
           thread;
  }
  __device__ int32_t* said(int block) const { return w.left + block * 2 + group; }

  __device__ void leave(const float (&d)[N / 8][4], int block) const {
    float4* to = of(block);
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
      __stcg(to + n * 256, make_float4(d[n][0], d[n][1], d[n][2], d[n][3]));
    }
    named_wait(1 + group, 128);
    if (thread == 0) {
      __threadfence();
      asm volatile("st.release.gpu.s32 [%0], 1;" ::"l"(said(block)) : "memory");
    }
  }
  __device__ void add(float (&d)[N / 8][4], int block) const {
    if (thread == 0) {
      int there = 0;
      while (there == 0) {
        asm volatile("ld.acquire.gpu.s32 %0, [%1];" : "=r"(there) : "l"(said(block)) : "memory");
      }
      *said(block) = 0;
    }
    named_wait(1 + group, 128);
    const float4* from = of(block);
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
      const float4 x = __ldcg(from + n * 256);
      d[n][0] += x.x;
      d[n][1] += x.y;
      d[n][2] += x.z;
      d[n][3] += x.w;
    }
  }
};

template <class T, int N>
__device__ void consume(const Work& w, const RingMemory& memory, int cluster, int num_clusters,
                        int rank) {
  const int group = static_cast<int>(threadIdx.x) / 128 - 1;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int lane = thread % 32;
  const Sums<N> sums{w, group, thread};
  const uint32_t panel = memory.weight(w.stages);  // of finished rows
  const auto release = [&](int stage) {
    if (lane < 2) barrier_arrive_at(memory.empty(stage), static_cast<uint32_t>(lane));
  };
  Walk walk(w, cluster, num_clusters);
  Ring ring{w.stages};
  for (Segment segment; walk.next(segment);) {
    float d[N / 8][4];
    multiply_panels<T>(d, memory, ring, segment.end - segment.begin,
                       static_cast<uint32_t>(group) * 8192, kWeightBytes, release);
    if (segment.begin > 0) {
      sums.leave(d, cluster * 2 + rank);
      continue;
    }
    if (segment.end < w.panels) sums.add(d, (cluster + 1) * 2 + rank);
    const int outputs = (segment.tile / w.row_tiles * 2 + rank) * kOutputs;
    const int output0 = outputs + group * 64 + thread / 32 * 16;
    const int chunk = group * 4 + thread / 32;
    if (threadIdx.x == 128) wait_stores_read();
    named_wait(3, 256);
    switch (w.gate) {
      case Gate::kSilu:
        finish<T, ExpertGate::kSilu, N>(w, d, output0, panel, chunk, lane);
        break;
      case Gate::kGelu:
        finish<T, ExpertGate::kGelu, N>(w, d, output0, panel, chunk, lane);
        break;
      case Gate::kGeluTanh:
        finish<T, ExpertGate::kGeluTanh, N>(w, d, output0, panel, chunk, lane);
        break;
    }
    fence_shared_writes();
    named_wait(3, 256);
    if (threadIdx.x == 128) {
      store_box(w.out, outputs / 2, segment.tile % w.row_tiles * N, panel);
      commit_stores();
    }
  }
  if (threadIdx.x == 128) wait_stores();
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads, 1) balanced_kernel(const __grid_constant__ Work w) {
  extern __shared__ char memory_start[];
  const RingMemory memory{RingMemory::base_in(memory_start), kWeightBytes, kWeightBytes + N * 128};
  const auto rank = static_cast<int>(cluster_rank());
  const int num_clusters = static_cast<int>(gridDim.x) / 2;
  // Who waits for the one behind it starts after that one.
  const int cluster = num_clusters - 1 - static_cast<int>(blockIdx.x) / 2;
  if (threadIdx.x == 0) {
    for (int s = 0; s < w.stages; ++s) {
      barrier_init(memory.full(s), 1);
      barrier_init(memory.empty(s), 2 * 2 * 4);  // a lane of each warp of both blocks
    }
    fence_barrier_init();
  }
  cluster_sync();
  let_next_start();
  if (threadIdx.x < 128) {
    give_registers<40>();
    if (threadIdx.x == 0) produce<N>(w, memory, Walk(w, cluster, num_clusters), rank);
  } else {
    take_registers<232>();
    wait_for_previous();
    consume<T, N>(w, memory, cluster, num_clusters, rank);
  }
  cluster_sync();  // until the other block writes here no more
}

template <class T, int N>
void launch_balanced(cudaStream_t stream, Work& work, int num_clusters) {
  constexpr auto kKernel = balanced_kernel<T, N>;
  static const cudaError_t raised = cudaFuncSetAttribute(
      kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, RingMemory::kMostBytes);
  static_cast<void>(raised);
  constexpr int kStageBytes = static_cast<int>(kWeightBytes) + N * 128;
  constexpr int kRoom = RingMemory::kRoom + N * 128;  // a finished panel
  work.stages = (RingMemory::kMostBytes - kRoom) / kStageBytes;
  launch_clusters(2, kKernel, static_cast<unsigned>(num_clusters * 2), kThreads,
                  static_cast<size_t>(kRoom + work.stages * kStageBytes), stream, work);
}

// rows: of a tile, in sixteens.
template <class T, int N = kMostRows / 2 + 16>
void choose_rows(cudaStream_t stream, Work& work, int rows, int num_clusters) {
  if constexpr (N < kMostRows) {
    if (rows > N) return choose_rows<T, N + 16>(stream, work, rows, num_clusters);
  }
  launch_balanced<T, N>(stream, work, num_clusters);
}

int64_t row_tiles_of(const ProductArgs& a) {
  return (a.rows + kMostRows - 1) / kMostRows;
}
int64_t tiles_of(const ProductArgs& a) {
  return (a.n + 2 * kOutputs - 1) / (2 * kOutputs) * row_tiles_of(a);
}

}  // namespace

// A tile for every cluster at least. Between 256 and 1,024 rows the library's products and a kernel
// for the gate are as fast.
bool product_balanced_takes(const ProductArgs& a, const View& out, int num_processors) {
  return product_ring_takes(a) && a.n % 16 == 0 && num_processors <= kBalancedProcessors &&
         tiles_of(a) >= num_processors / 2 && out.dtype == a.a.dtype && out.stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(out.data) % 16 == 0 &&
         ((a.rows > kMostRows / 2 && a.rows <= kMostRows) || (a.rows > 1024 && a.rows <= 4096));
}

bool product_gated_balanced(cudaStream_t stream, const ProductArgs& a, const View& out,
                            const float* bias, Gate gate, const BalancedMemory& memory,
                            int num_processors) {
  Work work{};
  const int64_t row_tiles = row_tiles_of(a);
  const int64_t rows = (a.rows + row_tiles * 16 - 1) / (row_tiles * 16) * 16;  // of a tile
  if (!make_gates_map(work.weight, a) ||
      !make_rows_map(work.rows, a.a.data, a.k, a.rows, a.a.stride, static_cast<int>(rows / 2)) ||
      !make_rows_map(work.out, out.data, a.n / 2, a.rows, out.stride, static_cast<int>(rows))) {
    return false;
  }
  work.bias = bias;
  work.sums = memory.sums;
  work.left = memory.left;
  work.n = static_cast<int32_t>(a.n);
  work.panels = static_cast<int32_t>((a.k + 63) / 64);
  work.row_tiles = static_cast<int32_t>(row_tiles);
  work.tiles = static_cast<int32_t>(tiles_of(a));
  work.gate = gate;
  const int num_clusters = num_processors / 2;
  // Those that are cut give each cluster one to two tiles: no tile has more than two parts.
  const int32_t last_wave = work.tiles % num_clusters;
  work.cut = last_wave == 0 ? 0 : num_clusters + last_wave;
  a.a.dtype == ElementType::kBF16
      ? choose_rows<bf16>(stream, work, static_cast<int>(rows), num_clusters)
      : choose_rows<__half>(stream, work, static_cast<int>(rows), num_clusters);
  return true;
}

}  // namespace mpinfer::kernels::cuda
