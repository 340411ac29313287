// Products of few rows (a batch of decode rows) on sm_90a whose weight is too small to keep the
// processors busy: the sum over k is split over the blocks of a cluster. A weight's outputs are the
// 64 rows of a warpgroup's product and a.rows its columns, so that few rows cost little; each block
// multiplies its part of k through a ring (product_ring.cuh) that is filled with weights while the
// kernel before still runs. Then the rows are dealt out, sixteen at a time: each block gets the
// others' sums of its rows in shared memory, adds them in the order of k and stores them.
#include <algorithm>

#include "kernels/cuda/device/product_ring.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kHalfBytes = 112 * 1024;  // two blocks a processor
constexpr int kDealt = 16;              // rows at a time
constexpr int kMostRows = 128;          // of a block
constexpr int kOutputs = 64;            // of a block
constexpr int kThreads = 128;           // that multiply; one more warp fetches

struct Work {
  ProductMaps maps;
  View out;
  const float* bias;  // [n] or null
  float scale;
  int32_t num_rows, n, panels;
  int32_t column_tiles, splits, stages;
};

// What a thread has of sixteen rows: x[h][e] is of row h * 8 + lane % 4 * 2 + e % 2 and of output
// lane / 4 + e / 2 * 8.
using Sums = float[2][4];

template <class T>
__device__ void store(const Work& w, Sums& x, int row0, int column0, int lane) {
#pragma unroll
  for (int up = 0; up < 2; ++up) {
    const int column = column0 + lane / 4 + up * 8;
    const float bias = w.bias != nullptr && column < w.n ? w.bias[column] : 0.0F;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& value = x[i / 2][up * 2 + i % 2];
      value = value * w.scale + bias;
    }
  }
  if (w.out.dtype == ElementType::kF32) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = row0 + i / 4 * 8 + lane % 4 * 2 + i % 2;
      const int column = column0 + lane / 4 + i % 4 / 2 * 8;
      if (row < w.num_rows && column < w.n) {
        static_cast<float*>(w.out.data)[int64_t{row} * w.out.stride + column] = x[i / 4][i % 4];
      }
    }
    return;
  }
  // Eight outputs of a row to one lane.
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = transposed(pack<T>(x[i / 2][i % 2 * 2], x[i / 2][i % 2 * 2 + 1]));
  }
  transpose_words(words, lane);
  const int row = row0 + lane % 4 / 2 * 8 + lane / 4;
  const int column = column0 + lane % 2 * 8;
  if (row < w.num_rows && column < w.n) {
    T* to = static_cast<T*>(w.out.data) + int64_t{row} * w.out.stride + column;
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// Where sums of other blocks land: [deal][block][h][thread], 16 bytes each.
struct Landing {
  uint32_t base;
  uint32_t barrier;
  int splits;
  __device__ uint32_t at(int deal, int block, int h, int thread) const {
    return base +
           static_cast<uint32_t>((((deal * splits + block) * 2 + h) * kThreads + thread) * 16);
  }
};

template <class T, int N>
__device__ void exchange(const Work& w, const float (&d)[N / 8][4], const Landing& landing,
                         int deals, int rank, int thread, int row0, int column0) {
  const int lane = thread % 32;
  cluster_wait();  // their barriers are there
  int to = 0;
  int deal = 0;
#pragma unroll
  for (int i = 0; i < N / kDealt; ++i) {
    if (i >= deals) break;
    const uint32_t barrier = address_at(landing.barrier, to);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      store_at(address_at(landing.at(deal, rank, h, thread), to), d[2 * i + h], barrier);
    }
    if (++to == w.splits) {
      to = 0;
      ++deal;
    }
  }
  if (rank >= deals) return;
  barrier_wait_cluster(landing.barrier, 0);
  for (int i = rank; i < deals; i += w.splits) {
    Sums x = {};
    for (int block = 0; block < w.splits; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float part[4];
        load_shared(part, landing.at(i / w.splits, block, h, thread));
#pragma unroll
        for (int e = 0; e < 4; ++e) x[h][e] += part[e];
      }
    }
    store<T>(w, x, row0 + i * kDealt, column0, lane);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads + 32) split_kernel(const __grid_constant__ Work w) {
  extern __shared__ char memory[];
  const RingMemory ring_memory{RingMemory::base_in(memory), kOutputs * 128,
                               kOutputs * 128 + N * 128};
  const int rank = static_cast<int>(blockIdx.x) % w.splits;
  const int tile = static_cast<int>(blockIdx.x) / w.splits;
  const int row0 = tile / w.column_tiles * N;
  const int column0 = tile % w.column_tiles * kOutputs;
  const int begin = w.panels * rank / w.splits;
  const int panels = w.panels * (rank + 1) / w.splits - begin;
  const int deals = min(N / kDealt, (w.num_rows - row0 + kDealt - 1) / kDealt);
  const Landing landing{ring_memory.weight(w.stages), ring_memory.others(), w.splits};
  const auto place_of = [&](int i) { return PanelPlace{(begin + i) * 64, column0, row0}; };
  if (threadIdx.x == kThreads) {
    if (w.splits > 1) barrier_init(landing.barrier, 1);
    fill_ring(w.maps, ring_memory, w.stages, kThreads / 32, panels, place_of);
    const int mine = (deals - rank + w.splits - 1) / w.splits;
    if (w.splits > 1 && mine > 0) {
      barrier_expect(landing.barrier, static_cast<uint32_t>(mine * w.splits * 2 * kThreads * 16));
    }
  }
  __syncthreads();
  let_next_start();
  if (w.splits > 1) cluster_arrive();
  if (threadIdx.x >= kThreads) {
    if (threadIdx.x == kThreads) feed_ring(w.maps, ring_memory, w.stages, panels, place_of);
    return;
  }
  wait_for_previous();
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  Ring ring{w.stages};
  float d[N / 8][4];
  const auto release = [&](int stage) {
    if (lane == 0) barrier_arrive(ring_memory.empty(stage));
  };
  multiply_panels<T>(d, ring_memory, ring, panels, 0, ring_memory.weight_bytes, release);
  const int column = column0 + thread / 32 * 16;
  if (w.splits > 1) {
    return exchange<T, N>(w, d, landing, deals, rank, thread, row0, column);
  }
#pragma unroll
  for (int i = 0; i < N / kDealt; ++i) {
    if (i >= deals) break;
    Sums x;
#pragma unroll
    for (int e = 0; e < 8; ++e) x[e / 4][e % 4] = d[2 * i + e / 4][e % 4];
    store<T>(w, x, row0 + i * kDealt, column, lane);
  }
}

// As many blocks as it takes to have half of the processors read and no more than sixteen panels
// each, where they fit: clusters of three and more leave some processors of a group out.
int choose_splits(int tiles, int panels, int num_processors) {
  int splits = 1;
  for (const int more : {2, 3, 4, 6, 8}) {
    const int most = more == 2 ? num_processors : num_processors * 4 / 5;
    const bool enough = tiles * splits >= num_processors * 9 / 20 && panels <= 16 * splits;
    if (enough || more > panels || tiles * more > most) break;
    splits = more;
  }
  return splits;
}

template <class T, int N>
bool launch_split(cudaStream_t stream, const ProductArgs& a, const View& out, const float* bias,
                  float scale, int num_processors) {
  static const cudaError_t raised = cudaFuncSetAttribute(
      split_kernel<T, N>, cudaFuncAttributeMaxDynamicSharedMemorySize, RingMemory::kMostBytes);
  static_cast<void>(raised);
  constexpr int kStageBytes = (kOutputs + N) * 128;
  Work w{.out = out, .bias = bias, .scale = scale};
  if (!make_product_maps(w.maps, a, kOutputs, N)) return false;
  w.num_rows = static_cast<int32_t>(a.rows);
  w.n = static_cast<int32_t>(a.n);
  w.panels = static_cast<int32_t>((a.k + 63) / 64);
  w.column_tiles = (w.n + kOutputs - 1) / kOutputs;
  const int tiles = w.column_tiles * ((w.num_rows + N - 1) / N);
  w.splits = choose_splits(tiles, w.panels, num_processors);
  const int blocks = tiles * w.splits;
  const int deals = (std::min(N, w.num_rows) + kDealt - 1) / kDealt;
  const int landing =
      w.splits == 1 ? 0 : (deals + w.splits - 1) / w.splits * w.splits * kOutputs * kDealt * 4;
  const int bytes =
      (blocks > num_processors ? kHalfBytes : RingMemory::kMostBytes) - RingMemory::kRoom - landing;
  w.stages = std::min(
      {(w.panels + w.splits - 1) / w.splits, bytes / kStageBytes, RingMemory::kMostStages});
  launch_clusters(static_cast<unsigned>(w.splits), split_kernel<T, N>,
                  static_cast<unsigned>(blocks), kThreads + 32,
                  static_cast<size_t>(RingMemory::kRoom + w.stages * kStageBytes + landing), stream,
                  w);
  return true;
}

template <class T>
bool launch_rows(cudaStream_t stream, const ProductArgs& a, const View& out, const float* bias,
                 float scale, int num_processors) {
  if (a.rows <= 16) return launch_split<T, 16>(stream, a, out, bias, scale, num_processors);
  if (a.rows <= 32) return launch_split<T, 32>(stream, a, out, bias, scale, num_processors);
  if (a.rows <= 64) return launch_split<T, 64>(stream, a, out, bias, scale, num_processors);
  return launch_split<T, kMostRows>(stream, a, out, bias, scale, num_processors);
}

}  // namespace

// More rows are fetched from the L2 cache more often than a large weight leaves time for.
bool product_split_takes(const ProductArgs& a, const View& out) {
  constexpr int64_t kSmallWeight = int64_t{8} << 20;
  constexpr int64_t kMostOutputs = 256 * kOutputs;
  return product_hopper_takes(a) && a.n <= kMostOutputs &&
         (a.rows <= kMostRows || a.n * a.k <= kSmallWeight) &&
         (out.dtype == ElementType::kF32 ||
          (out.dtype == a.a.dtype && a.n % 8 == 0 && out.stride % 8 == 0 &&
           reinterpret_cast<uintptr_t>(out.data) % 16 == 0));
}

bool product_split_hopper(cudaStream_t stream, const ProductArgs& a, const View& out,
                          const float* bias, float scale, int num_processors) {
  return a.a.dtype == ElementType::kBF16
             ? launch_rows<bf16>(stream, a, out, bias, scale, num_processors)
             : launch_rows<__half>(stream, a, out, bias, scale, num_processors);
}

}  // namespace mpinfer::kernels::cuda
