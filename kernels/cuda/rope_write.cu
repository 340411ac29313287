// One pass over the rows of q, k and v: RMS norm of each head of q and k, rotary embedding (NeoX
// pairing), q in place, k and v into the paged cache. One warp a head; a lane holds pairs (d, d +
// rotary_dim / 2), so that it rotates alone.
#include "kernels/cuda/device/common.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kWarps = 8;

// head_dim = rotary_dim = 64 * N: lane l holds d = 2Nl.. and the partners half a head away, N pairs
// of neighbours.
template <class T, int N>
__device__ void rope_head(const RopeWriteArgs& a, T* head, T* to, const float* norm, bool rotate,
                          int32_t position) {
  constexpr int kHalf = 32 * N;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  auto low = *reinterpret_cast<const Vector<T, N>*>(head + lane * N);
  auto high = *reinterpret_cast<const Vector<T, N>*>(head + kHalf + lane * N);
  if (rotate) {
    float x[N], y[N];
    float squares = 0.0F;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      x[i] = to_float(low.v[i]);
      y[i] = to_float(high.v[i]);
      squares += x[i] * x[i] + y[i] * y[i];
    }
    if (norm != nullptr) {
      const float inverse = rsqrtf(warp_sum(squares) / (2.0F * kHalf) + a.norm_eps);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        x[i] *= inverse * norm[lane * N + i];
        y[i] *= inverse * norm[kHalf + lane * N + i];
      }
    }
    const float* table = a.cos_sin + int64_t{position} * (2 * kHalf);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float c = table[lane * N + i];
      const float s = table[kHalf + lane * N + i];
      low.v[i] = from_float<T>(x[i] * c - y[i] * s);
      high.v[i] = from_float<T>(y[i] * c + x[i] * s);
    }
  }
  *reinterpret_cast<Vector<T, N>*>(to + lane * N) = low;
  *reinterpret_cast<Vector<T, N>*>(to + kHalf + lane * N) = high;
}

// Any head_dim up to 1024, partial or no rotation.
template <class T>
__device__ void rope_head_any(const RopeWriteArgs& a, T* head, T* to, const float* norm,
                              bool norm_or_rope, int32_t position) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float inverse = 1.0F;
  if (norm_or_rope && norm != nullptr) {
    float squares = 0.0F;
    for (int d = lane; d < a.head_dim; d += 32) squares += to_float(head[d]) * to_float(head[d]);
    inverse = rsqrtf(warp_sum(squares) / static_cast<float>(a.head_dim) + a.norm_eps);
  }
  const auto value = [&](int d) {
    const float x = to_float(head[d]);
    return norm_or_rope && norm != nullptr ? x * inverse * norm[d] : x;
  };
  const int rotated = norm_or_rope && a.cos_sin != nullptr ? a.rotary_dim : 0;
  const int half = rotated / 2;
  for (int d = lane; d < half; d += 32) {
    const float c = a.cos_sin[int64_t{position} * rotated + d];
    const float s = a.cos_sin[int64_t{position} * rotated + half + d];
    const float x = value(d);
    const float y = value(d + half);
    to[d] = from_float<T>(x * c - y * s);
    to[d + half] = from_float<T>(y * c + x * s);
  }
  for (int d = rotated + lane; d < a.head_dim; d += 32) to[d] = from_float<T>(value(d));
}

template <class T, int N>
__global__ void rope_write_kernel(RopeWriteArgs a) {
  wait_for_previous();
  let_next_start();
  const int heads = a.num_q_heads + 2 * a.num_kv_heads;
  const int64_t task = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (task >= a.rows * heads) return;
  const int64_t row = task / heads;
  const int head = static_cast<int>(task % heads);
  const int32_t slot = a.slot_mapping[row];
  const bool is_q = head < a.num_q_heads;
  if (!is_q && slot < 0) return;
  T* from = static_cast<T*>(a.qkv.data) + row * a.qkv.stride + int64_t{head} * a.head_dim;
  T* to = from;
  bool rotate = true;
  const float* norm = a.q_norm;
  if (!is_q) {
    const int kv_head = (head - a.num_q_heads) % a.num_kv_heads;
    rotate = head < a.num_q_heads + a.num_kv_heads;
    norm = a.k_norm;
    to = static_cast<T*>(rotate ? a.k : a.v) + slot / a.block_size * a.block_stride +
         kv_head * a.head_stride + int64_t{slot % a.block_size} * a.head_dim;
  }
  const int32_t position = a.positions[row];
  if constexpr (N > 0) {
    rope_head<T, N>(a, from, to, norm, rotate, position);
  } else {
    rope_head_any<T>(a, from, to, norm, rotate, position);
  }
}

}  // namespace

void rope_write(cudaStream_t stream, const RopeWriteArgs& args) {
  const int64_t tasks = args.rows * (args.num_q_heads + 2 * args.num_kv_heads);
  const unsigned grid = blocks_for(tasks, kWarps);
  with_type(args.qkv.dtype, [&](auto type) {
    using T = decltype(type);
    const bool whole =
        args.cos_sin != nullptr && args.rotary_dim == args.head_dim && aligned_for(args.qkv, 2);
    if (whole && args.head_dim == 128)
      return launch(rope_write_kernel<T, 2>, grid, 32 * kWarps, 0, stream, args);
    if (whole && args.head_dim == 64)
      return launch(rope_write_kernel<T, 1>, grid, 32 * kWarps, 0, stream, args);
    launch(rope_write_kernel<T, 0>, grid, 32 * kWarps, 0, stream, args);
  });
}

}  // namespace mpinfer::kernels::cuda
