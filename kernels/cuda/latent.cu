// Latent attention (DeepSeek-V2): the write of a token's latent row with its norm and rope, and
// attention of all query heads to the rows themselves. A warp has one query head, its query and
// sums in registers; the heads of a block share a tile of rows in shared memory.
#include "kernels/cuda/device/common.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kWriteThreads = 128;
constexpr int kHeads = 8;  // of a block of attention
constexpr int kThreads = 32 * kHeads;
constexpr int kTileBytes = 40 << 10;
constexpr int kMostTokens = 32;  // of a tile: a lane has one score each

// to = from turned: pair i of the row at places p.first and p.second.
template <class T>
__device__ void rotate_pair(T* to, const T* from, const float* cos_sin, int i, int half,
                            bool interleaved) {
  const int first = interleaved ? 2 * i : i;
  const int second = interleaved ? 2 * i + 1 : i + half;
  const float x = to_float(from[first]);
  const float y = to_float(from[second]);
  const float c = cos_sin[i];
  const float s = cos_sin[half + i];
  to[first] = from_float<T>(x * c - y * s);
  to[second] = from_float<T>(y * c + x * s);
}

// One block a row.
template <class T>
__global__ void __launch_bounds__(kWriteThreads) write_kernel(LatentRopeWriteArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t row = blockIdx.x;
  const int32_t slot = a.slot_mapping[row];
  if (slot < 0) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int width = a.latent_dim + a.rotary_dim;
  const int half = a.rotary_dim / 2;
  const float* cos_sin = a.cos_sin + int64_t{a.positions[row]} * a.rotary_dim;
  const T* from = static_cast<const T*>(a.latent_kv.data) + row * a.latent_kv.stride;
  T* to = static_cast<T*>(a.cache) + slot / a.block_size * a.block_stride +
          int64_t{slot % a.block_size} * width;
  float squares = 0.0F;
  for (int d = thread; d < a.latent_dim; d += kWriteThreads) {
    squares += to_float(from[d]) * to_float(from[d]);
  }
  const float mean = block_sum(squares) / static_cast<float>(a.latent_dim);
  const float inverse = rsqrtf(mean + a.norm_eps);
  for (int d = thread; d < a.latent_dim; d += kWriteThreads) {
    to[d] = from_float<T>(to_float(from[d]) * inverse * a.norm[d]);
  }
  for (int i = thread; i < half; i += kWriteThreads) {
    rotate_pair(to + a.latent_dim, from + a.latent_dim, cos_sin, i, half, a.interleaved);
  }
  const T* q = static_cast<const T*>(a.q.data) + row * a.q.stride;
  T* q_latent = static_cast<T*>(a.q_latent.data) + row * a.q_latent.stride;
  for (int j = thread; j < a.num_heads * half; j += kWriteThreads) {
    const int head = j / half;
    rotate_pair(q_latent + int64_t{head} * width + a.latent_dim,
                q + int64_t{head + 1} * a.q_head_dim - a.rotary_dim, cos_sin, j % half, half,
                a.interleaved);
  }
}

// kDims: elements of a row that a lane has, d = lane + 32 i.
template <class T, int kDims>
__global__ void __launch_bounds__(kThreads)
    attention_kernel(AttentionArgs a, int32_t first_sequence, int32_t tile_tokens) {
  extern __shared__ __align__(16) char shared[];
  T* tile = reinterpret_cast<T*>(shared);  // [tile_tokens, head_dim]
  wait_for_previous();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int sequence = first_sequence + static_cast<int>(blockIdx.z);
  const int first_row = a.cu_seqlens_q[sequence];
  const int rows = a.cu_seqlens_q[sequence + 1] - first_row;
  const int r = static_cast<int>(blockIdx.x);
  if (r >= rows) return;
  const int position = a.context_lens[sequence] - rows + r;
  const int head = static_cast<int>(blockIdx.y) * kHeads + warp;
  const bool mine = head < a.group;
  const int width = a.head_dim;
  const int32_t* table = a.block_table + sequence * a.block_table_stride;
  float q[kDims], o[kDims];
  const T* query = static_cast<const T*>(a.q.data) + (int64_t{first_row} + r) * a.q.stride +
                   int64_t{mine ? head : 0} * width;
#pragma unroll
  for (int i = 0; i < kDims; ++i) {
    const int d = lane + 32 * i;
    q[i] = d < width ? to_float(query[d]) * a.scale : 0.0F;
    o[i] = 0.0F;
  }
  float highest = -INFINITY;
  float total = 0.0F;
  for (int begin = 0; begin <= position; begin += tile_tokens) {
    const int count = min(tile_tokens, position + 1 - begin);
    __syncthreads();
    for (int t = warp; t < count; t += kHeads) {
      const int token = begin + t;
      const T* row = static_cast<const T*>(a.k) + table[token / a.block_size] * a.block_stride +
                     int64_t{token % a.block_size} * width;
      for (int d = lane; d < width; d += 32) tile[t * width + d] = row[d];
    }
    __syncthreads();
    if (!mine) continue;
    float s = -INFINITY;  // of token begin + lane
    for (int t = 0; t < count; ++t) {
      const T* key = tile + t * width;
      float dot = 0.0F;
#pragma unroll
      for (int i = 0; i < kDims; ++i) {
        if (lane + 32 * i < width) dot += q[i] * to_float(key[lane + 32 * i]);
      }
      dot = warp_sum(dot);
      if (lane == t) s = dot;
    }
    float now = s;
    for (int offset = 16; offset > 0; offset /= 2) {
      now = fmaxf(now, __shfl_xor_sync(0xffffffffU, now, offset));
    }
    const float next = fmaxf(highest, now);
    const float base = next == -INFINITY ? 0.0F : next;
    const float factor = expf(highest - base);
    highest = next;
    const float p = expf(s - base);
    total = total * factor + warp_sum(p);
#pragma unroll
    for (int i = 0; i < kDims; ++i) o[i] *= factor;
    for (int t = 0; t < count; ++t) {
      const float w = __shfl_sync(0xffffffffU, p, t);
      const T* value = tile + t * width;
#pragma unroll
      for (int i = 0; i < kDims; ++i) {
        if (lane + 32 * i < a.value_dim) o[i] += w * to_float(value[lane + 32 * i]);
      }
    }
  }
  let_next_start();
  if (!mine) return;
  T* to = static_cast<T*>(a.out.data) + (int64_t{first_row} + r) * a.out.stride +
          int64_t{head} * a.value_dim;
#pragma unroll
  for (int i = 0; i < kDims; ++i) {
    const int d = lane + 32 * i;
    if (d < a.value_dim) to[d] = from_float<T>(o[i] / total);
  }
}

template <class T>
void launch_attention(cudaStream_t stream, const AttentionArgs& args, int32_t first,
                      int32_t sequences, int32_t max_rows) {
  const int row_bytes = args.head_dim * static_cast<int>(sizeof(T));
  const int tokens = kTileBytes / row_bytes < kMostTokens ? kTileBytes / row_bytes : kMostTokens;
  const dim3 grid(static_cast<unsigned>(max_rows), blocks_for(args.group, kHeads),
                  static_cast<unsigned>(sequences));
  const auto bytes = static_cast<size_t>(tokens * row_bytes);
  constexpr int kUsual = 18;  // 512 + 64
  if (args.head_dim <= 32 * kUsual) {
    launch(attention_kernel<T, kUsual>, grid, kThreads, bytes, stream, args, first, tokens);
  } else {
    launch(attention_kernel<T, kMostLatentWidth / 32>, grid, kThreads, bytes, stream, args, first,
           tokens);
  }
}

}  // namespace

void latent_rope_write(cudaStream_t stream, const LatentRopeWriteArgs& args) {
  with_type(args.latent_kv.dtype, [&](auto type) {
    launch(write_kernel<decltype(type)>, static_cast<unsigned>(args.rows), kWriteThreads, 0, stream,
           args);
  });
}

void attention_latent(cudaStream_t stream, const AttentionArgs& args, int32_t first,
                      int32_t sequences, int32_t max_rows) {
  with_type(args.q.dtype, [&](auto type) {
    launch_attention<decltype(type)>(stream, args, first, sequences, max_rows);
  });
}

}  // namespace mpinfer::kernels::cuda
