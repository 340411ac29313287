// Around the experts' products: choices sorted by expert without a host read, weights packed into
// tiles, and the product for types and sizes that the tensor-core kernels refuse.
#include "kernels/cuda/device/experts.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;
constexpr int kChoices = kThreads * kEach;  // of a block
constexpr int kMostExperts = 1024;
constexpr int kThreadsAlone = 512;  // of the block that sorts few choices by itself
constexpr int kEachAlone = 8;

__device__ inline int aligned(int rows) {
  return (rows + kExpertPlaces - 1) / kExpertPlaces * kExpertPlaces;
}

// Experts before one: their places, whole pairs of tiles, and odd tiles.
struct Before {
  int64_t packed = 0;
  static constexpr int kOddBits = 11;
  static constexpr int kPairBits = 22;
  __device__ int odds() const { return static_cast<int>(packed & ((1 << kOddBits) - 1)); }
  __device__ int pairs() const {
    return static_cast<int>(packed >> kOddBits & ((1 << kPairBits) - 1));
  }
  __device__ int places() const { return static_cast<int>(packed >> (kOddBits + kPairBits)); }
  __device__ static Before of(int places, int tiles) {
    return {int64_t{places} << (kOddBits + kPairBits) | int64_t{tiles / 2} << kOddBits | tiles % 2};
  }
};

// The sum over the threads before this one, and of all.
template <int kBlock>
__device__ Before block_scan(Before value, Before& total) {
  __shared__ int64_t sums[kBlock / 32];
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  int64_t running = value.packed;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int64_t other = __shfl_up_sync(0xffffffffU, running, offset);
    if (lane >= offset) running += other;
  }
  __syncthreads();
  if (lane == 31) sums[warp] = running;
  __syncthreads();
  int64_t before = 0;
  total.packed = 0;
#pragma unroll
  for (int w = 0; w < kBlock / 32; ++w) {
    if (w < warp) before += sums[w];
    total.packed += sums[w];
  }
  return {before + running - value.packed};
}

// Where each expert's choices and tiles stand, from the number of its choices.
struct Layout {
  int count[kMostExperts];
  int place[kMostExperts + 1];
  int first_pair[kMostExperts];  // of its own tiles
  int odd_before[kMostExperts];  // experts with an odd number of tiles
  int odd_experts[kMostExperts];
  int num_odds;
  int num_tiles;
};

template <int kBlock, class Count>
__device__ void lay_out(Layout& layout, const ExpertOrder& order, int num_experts, int tile_rows,
                        const Count& count_of) {
  Before all;
  for (int begin = 0; begin < num_experts; begin += kBlock) {
    const int e = begin + static_cast<int>(threadIdx.x);
    const int count = e < num_experts ? count_of(e) : 0;
    const int tiles = (count + tile_rows - 1) / tile_rows;
    Before here;
    const Before mine{all.packed +
                      block_scan<kBlock>(Before::of(aligned(count), tiles), here).packed};
    all.packed += here.packed;
    if (e < num_experts) {
      layout.count[e] = count;
      layout.place[e] = mine.places();
      for (int i = count; i < aligned(count); ++i) order.choices[mine.places() + i] = -1;
      // Two odd tiles are a pair, behind the own pairs of the second one's expert.
      layout.first_pair[e] = mine.pairs() + mine.odds() / 2;
      layout.odd_before[e] = mine.odds();
      if (tiles % 2 == 1) layout.odd_experts[mine.odds()] = e;
    }
  }
  if (threadIdx.x == 0) {
    layout.place[num_experts] = all.places();
    layout.num_odds = all.odds();
    layout.num_tiles = 2 * all.pairs() + all.odds();
  }
  __syncthreads();
}

// Tile t of the order that ExpertOrder describes.
__device__ ExpertTile tile_of(const Layout& layout, int t, int num_experts, int tile_rows) {
  int e = 0;
  for (int high = num_experts - 1; e < high;) {  // the last expert whose pairs start by t
    const int middle = (e + high + 1) / 2;
    if (layout.first_pair[middle] <= t / 2) {
      e = middle;
    } else {
      high = middle - 1;
    }
  }
  const auto tiles = [&](int expert) { return (layout.count[expert] + tile_rows - 1) / tile_rows; };
  int tile = t - 2 * layout.first_pair[e];
  const bool left_over = t % 2 == 0 && t + 1 == layout.num_tiles;
  if (left_over || tile / 2 >= tiles(e) / 2) {
    e = layout.odd_experts[left_over ? layout.num_odds - 1 : layout.odd_before[e] - 1 + t % 2];
    tile = tiles(e) - 1;
  }
  const int rows = aligned((layout.count[e] + tiles(e) - 1) / tiles(e));
  return {e, layout.place[e] + tile * rows, min(rows, layout.count[e] - tile * rows)};
}

__global__ void __launch_bounds__(kThreads)
    count_kernel(ExpertOrder order, const int32_t* experts, int64_t num_choices,
                 int32_t first_expert, int32_t num_experts, int32_t tile_rows) {
  __shared__ int counts[kMostExperts];
  __shared__ Layout layout;
  __shared__ bool last;
  let_next_start();
  for (int e = static_cast<int>(threadIdx.x); e < num_experts; e += kThreads) counts[e] = 0;
  __syncthreads();
  wait_for_previous();
  for (int i = 0; i < kEach; ++i) {
    const int64_t c = int64_t{blockIdx.x} * kChoices + i * kThreads + threadIdx.x;
    const int e = c < num_choices ? experts[c] - first_expert : -1;
    if (e >= 0 && e < num_experts) atomicAdd(counts + e, 1);
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < num_experts; e += kThreads) {
    if (counts[e] != 0) atomicAdd(order.counters + e, counts[e]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(order.counters + num_experts, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  lay_out<kThreads>(layout, order, num_experts, tile_rows,
                    [&](int e) { return __ldcg(order.counters + e); });
  for (int e = static_cast<int>(threadIdx.x); e <= num_experts; e += kThreads) {
    order.offsets[e] = layout.place[e];
    if (e < num_experts) order.cursors[e] = layout.place[e];
    order.counters[e] = 0;
  }
  if (threadIdx.x == 0) *order.num_tiles = layout.num_tiles;
  for (int t = static_cast<int>(threadIdx.x); t < layout.num_tiles; t += kThreads) {
    order.tiles[t] = tile_of(layout, t, num_experts, tile_rows);
  }
}

__global__ void __launch_bounds__(kThreads)
    place_kernel(ExpertOrder order, const int32_t* experts, int64_t num_choices,
                 int32_t first_expert, int32_t num_experts) {
  __shared__ int counts[kMostExperts];
  __shared__ int bases[kMostExperts];
  let_next_start();
  for (int e = static_cast<int>(threadIdx.x); e < num_experts; e += kThreads) counts[e] = 0;
  __syncthreads();
  wait_for_previous();
  int mine[kEach];
  int within[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t c = int64_t{blockIdx.x} * kChoices + i * kThreads + threadIdx.x;
    mine[i] = c < num_choices ? experts[c] - first_expert : -1;
    if (mine[i] >= num_experts) mine[i] = -1;
    if (mine[i] >= 0) within[i] = atomicAdd(counts + mine[i], 1);
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < num_experts; e += kThreads) {
    if (counts[e] != 0) bases[e] = atomicAdd(order.cursors + e, counts[e]);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t c = int64_t{blockIdx.x} * kChoices + i * kThreads + threadIdx.x;
    if (mine[i] < 0) continue;
    const int place = bases[mine[i]] + within[i];
    order.choices[place] = static_cast<int32_t>(c);
    order.places[c] = place;
  }
}

// Few choices, all of it by one block.
__global__ void __launch_bounds__(kThreadsAlone)
    sort_kernel(ExpertOrder order, const int32_t* experts, int32_t num_choices,
                int32_t first_expert, int32_t num_experts, int32_t tile_rows) {
  __shared__ int counts[kMostExperts];
  __shared__ Layout layout;
  let_next_start();
  const int thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < num_experts; e += kThreadsAlone) counts[e] = 0;
  __syncthreads();
  wait_for_previous();
  int mine[kEachAlone];
  int within[kEachAlone];
#pragma unroll
  for (int i = 0; i < kEachAlone; ++i) {
    const int c = i * kThreadsAlone + thread;
    mine[i] = c < num_choices ? experts[c] - first_expert : -1;
    if (mine[i] >= num_experts) mine[i] = -1;
  }
#pragma unroll
  for (int i = 0; i < kEachAlone; ++i) {
    if (mine[i] >= 0) within[i] = atomicAdd(counts + mine[i], 1);
  }
  __syncthreads();
  lay_out<kThreadsAlone>(layout, order, num_experts, tile_rows, [&](int e) { return counts[e]; });
#pragma unroll
  for (int i = 0; i < kEachAlone; ++i) {
    if (mine[i] < 0) continue;
    const int choice = i * kThreadsAlone + thread;
    const int place = layout.place[mine[i]] + within[i];
    order.choices[place] = choice;
    order.places[choice] = place;
  }
  for (int e = thread; e <= num_experts; e += kThreadsAlone) order.offsets[e] = layout.place[e];
  if (thread == 0) *order.num_tiles = layout.num_tiles;
  for (int t = thread; t < layout.num_tiles; t += kThreadsAlone) {
    order.tiles[t] = tile_of(layout, t, num_experts, tile_rows);
  }
}

template <class T>
__global__ void pack_kernel(T* weight, const T* source, int64_t in_features, int64_t first_row,
                            int64_t row_step) {
  const int64_t n = first_row + int64_t{blockIdx.x} * row_step;
  for (int64_t k = threadIdx.x; k < in_features; k += blockDim.x) {
    weight[expert_place(n, k, in_features)] = source[int64_t{blockIdx.x} * in_features + k];
  }
}

// A thread an output: slow and indifferent to sizes.
template <class T>
__global__ void any_kernel(ExpertProduct a) {
  wait_for_previous();
  const bool gated = a.gate != ExpertGate::kNone;
  const int64_t outputs = gated ? a.out_features / 2 : a.out_features;
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= outputs) return;
  int e = 0;
  for (int64_t place = blockIdx.y; place < a.order.offsets[a.num_experts]; place += gridDim.y) {
    while (a.order.offsets[e + 1] <= place) ++e;
    const int32_t choice = a.order.choices[place];
    if (choice < 0) continue;
    const T* x = static_cast<const T*>(a.a.data) + (gated ? choice / a.top_k : place) * a.a.stride;
    const T* weight =
        reinterpret_cast<const T*>(static_cast<const char*>(a.weights) + e * a.stride_bytes);
    const auto dot = [&](int64_t n) {
      float sum = 0.0F;
      for (int64_t k = 0; k < a.in_features; ++k) {
        sum = fmaf(to_float(x[k]), to_float(weight[expert_place(n, k, a.in_features)]), sum);
      }
      return a.bias == nullptr ? sum : sum + a.bias[e * a.out_features + n];
    };
    if (gated) {
      static_cast<T*>(a.out.data)[place * a.out.stride + column] =
          from_float<T>(gate_value(a.gate, dot(2 * column), dot(2 * column + 1), a.alpha, a.limit));
    } else {
      static_cast<T*>(a.out.data)[place * a.out.stride + column] = from_float<T>(dot(column));
    }
  }
}

}  // namespace

void sort_choices(cudaStream_t stream, const ExpertOrder& order, const int32_t* experts,
                  int64_t num_choices, int32_t first_expert, int32_t num_experts,
                  int32_t tile_rows) {
  if (num_choices <= kThreadsAlone * kEachAlone) {
    return launch(sort_kernel, 1, kThreadsAlone, 0, stream, order, experts, num_choices,
                  first_expert, num_experts, tile_rows);
  }
  const unsigned blocks = blocks_for(num_choices, kChoices);
  launch(count_kernel, blocks, kThreads, 0, stream, order, experts, num_choices, first_expert,
         num_experts, tile_rows);
  launch(place_kernel, blocks, kThreads, 0, stream, order, experts, num_choices, first_expert,
         num_experts);
}

void pack_expert_rows(cudaStream_t stream, void* weight, const void* source, ElementType dtype,
                      int64_t in_features, int64_t first_row, int64_t row_step, int64_t rows) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    pack_kernel<T><<<static_cast<unsigned>(rows), 256, 0, stream>>>(
        static_cast<T*>(weight), static_cast<const T*>(source), in_features, first_row, row_step);
  });
}

bool expert_product_is_fast(const ExpertProduct& args) {
  return args.a.dtype != ElementType::kF32 && args.in_features % 8 == 0 &&
         args.out_features % 16 == 0 && aligned_for(args.a, 8) && aligned_for(args.out, 8);
}

void expert_product_any(cudaStream_t stream, const ExpertProduct& args) {
  const int64_t outputs =
      args.gate != ExpertGate::kNone ? args.out_features / 2 : args.out_features;
  const int64_t rows = args.max_choices < 65535 ? args.max_choices : 65535;
  with_type(args.a.dtype, [&](auto type) {
    using T = decltype(type);
    launch(any_kernel<T>, dim3(blocks_for(outputs, 128), static_cast<unsigned>(rows)), 128, 0,
           stream, args);
  });
}

}  // namespace mpinfer::kernels::cuda
