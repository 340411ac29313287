// Around the experts' products: choices sorted by expert without a host read, weights packed into
// tiles, the weighted sum of a row's choices, and the product for types and sizes that the
// tensor-core kernels refuse.
#include "kernels/cuda/device/experts.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;
constexpr int kChoices = kThreads * kEach;  // of a block
constexpr int kMostExperts = 1024;

// The running sum before each thread's value, and the sum of all.
__device__ int block_scan(int value, int& total) {
  __shared__ int sums[kThreads / 32];
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  int running = value;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffU, running, offset);
    if (lane >= offset) running += other;
  }
  __syncthreads();
  if (lane == 31) sums[warp] = running;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) before += sums[w];
    total += sums[w];
  }
  return before + running - value;
}

// The last block to count: offsets, cursors and row tiles from the counts, which it clears.
__device__ void lay_out(const ExpertOrder& order, int num_experts, int tile_rows) {
  __shared__ int first_tile[kMostExperts + 1];
  int places = 0;
  int tiles = 0;
  for (int begin = 0; begin < num_experts; begin += kThreads) {
    const int e = begin + static_cast<int>(threadIdx.x);
    const int count = e < num_experts ? __ldcg(order.counters + e) : 0;
    int all = 0;
    const int place = places + block_scan(count, all);
    places += all;
    const int tile = tiles + block_scan((count + tile_rows - 1) / tile_rows, all);
    tiles += all;
    if (e < num_experts) {
      order.offsets[e] = place;
      order.cursors[e] = place;
      order.counters[e] = 0;
      first_tile[e] = tile;
    }
  }
  if (threadIdx.x == 0) {
    order.offsets[num_experts] = places;
    order.counters[num_experts] = 0;
    *order.num_tiles = tiles;
  }
  __syncthreads();
  for (int t = static_cast<int>(threadIdx.x); t < tiles; t += kThreads) {
    int low = 0;
    for (int high = num_experts - 1; low < high;) {  // the last expert that starts at or before t
      const int middle = (low + high + 1) / 2;
      if (first_tile[middle] <= t) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    order.tiles[t] = make_int2(low, (t - first_tile[low]) * tile_rows);
  }
}

__global__ void __launch_bounds__(kThreads)
    count_kernel(ExpertOrder order, const int32_t* experts, int64_t num_choices,
                 int32_t first_expert, int32_t num_experts, int32_t tile_rows) {
  __shared__ int counts[kMostExperts];
  __shared__ bool last;
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
  if (last) {
    __threadfence();
    lay_out(order, num_experts, tile_rows);
  }
  let_next_start();
}

__global__ void __launch_bounds__(kThreads)
    place_kernel(ExpertOrder order, const int32_t* experts, int64_t num_choices,
                 int32_t first_expert, int32_t num_experts) {
  __shared__ int counts[kMostExperts];
  __shared__ int bases[kMostExperts];
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
    if (mine[i] >= 0) order.choices[bases[mine[i]] + within[i]] = static_cast<int32_t>(c);
  }
  let_next_start();
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
      static_cast<T*>(a.out.data)[choice * a.out.stride + column] = from_float<T>(dot(column));
    }
  }
}

// kWide elements a thread.
template <class T, int kWide>
__global__ void combine_kernel(T* out, int64_t out_stride, const T* parts, int64_t parts_stride,
                               const int32_t* experts, const float* weights, int64_t cols,
                               int32_t top_k, int32_t first_expert, int32_t num_experts) {
  wait_for_previous();
  const int64_t row = blockIdx.x;
  for (int64_t c = int64_t{threadIdx.x} * kWide; c < cols; c += int64_t{blockDim.x} * kWide) {
    float sums[kWide] = {};
    for (int32_t j = 0; j < top_k; ++j) {
      const int64_t choice = row * top_k + j;
      const int e = experts[choice] - first_expert;
      if (e < 0 || e >= num_experts) continue;
      const float weight = weights[choice];
      const auto part =
          *reinterpret_cast<const Vector<T, kWide>*>(parts + choice * parts_stride + c);
#pragma unroll
      for (int i = 0; i < kWide; ++i) sums[i] = fmaf(weight, to_float(part.v[i]), sums[i]);
    }
    Vector<T, kWide> to;
#pragma unroll
    for (int i = 0; i < kWide; ++i) to.v[i] = from_float<T>(sums[i]);
    *reinterpret_cast<Vector<T, kWide>*>(out + row * out_stride + c) = to;
  }
  let_next_start();
}

}  // namespace

void sort_choices(cudaStream_t stream, const ExpertOrder& order, const int32_t* experts,
                  int64_t num_choices, int32_t first_expert, int32_t num_experts,
                  int32_t tile_rows) {
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

void combine_experts(cudaStream_t stream, const View& out, const View& parts,
                     const int32_t* experts, const float* weights, int64_t rows, int64_t cols,
                     int32_t top_k, int32_t first_expert, int32_t num_experts) {
  with_type(out.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kWide = 16 / sizeof(T);
    const bool wide = cols % kWide == 0 && aligned_for(out, kWide) && aligned_for(parts, kWide);
    launch(wide ? combine_kernel<T, kWide> : combine_kernel<T, 1>, static_cast<unsigned>(rows), 256,
           0, stream, static_cast<T*>(out.data), out.stride, static_cast<const T*>(parts.data),
           parts.stride, experts, weights, cols, top_k, first_expert, num_experts);
  });
}

}  // namespace mpinfer::kernels::cuda
