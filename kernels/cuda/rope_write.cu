// One pass over the rows of q, k and v: RMS norm of each head of q and k, rotary embedding (NeoX
// pairing), q in place, k and v into the paged cache. One warp a head; a lane holds pairs (d, d +
// rotary_dim / 2), so that it rotates alone.
#include "kernels/cuda/device/common.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kWarps = 8;

constexpr int kHeads = 4;  // heads of one row a warp takes at once

template <class T>
struct Place {
  T* from = nullptr;  // null: nothing to do
  T* to = nullptr;
  const float* norm = nullptr;
  bool rotate = false;
};

template <class T>
__device__ Place<T> place_of(const RopeWriteArgs& a, int64_t row, int head, int32_t slot) {
  Place<T> p;
  const bool is_q = head < a.num_q_heads;
  if (head >= a.num_q_heads + 2 * a.num_kv_heads || (!is_q && slot < 0)) return p;
  p.from = static_cast<T*>(a.qkv.data) + row * a.qkv.stride + int64_t{head} * a.head_dim;
  p.to = p.from;
  p.norm = a.q_norm;
  p.rotate = true;
  if (!is_q) {
    const int kv_head = (head - a.num_q_heads) % a.num_kv_heads;
    p.rotate = head < a.num_q_heads + a.num_kv_heads;
    p.norm = a.k_norm;
    p.to = static_cast<T*>(p.rotate ? a.k : a.v) + slot / a.block_size * a.block_stride +
           kv_head * a.head_stride + int64_t{slot % a.block_size} * a.head_dim;
  }
  return p;
}

// head_dim = rotary_dim = 64 * N: lane l holds d = Nl .. and the partners half a head away.
template <class T, int N>
__device__ void rope_heads(const RopeWriteArgs& a, const Place<T> (&places)[kHeads],
                           int32_t position) {
  constexpr int kHalf = 32 * N;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Vector<T, N> low[kHeads], high[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (places[h].from == nullptr) continue;
    low[h] = *reinterpret_cast<const Vector<T, N>*>(places[h].from + lane * N);
    high[h] = *reinterpret_cast<const Vector<T, N>*>(places[h].from + kHalf + lane * N);
  }
  const float* table = a.cos_sin + int64_t{position} * (2 * kHalf);
  float c[N], s[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    c[i] = table[lane * N + i];
    s[i] = table[kHalf + lane * N + i];
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const Place<T>& p = places[h];
    if (p.from == nullptr) continue;
    if (p.rotate) {
      float x[N], y[N];
      float squares = 0.0F;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        x[i] = to_float(low[h].v[i]);
        y[i] = to_float(high[h].v[i]);
        squares += x[i] * x[i] + y[i] * y[i];
      }
      if (p.norm != nullptr) {
        const float inverse = rsqrtf(warp_sum(squares) / (2.0F * kHalf) + a.norm_eps);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          x[i] *= inverse * p.norm[lane * N + i];
          y[i] *= inverse * p.norm[kHalf + lane * N + i];
        }
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        low[h].v[i] = from_float<T>(x[i] * c[i] - y[i] * s[i]);
        high[h].v[i] = from_float<T>(y[i] * c[i] + x[i] * s[i]);
      }
    }
    *reinterpret_cast<Vector<T, N>*>(p.to + lane * N) = low[h];
    *reinterpret_cast<Vector<T, N>*>(p.to + kHalf + lane * N) = high[h];
  }
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
__global__ void rope_write_kernel(RopeWriteArgs a, int heads_a_warp) {
  wait_for_previous();
  let_next_start();
  const int heads = a.num_q_heads + 2 * a.num_kv_heads;
  const int tasks_a_row = (heads + heads_a_warp - 1) / heads_a_warp;
  const int64_t task = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (task >= a.rows * tasks_a_row) return;
  const int64_t row = task / tasks_a_row;
  const int head = static_cast<int>(task % tasks_a_row) * heads_a_warp;
  const int32_t slot = a.slot_mapping[row];
  const int32_t position = a.positions[row];
  if constexpr (N > 0) {
    Place<T> places[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) places[h] = place_of<T>(a, row, head + h, slot);
    rope_heads<T, N>(a, places, position);
  } else {
    const Place<T> p = place_of<T>(a, row, head, slot);
    if (p.from != nullptr) rope_head_any<T>(a, p.from, p.to, p.norm, p.rotate, position);
  }
}

}  // namespace

void rope_write(cudaStream_t stream, const RopeWriteArgs& args) {
  const int heads = args.num_q_heads + 2 * args.num_kv_heads;
  const auto grid = [&](int heads_a_warp) {
    return blocks_for(args.rows * ((heads + heads_a_warp - 1) / heads_a_warp), kWarps);
  };
  with_type(args.qkv.dtype, [&](auto type) {
    using T = decltype(type);
    const bool whole =
        args.cos_sin != nullptr && args.rotary_dim == args.head_dim && aligned_for(args.qkv, 2);
    if (whole && args.head_dim == 128) {
      launch(rope_write_kernel<T, 2>, grid(kHeads), 32 * kWarps, 0, stream, args, kHeads);
    } else if (whole && args.head_dim == 64) {
      launch(rope_write_kernel<T, 1>, grid(kHeads), 32 * kWarps, 0, stream, args, kHeads);
    } else {
      launch(rope_write_kernel<T, 0>, grid(1), 32 * kWarps, 0, stream, args, 1);
    }
  });
}

}  // namespace mpinfer::kernels::cuda
