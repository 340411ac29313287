// One pass over the rows of q, k and v: RMS norm of each head of q and k, rotary embedding (NeoX
// pairing), q in place, k and v into the paged cache. A warp, or a part of one, a head, or, of many
// rows, four heads of a row; a lane holds pairs (d, d + rotary_dim / 2), so that it rotates alone.
#include "kernels/cuda/device/common.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kWarps = 8;

template <class T>
struct Place {
  T* from = nullptr;  // null: nothing to do
  T* to = nullptr;
  const float* norm = nullptr;
  bool rotate = false;
  int64_t to_step = 0;  // to the next head
};

template <class T>
__device__ Place<T> place_of(const RopeWriteArgs& a, int64_t row, int head, int32_t slot) {
  Place<T> p;
  const bool is_q = head < a.num_q_heads;
  if (head >= a.num_q_heads + 2 * a.num_kv_heads || (!is_q && slot < 0)) return p;
  p.from = static_cast<T*>(a.qkv.data) + row * a.qkv.stride + int64_t{head} * a.head_dim;
  p.to = p.from;
  p.to_step = a.head_dim;
  p.norm = a.q_norm;
  p.rotate = true;
  if (!is_q) {
    const int kv_head = (head - a.num_q_heads) % a.num_kv_heads;
    p.rotate = head < a.num_q_heads + a.num_kv_heads;
    p.norm = a.k_norm;
    p.to = static_cast<T*>(p.rotate ? a.k : a.v) + slot / a.block_size * a.block_stride +
           kv_head * a.head_stride + int64_t{slot % a.block_size} * a.head_dim;
    p.to_step = a.head_stride;
  }
  return p;
}

// Sums over kLanes neighbouring lanes.
template <int kLanes>
__device__ float lanes_sum(float x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(0xffffffffU, x, offset);
  return x;
}

template <int N>
__device__ void load_floats(float (&to)[N], const float* from) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float4 x = *reinterpret_cast<const float4*>(from + i);
    to[i] = x.x;
    to[i + 1] = x.y;
    to[i + 2] = x.z;
    to[i + 3] = x.w;
  }
}

// head_dim = rotary_dim = 2 * kHalf: a lane holds kWide neighbours and their partners half a head
// away, of kHeads heads in turn. What does not depend on the kernel before is fetched while that
// one still runs.
template <class T, int kHalf, int kHeads>
__device__ void rope_heads(const RopeWriteArgs& a, const Place<T>& p, int32_t position) {
  constexpr int kWide = 16 / static_cast<int>(sizeof(T));
  constexpr int kLanes = kHalf / kWide;
  const int first = static_cast<int>(threadIdx.x) % kLanes * kWide;
  float norm[2][kWide];
  float cosine[kWide], sine[kWide];
  const bool rotate = p.from != nullptr && p.rotate;
  if (rotate) {
    const float* table = a.cos_sin + int64_t{position} * (2 * kHalf) + first;
    load_floats(cosine, table);
    load_floats(sine, table + kHalf);
    if (p.norm != nullptr) {
      load_floats(norm[0], p.norm + first);
      load_floats(norm[1], p.norm + kHalf + first);
    }
  }
  wait_for_previous();
  Vector<T, kWide> low[kHeads]{}, high[kHeads]{};
  if (p.from != nullptr) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const T* from = p.from + h * 2 * kHalf + first;
      low[h] = *reinterpret_cast<const Vector<T, kWide>*>(from);
      high[h] = *reinterpret_cast<const Vector<T, kWide>*>(from + kHalf);
    }
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    float x[kWide], y[kWide];
    float squares = 0.0F;
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      x[i] = to_float(low[h].v[i]);
      y[i] = to_float(high[h].v[i]);
      squares += x[i] * x[i] + y[i] * y[i];
    }
    squares = lanes_sum<kLanes>(squares);
    if (rotate && p.norm != nullptr) {
      const float inverse = rsqrtf(squares / (2.0F * kHalf) + a.norm_eps);
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        x[i] *= inverse * norm[0][i];
        y[i] *= inverse * norm[1][i];
      }
    }
    if (rotate) {
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        low[h].v[i] = from_float<T>(x[i] * cosine[i] - y[i] * sine[i]);
        high[h].v[i] = from_float<T>(y[i] * cosine[i] + x[i] * sine[i]);
      }
    }
    if (p.from == nullptr) continue;
    T* to = p.to + h * p.to_step + first;
    *reinterpret_cast<Vector<T, kWide>*>(to) = low[h];
    *reinterpret_cast<Vector<T, kWide>*>(to + kHalf) = high[h];
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

// kHalf 0: any sizes, a warp a head; else several heads a warp.
template <class T, int kHalf>
constexpr int heads_a_warp() {
  return kHalf == 0 ? 1 : 32 * 16 / static_cast<int>(sizeof(T)) / kHalf;
}

template <class T, int kHalf, int kHeads>
__global__ void __launch_bounds__(32 * kWarps, kHeads > 1 ? 2 : 3)
    rope_write_kernel(RopeWriteArgs a) {
  constexpr int kLanesAHead = 32 / heads_a_warp<T, kHalf>();
  let_next_start();
  const int tasks_a_row = (a.num_q_heads + 2 * a.num_kv_heads) / kHeads;
  const int64_t task = (int64_t{blockIdx.x} * (32 * kWarps) + threadIdx.x) / kLanesAHead;
  const int64_t row = task / tasks_a_row;
  Place<T> p;
  int32_t position = 0;
  if (row < a.rows) {
    position = a.positions[row];
    p = place_of<T>(a, row, static_cast<int>(task % tasks_a_row) * kHeads, a.slot_mapping[row]);
  }
  if constexpr (kHalf > 0) {
    rope_heads<T, kHalf, kHeads>(a, p, position);
  } else {
    wait_for_previous();
    if (p.from == nullptr) return;
    rope_head_any<T>(a, p.from, p.to, p.norm, p.rotate, position);
  }
}

template <class T, int kHalf, int kHeads = 1>
void launch_rope(cudaStream_t stream, const RopeWriteArgs& args) {
  const int64_t tasks = args.rows * (args.num_q_heads + 2 * args.num_kv_heads) / kHeads;
  launch(rope_write_kernel<T, kHalf, kHeads>, blocks_for(tasks, kWarps * heads_a_warp<T, kHalf>()),
         32 * kWarps, 0, stream, args);
}

// Many rows fill the device with a quarter of the warps, each of which has more on its way.
template <class T, int kHalf>
void launch_wide(cudaStream_t stream, const RopeWriteArgs& args) {
  constexpr int kHeads = 4;
  constexpr int64_t kManyRows = 1024;
  const bool many =
      args.rows >= kManyRows && args.num_q_heads % kHeads == 0 && args.num_kv_heads % kHeads == 0;
  many ? launch_rope<T, kHalf, kHeads>(stream, args) : launch_rope<T, kHalf>(stream, args);
}

}  // namespace

void rope_write(cudaStream_t stream, const RopeWriteArgs& args) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  with_type(args.qkv.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kWide = 16 / static_cast<int>(sizeof(T));
    const bool wide = args.cos_sin != nullptr && args.rotary_dim == args.head_dim &&
                      aligned_for(args.qkv, kWide) && aligned(args.k) && aligned(args.v) &&
                      aligned(args.cos_sin) && aligned(args.q_norm) && aligned(args.k_norm) &&
                      args.block_stride % kWide == 0 && args.head_stride % kWide == 0;
    if (wide && args.head_dim == 128) return launch_wide<T, 64>(stream, args);
    if (wide && args.head_dim == 64) return launch_wide<T, 32>(stream, args);
    launch_rope<T, 0>(stream, args);
  });
}

}  // namespace mpinfer::kernels::cuda
