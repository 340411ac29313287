// The weighted sum of what a row's choices add, and, where nothing else is added to it, the
// residual and the next norm in the same pass: the sum is rounded to the rows' type first, as if it
// had been stored between. What the products before do not write is fetched while they still run.
#include "kernels/cuda/device/common.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kAtOnce = 8;

template <class T, int kWide>
struct Choices {
  const T* part[kAtOnce];  // a readable row even where there is no choice
  float weight[kAtOnce];
  bool here[kAtOnce];
};

template <class T, int kWide>
__device__ Choices<T, kWide> choices_of(const CombineArgs& a, int64_t row, int32_t first) {
  Choices<T, kWide> out;
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {
    const int64_t choice = row * a.top_k + min(first + j, a.top_k - 1);
    const int e = a.experts[choice] - a.first_expert;
    out.here[j] = first + j < a.top_k && e >= 0 && e < a.num_experts;
    out.part[j] =
        static_cast<const T*>(a.parts.data) + (out.here[j] ? a.places[choice] : 0) * a.parts.stride;
    out.weight[j] = a.weights[choice];
  }
  return out;
}

template <class T, int kWide>
__device__ void add_parts(const Choices<T, kWide>& choices, int64_t c, float (&sums)[kWide]) {
  Vector<T, kWide> part[kAtOnce];
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {
    part[j] = *reinterpret_cast<const Vector<T, kWide>*>(choices.part[j] + c);
  }
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      const float sum = fmaf(choices.weight[j], to_float(part[j].v[i]), sums[i]);
      sums[i] = choices.here[j] ? sum : sums[i];
    }
  }
}

// A block a row, kWide elements a thread.
template <class T, int kWide, bool kAdd>
__global__ void __launch_bounds__(1024) combine_kernel(CombineArgs a) {
  let_next_start();
  const int64_t row = blockIdx.x;
  const int64_t c = int64_t{threadIdx.x} * kWide;
  const bool exists = c < a.cols;
  Choices<T, kWide> choices = choices_of<T, kWide>(a, row, 0);
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
  wait_for_previous();
  float sums[kWide] = {};
  if (exists) {
    add_parts(choices, c, sums);
    for (int32_t first = kAtOnce; first < a.top_k; first += kAtOnce) {
      add_parts(choices_of<T, kWide>(a, row, first), c, sums);
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

// Any width and alignment; the sum alone.
template <class T>
__global__ void combine_any_kernel(CombineArgs a) {
  wait_for_previous();
  const int64_t row = blockIdx.x;
  for (int64_t c = threadIdx.x; c < a.cols; c += blockDim.x) {
    float sums[1] = {};
    for (int32_t first = 0; first < a.top_k; first += kAtOnce) {
      add_parts(choices_of<T, 1>(a, row, first), c, sums);
    }
    static_cast<T*>(a.out.data)[row * a.out.stride + c] = from_float<T>(sums[0]);
  }
}

bool is_wide(const CombineArgs& a) {
  const int64_t wide = 16 / size_of(a.parts.dtype);
  return a.cols % wide == 0 && a.cols / wide <= 1024 && aligned_for(a.parts, wide) &&
         (a.out.data == nullptr || aligned_for(a.out, wide)) &&
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
    args.residual.data == nullptr
        ? launch(combine_kernel<T, kWide, false>, rows, threads, 0, stream, args)
        : launch(combine_kernel<T, kWide, true>, rows, threads, 0, stream, args);
  });
  return true;
}

}  // namespace mpinfer::kernels::cuda
