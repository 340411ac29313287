// Ops on rows: embedding, norms, bias, activation, gathers, copies; a kernel that
// holds the stream. Sums in f32 in registers.
#include "kernels/cuda/device/common.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kVector = 8;  // elements a thread loads at once where rows are aligned
constexpr int kChunks = 4;  // of them it keeps in registers: rows up to 1024 * 8 * 4 elements

template <class T, int V>
__global__ void embedding_kernel(T* out, int64_t stride, int64_t cols, const T* table,
                                 int64_t table_rows, const int32_t* ids, int32_t first_id,
                                 float scale) {
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const int64_t id = int64_t{ids[row]} - first_id;
  const bool here = id >= 0 && id < table_rows;
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * V; c < cols; c += int64_t{blockDim.x} * V) {
    Vector<T, V> x;
    if (here) {
      x = *reinterpret_cast<const Vector<T, V>*>(table + id * cols + c);
      if (scale != 1.0F) {
#pragma unroll
        for (int i = 0; i < V; ++i) x.v[i] = from_float<T>(scale * to_float(x.v[i]));
      }
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) x.v[i] = from_float<T>(0.0F);
    }
    *reinterpret_cast<Vector<T, V>*>(out + row * stride + c) = x;
  }
}

template <class T>
struct NormArgs {
  T* out;
  T* residual;
  const T* x;
  int64_t out_stride, residual_stride, x_stride, cols;
  float scale;
  const float* weight;
  float eps;
};

// One block a row; the row stays in registers between the two passes. The weight's first part is
// fetched while the kernel before still runs.
template <class T, bool kResidual, bool kOut>
__global__ void __launch_bounds__(1024) norm_kernel(NormArgs<T> a) {
  let_next_start();
  Vector<float, kVector> weight;
  const auto fetch_weight = [&](int64_t c) {
    if (kOut && c < a.cols) weight = *reinterpret_cast<const Vector<float, kVector>*>(a.weight + c);
  };
  fetch_weight(static_cast<int64_t>(threadIdx.x) * kVector);
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const T* x = a.x + row * a.x_stride;
  T* residual = kResidual ? a.residual + row * a.residual_stride : nullptr;
  float values[kChunks][kVector];
  float squares = 0.0F;
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int64_t c = (static_cast<int64_t>(threadIdx.x) + chunk * int64_t{blockDim.x}) * kVector;
    if (c >= a.cols) break;
    const auto in = *reinterpret_cast<const Vector<T, kVector>*>(x + c);
    Vector<T, kVector> old;
    if (kResidual) old = *reinterpret_cast<const Vector<T, kVector>*>(residual + c);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      float value = to_float(in.v[i]);
      if (kResidual) {
        value = to_float(old.v[i]) + a.scale * value;
        old.v[i] = from_float<T>(value);
      }
      values[chunk][i] = value;
      squares += value * value;
    }
    if (kResidual) *reinterpret_cast<Vector<T, kVector>*>(residual + c) = old;
  }
  if (!kOut) return;
  const float inverse = rsqrtf(block_sum(squares) / static_cast<float>(a.cols) + a.eps);
  T* out = a.out + row * a.out_stride;
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int64_t c = (static_cast<int64_t>(threadIdx.x) + chunk * int64_t{blockDim.x}) * kVector;
    if (c >= a.cols) break;
    if (chunk > 0) fetch_weight(c);
    Vector<T, kVector> to;
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      to.v[i] = from_float<T>(values[chunk][i] * inverse * weight.v[i]);
    *reinterpret_cast<Vector<T, kVector>*>(out + c) = to;
  }
}

// Any alignment and width.
template <class T>
__global__ void norm_any_kernel(NormArgs<T> a) {
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const T* x = a.x + row * a.x_stride;
  T* residual = a.residual == nullptr ? nullptr : a.residual + row * a.residual_stride;
  float squares = 0.0F;
  for (int64_t c = threadIdx.x; c < a.cols; c += blockDim.x) {
    float value = to_float(x[c]);
    if (residual != nullptr) {
      value = to_float(residual[c]) + a.scale * value;
      residual[c] = from_float<T>(value);
    }
    squares += value * value;
  }
  if (a.out == nullptr) return;
  const float inverse = rsqrtf(block_sum(squares) / static_cast<float>(a.cols) + a.eps);
  const T* from = residual != nullptr ? residual : x;
  for (int64_t c = threadIdx.x; c < a.cols; c += blockDim.x) {
    a.out[row * a.out_stride + c] = from_float<T>(to_float(from[c]) * inverse * a.weight[c]);
  }
}

template <class T>
__global__ void bias_kernel(T* out, int64_t stride, int64_t cols, const float* bias) {
  wait_for_previous();
  T* row = out + static_cast<int64_t>(blockIdx.x) * stride;
  for (int64_t c = threadIdx.x; c < cols; c += blockDim.x)
    row[c] = from_float<T>(to_float(row[c]) + bias[c]);
}

template <Gate kGate>
__device__ float gated(float gate, float up) {
  if (kGate == Gate::kSilu) return up * gate / (1.0F + __expf(-gate));
  if (kGate == Gate::kGelu) return up * 0.5F * gate * (1.0F + erff(gate * 0.70710678118654752F));
  const float inner = 0.79788456080286536F * (gate + 0.044715F * gate * gate * gate);
  return up * 0.5F * gate * (1.0F + tanhf(inner));
}

template <class T, Gate kGate, int V>
__global__ void gated_kernel(T* out, int64_t out_stride, const T* in, int64_t in_stride,
                             int64_t rows, int64_t cols) {
  wait_for_previous();
  let_next_start();
  const int64_t a_row = cols / V;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= rows * a_row) return;
  const int64_t row = i / a_row;
  const int64_t c = i % a_row * V;
  const auto pair = *reinterpret_cast<const Vector<T, 2 * V>*>(in + row * in_stride + 2 * c);
  Vector<T, V> to;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    to.v[k] = from_float<T>(gated<kGate>(to_float(pair.v[2 * k]), to_float(pair.v[2 * k + 1])));
  }
  *reinterpret_cast<Vector<T, V>*>(out + row * out_stride + c) = to;
}

template <class T, Gate kGate>
__global__ void gated_any_kernel(T* out, int64_t out_stride, const T* in, int64_t in_stride,
                                 int64_t rows, int64_t cols) {
  wait_for_previous();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= rows * cols) return;
  const int64_t row = i / cols;
  const int64_t c = i % cols;
  const T* from = in + row * in_stride + 2 * c;
  out[row * out_stride + c] = from_float<T>(gated<kGate>(to_float(from[0]), to_float(from[1])));
}

// Rows index[r] of x, or row r itself without an index; From and To may differ.
template <class To, class From>
__global__ void copy_kernel(To* out, int64_t out_stride, const From* x, int64_t x_stride,
                            int64_t cols, const int32_t* index) {
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const From* from = x + (index == nullptr ? row : int64_t{index[row]}) * x_stride;
  To* to = out + row * out_stride;
  for (int64_t c = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; c < cols;
       c += int64_t{gridDim.y} * blockDim.x) {
    if constexpr (std::is_same_v<To, From>) {
      to[c] = from[c];
    } else {
      to[c] = from_float<To>(to_float(from[c]));
    }
  }
}

template <class T>
__global__ void fill_kernel(T* out, int64_t stride, int64_t cols, float value) {
  wait_for_previous();
  for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) {
    out[int64_t{blockIdx.x} * stride + c] = from_float<T>(value);
  }
}

template <class T>
__global__ void accumulate_kernel(T* out, const T* x, int64_t count) {
  wait_for_previous();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  if constexpr (std::is_integral_v<T>) {
    out[i] += x[i];
  } else {
    out[i] = from_float<T>(to_float(out[i]) + to_float(x[i]));
  }
}

__global__ void gather_slots_kernel(int32_t* ids, const int32_t* last_token, const int32_t* slots,
                                    int64_t rows) {
  wait_for_previous();
  const int64_t r = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (r < rows && slots[r] >= 0) ids[r] = last_token[slots[r]];
}

__global__ void scatter_slots_kernel(int32_t* last_token, const int32_t* ids, const int32_t* slots,
                                     int64_t rows) {
  wait_for_previous();
  const int64_t r = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (r < rows && slots[r] >= 0) last_token[slots[r]] = ids[r];
}

__global__ void hold_kernel(int64_t nanoseconds) {
  wait_for_previous();
  const auto now = [] {
    int64_t time = 0;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
    return time;
  };
  const int64_t begin = now();
  while (now() - begin < nanoseconds) {
  }
}

int threads_for(int64_t items) {
  const int64_t threads = (items + 31) / 32 * 32;
  return static_cast<int>(threads < 32 ? 32 : threads > 1024 ? 1024 : threads);
}

template <class T>
T* ptr(const View& view) {
  return static_cast<T*>(view.data);
}

template <class To, class From>
void copy_rows(cudaStream_t stream, const View& out, const View& x, int64_t rows, int64_t cols,
               const int32_t* index) {
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(cols > 65536 ? 16 : 1));
  launch(copy_kernel<To, From>, grid,
         dim3(static_cast<unsigned>(threads_for(cols < 512 ? cols : 512))), 0, stream, ptr<To>(out),
         out.stride, ptr<const From>(x), x.stride, cols, index);
}

template <class T, Gate kGate>
void launch_gated(cudaStream_t stream, const View& out, const View& gate_up, int64_t rows,
                  int64_t cols) {
  constexpr int kOut = 16 / static_cast<int>(sizeof(T)) / 2;
  constexpr int kThreads = 256;
  if (cols % kOut == 0 && aligned_for(out, kOut) && aligned_for(gate_up, 2 * kOut)) {
    launch(gated_kernel<T, kGate, kOut>, blocks_for(rows * cols / kOut, kThreads), kThreads, 0,
           stream, ptr<T>(out), out.stride, ptr<const T>(gate_up), gate_up.stride, rows, cols);
  } else {
    launch(gated_any_kernel<T, kGate>, blocks_for(rows * cols, kThreads), kThreads, 0, stream,
           ptr<T>(out), out.stride, ptr<const T>(gate_up), gate_up.stride, rows, cols);
  }
}

}  // namespace

void embedding(cudaStream_t stream, const View& out, int64_t rows, int64_t cols, const void* table,
               int64_t table_rows, const int32_t* ids, int32_t first_id, float scale) {
  with_type(out.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kWide = 16 / static_cast<int>(sizeof(T));
    if (cols % kWide == 0 && aligned_for(out, kWide) &&
        aligned_for({const_cast<void*>(table), cols, out.dtype}, kWide)) {
      launch(embedding_kernel<T, kWide>, static_cast<unsigned>(rows), threads_for(cols / kWide), 0,
             stream, ptr<T>(out), out.stride, cols, static_cast<const T*>(table), table_rows, ids,
             first_id, scale);
    } else {
      launch(embedding_kernel<T, 1>, static_cast<unsigned>(rows), threads_for(cols), 0, stream,
             ptr<T>(out), out.stride, cols, static_cast<const T*>(table), table_rows, ids, first_id,
             scale);
    }
  });
}

void add_norm(cudaStream_t stream, const View& out, const View& residual, const View& x,
              int64_t rows, int64_t cols, float scale, const float* weight, float eps) {
  with_type(x.dtype, [&](auto type) {
    using T = decltype(type);
    const NormArgs<T> args{ptr<T>(out),
                           ptr<T>(residual),
                           ptr<const T>(x),
                           out.stride,
                           residual.stride,
                           x.stride,
                           cols,
                           scale,
                           weight,
                           eps};
    const bool wide = cols % kVector == 0 && cols <= int64_t{1024} * kVector * kChunks &&
                      aligned_for(x, kVector) &&
                      reinterpret_cast<uintptr_t>(weight) % sizeof(Vector<float, kVector>) == 0 &&
                      (out.data == nullptr || aligned_for(out, kVector)) &&
                      (residual.data == nullptr || aligned_for(residual, kVector));
    const auto grid = static_cast<unsigned>(rows);
    if (!wide) {
      launch(norm_any_kernel<T>, grid, threads_for(cols), 0, stream, args);
    } else if (residual.data == nullptr) {
      launch(norm_kernel<T, false, true>, grid, threads_for(cols / kVector), 0, stream, args);
    } else if (out.data == nullptr) {
      launch(norm_kernel<T, true, false>, grid, threads_for(cols / kVector), 0, stream, args);
    } else {
      launch(norm_kernel<T, true, true>, grid, threads_for(cols / kVector), 0, stream, args);
    }
  });
}

void add_bias(cudaStream_t stream, const View& out, int64_t rows, int64_t cols, const float* bias) {
  with_type(out.dtype, [&](auto type) {
    using T = decltype(type);
    launch(bias_kernel<T>, static_cast<unsigned>(rows), threads_for(cols < 256 ? cols : 256), 0,
           stream, ptr<T>(out), out.stride, cols, bias);
  });
}

void gated_activation(cudaStream_t stream, const View& out, const View& gate_up, int64_t rows,
                      int64_t cols, Gate gate) {
  with_type(out.dtype, [&](auto type) {
    using T = decltype(type);
    if (gate == Gate::kSilu) return launch_gated<T, Gate::kSilu>(stream, out, gate_up, rows, cols);
    if (gate == Gate::kGelu) return launch_gated<T, Gate::kGelu>(stream, out, gate_up, rows, cols);
    launch_gated<T, Gate::kGeluTanh>(stream, out, gate_up, rows, cols);
  });
}

void gather_rows(cudaStream_t stream, const View& out, const View& x, int64_t rows, int64_t cols,
                 const int32_t* index) {
  with_type(out.dtype, [&](auto type) {
    using T = decltype(type);
    copy_rows<T, T>(stream, out, x, rows, cols, index);
  });
}

void copy(cudaStream_t stream, const View& out, const View& x, int64_t rows, int64_t cols) {
  if (out.dtype == ElementType::kI32)
    return copy_rows<int32_t, int32_t>(stream, out, x, rows, cols, nullptr);
  with_type(out.dtype, [&](auto to) {
    with_type(x.dtype, [&](auto from) {
      copy_rows<decltype(to), decltype(from)>(stream, out, x, rows, cols, nullptr);
    });
  });
}

void hold(cudaStream_t stream, int64_t nanoseconds) {
  launch(hold_kernel, 1, 32, 0, stream, nanoseconds);
}

void fill(cudaStream_t stream, const View& out, int64_t rows, int64_t cols, float value) {
  with_type(out.dtype, [&](auto type) {
    using T = decltype(type);
    launch(fill_kernel<T>, static_cast<unsigned>(rows), threads_for(cols), 0, stream, ptr<T>(out),
           out.stride, cols, value);
  });
}

void accumulate(cudaStream_t stream, void* out, const void* x, ElementType dtype, int64_t count) {
  const auto add = [&](auto type) {
    using T = decltype(type);
    launch(accumulate_kernel<T>, blocks_for(count, 256), 256, 0, stream, static_cast<T*>(out),
           static_cast<const T*>(x), count);
  };
  if (dtype == ElementType::kI32) return add(int32_t{});
  with_type(dtype, add);
}

void gather_slots(cudaStream_t stream, int32_t* ids, const int32_t* last_token,
                  const int32_t* slots, int64_t rows) {
  launch(gather_slots_kernel, blocks_for(rows, 256), 256, 0, stream, ids, last_token, slots, rows);
}

void scatter_slots(cudaStream_t stream, int32_t* last_token, const int32_t* ids,
                   const int32_t* slots, int64_t rows) {
  launch(scatter_slots_kernel, blocks_for(rows, 256), 256, 0, stream, last_token, ids, slots, rows);
}

}  // namespace mpinfer::kernels::cuda
