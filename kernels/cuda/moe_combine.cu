// The weighted sum of what a row's choices add, and, where nothing else is added to it, the
// residual and the next norm in the same pass: the sum is rounded to the rows' type first, as if it
// had been stored between. What the products before do not write is fetched while they still run.
#include "kernels/cuda/device/common.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kAtOnce = 8;
constexpr int kMostChoices = 32;
constexpr int kFewThreads = 512;  // as many registers as they like

// A row's choices, in shared memory: registers of every thread are for their values, so that all of
// a group are on their way at once.
struct Choices {
  int32_t places[kMostChoices];  // -1: none, or of no local expert
  float weights[kMostChoices];   // then 0
};

__device__ inline void find_choice(Choices& out, const CombineArgs& a, int64_t row, int j) {
  const int64_t choice = row * a.top_k + min(j, a.top_k - 1);
  const int e = a.experts[choice] - a.first_expert;
  const bool here = j < a.top_k && e >= 0 && e < a.num_experts;
  out.places[j] = here ? a.places[choice] : -1;
  out.weights[j] = here ? a.weights[choice] : 0.0F;
}

template <class T, int kWide>
__device__ void add_parts(const CombineArgs& a, const Choices& choices, int first, int64_t c,
                          float (&sums)[kWide]) {
  Vector<T, kWide> part[kAtOnce];
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {  // a readable row even where there is no choice
    part[j] = *reinterpret_cast<const Vector<T, kWide>*>(
        static_cast<const T*>(a.parts.data) + max(0, choices.places[first + j]) * a.parts.stride +
        c);
  }
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {
    const bool here = choices.places[first + j] >= 0;
    const float weight = choices.weights[first + j];
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      const float sum = fmaf(weight, to_float(part[j].v[i]), sums[i]);
      sums[i] = here ? sum : sums[i];
    }
  }
}

// A block a row, kWide elements a thread.
template <class T, int kWide, bool kAdd, int kMostThreads>
__global__ void __launch_bounds__(kMostThreads, 1) combine_kernel(CombineArgs a) {
  __shared__ Choices choices;
  let_next_start();
  const int64_t row = blockIdx.x;
  const int64_t c = int64_t{threadIdx.x} * kWide;
  const bool exists = c < a.cols;
  if (threadIdx.x < kMostChoices) find_choice(choices, a, row, static_cast<int>(threadIdx.x));
  Vector<T, kWide> old;
  Vector<float, kWide> norm;
  T* residual = nullptr;
  if (kAdd && exists) {
    if (a.norm_weight != nullptr) {
      norm = *reinterpret_cast<const Vector<float, kWide>*>(a.norm_weight + c);
    }
    residual = static_cast<T*>(a.residual.data) + row * a.residual.stride + c;
    old = *reinterpret_cast<const Vector<T, kWide>*>(residual);
  }
  __syncthreads();
  wait_for_previous();
  float sums[kWide] = {};
  if (exists) {
    for (int32_t first = 0; first < a.top_k; first += kAtOnce) {
      add_parts<T>(a, choices, first, c, sums);
    }
  }
  Vector<T, kWide> to;
  if constexpr (!kAdd) {
#pragma unroll
    for (int i = 0; i < kWide; ++i) to.v[i] = from_float<T>(sums[i]);
    if (exists) {
      *reinterpret_cast<Vector<T, kWide>*>(static_cast<T*>(a.out.data) + row * a.out.stride + c) =
          to;
    }
  } else {
    float squares = 0.0F;
    if (exists) {
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        sums[i] = to_float(old.v[i]) + a.scale * to_float(from_float<T>(sums[i]));
        squares += sums[i] * sums[i];
        to.v[i] = from_float<T>(sums[i]);
      }
      *reinterpret_cast<Vector<T, kWide>*>(residual) = to;
    }
    if (a.norm_weight == nullptr) return;
    const float inverse = rsqrtf(block_sum(squares) / static_cast<float>(a.cols) + a.eps);
    if (!exists) return;
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      to.v[i] = from_float<T>(sums[i] * inverse * norm.v[i]);
    }
    *reinterpret_cast<Vector<T, kWide>*>(static_cast<T*>(a.out.data) + row * a.out.stride + c) = to;
  }
}

// Any width, alignment and number of choices; the sum alone.
template <class T>
__global__ void combine_any_kernel(CombineArgs a) {
  wait_for_previous();
  const int64_t row = blockIdx.x;
  for (int64_t c = threadIdx.x; c < a.cols; c += blockDim.x) {
    float sum = 0.0F;
    for (int64_t choice = row * a.top_k; choice < (row + 1) * a.top_k; ++choice) {
      const int e = a.experts[choice] - a.first_expert;
      if (e < 0 || e >= a.num_experts) continue;
      const T* part = static_cast<const T*>(a.parts.data) + a.places[choice] * a.parts.stride;
      sum = fmaf(a.weights[choice], to_float(part[c]), sum);
    }
    static_cast<T*>(a.out.data)[row * a.out.stride + c] = from_float<T>(sum);
  }
}

bool is_wide(const CombineArgs& a) {
  const int64_t wide = 16 / size_of(a.parts.dtype);
  return a.top_k <= kMostChoices && a.cols % wide == 0 && a.cols / wide <= 1024 &&
         aligned_for(a.parts, wide) && (a.out.data == nullptr || aligned_for(a.out, wide)) &&
         (a.residual.data == nullptr || aligned_for(a.residual, wide)) &&
         reinterpret_cast<uintptr_t>(a.norm_weight) % 16 == 0;
}

}  // namespace

bool combine_experts(cudaStream_t stream, const CombineArgs& args) {
  const bool wide = is_wide(args);
  if (!wide && args.residual.data != nullptr) return false;
  with_type(args.parts.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kWide = 16 / sizeof(T);
    const auto rows = static_cast<unsigned>(args.rows);
    if (!wide) return launch(combine_any_kernel<T>, rows, 256, 0, stream, args);
    const auto threads = static_cast<unsigned>((args.cols / kWide + 31) / 32 * 32);
    const bool add = args.residual.data != nullptr;
    if (threads <= kFewThreads) {
      launch(add ? combine_kernel<T, kWide, true, kFewThreads>
                 : combine_kernel<T, kWide, false, kFewThreads>,
             rows, threads, 0, stream, args);
    } else {
      launch(add ? combine_kernel<T, kWide, true, 1024> : combine_kernel<T, kWide, false, 1024>,
             rows, threads, 0, stream, args);
    }
  });
  return true;
}

}  // namespace mpinfer::kernels::cuda
