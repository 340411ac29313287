// Attention of prefill chunks: 64 rows of one query head a block, four warps of 16 rows, K and V in
// tiles of 64 tokens through two stages of asynchronous copies, online softmax in registers (Dao,
// "FlashAttention-2", 2023). Causal: a chunk's rows are the last of its context.
#include "kernels/cuda/device/mma.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;
constexpr int kTokens = 64;
constexpr int kStages = 2;

template <int D>
constexpr int row_bytes() {
  return D * 2;
}
template <int D>
constexpr int shared_bytes() {  // Q, then stages of K and V
  return (kRows + kStages * 2 * kTokens) * row_bytes<D>();
}

// Address of 16-byte chunk `chunk` of row r: chunks are swapped inside a row so that ldmatrix meets
// no bank twice.
template <int D>
__device__ uint32_t place(int r, int chunk) {
  return static_cast<uint32_t>(r * row_bytes<D>() + (chunk ^ (r & 7)) * 16);
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads)
    prefill_kernel(AttentionArgs a, int32_t first_sequence) {
  constexpr int kChunks = D / 8;  // of 16 bytes a row
  extern __shared__ __align__(128) char shared[];
  const int head = static_cast<int>(blockIdx.y);
  const int sequence = first_sequence + static_cast<int>(blockIdx.z);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  wait_for_previous();
  const int first_row = a.cu_seqlens_q[sequence];
  const int rows = a.cu_seqlens_q[sequence + 1] - first_row;
  // The longest tasks, at the end of a chunk, start first.
  const int tile = (rows + kRows - 1) / kRows - 1 - static_cast<int>(blockIdx.x);
  if (tile < 0) return;
  const int context = a.context_lens[sequence];
  const int row0 = tile * kRows;
  const int position0 = context - rows + row0;  // of the block's first row
  const int last_position = min(context - 1, position0 + kRows - 1);
  const int first_visible = a.window > 0 ? max(0, position0 - a.window + 1) : 0;
  const int kv_head = head / a.group;
  const T* k_base = static_cast<const T*>(a.k) + kv_head * a.head_stride;
  const T* v_base = static_cast<const T*>(a.v) + kv_head * a.head_stride;
  const int32_t* table = a.block_table + sequence * a.block_table_stride;
  const uint32_t q_at = shared_address(shared);
  const uint32_t ring = q_at + kRows * row_bytes<D>();

  for (int i = static_cast<int>(threadIdx.x); i < kRows * kChunks; i += kThreads) {
    const int r = i / kChunks;
    const T* from = static_cast<const T*>(a.q.data) + (int64_t{first_row} + row0 + r) * a.q.stride +
                    int64_t{head} * D + i % kChunks * 8;
    copy_async(q_at + place<D>(r, i % kChunks), from, row0 + r < rows);
  }
  const int first_tile = first_visible / kTokens;
  const int end_tile = last_position / kTokens + 1;
  const auto fetch = [&](int t) {
    if (t < end_tile) {
      const uint32_t k_to =
          ring + static_cast<uint32_t>(t % kStages * 2 * kTokens * row_bytes<D>());
      const uint32_t v_to = k_to + kTokens * row_bytes<D>();
#pragma unroll 4
      for (int i = static_cast<int>(threadIdx.x); i < kTokens * kChunks; i += kThreads) {
        const int r = i / kChunks;
        const int token = t * kTokens + r;
        // Blocks that a window has left behind have no entry.
        const bool valid = token < context && token / a.block_size >= first_visible / a.block_size;
        const int64_t block = valid ? table[token / a.block_size] : 0;
        const int64_t at =
            block * a.block_stride + int64_t{token % a.block_size} * D + i % kChunks * 8;
        copy_async(k_to + place<D>(r, i % kChunks), k_base + at, valid);
        copy_async(v_to + place<D>(r, i % kChunks), v_base + at, valid);
      }
    }
    commit_copies();
  };
  fetch(first_tile);

  float o[D / 8][4];  // rows lane / 4 (+ 8), columns 8n + (lane % 4) * 2 (+ 1)
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) o[n][e] = 0.0F;
  }
  float highest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0F, 0.0F};
  const int my_position = position0 + warp * 16 + lane / 4;  // and + 8
  const int warp_first = position0 + warp * 16;
  const int warp_last = warp_first + 15;
  for (int t = first_tile; t < end_tile; ++t) {
    fetch(t + 1);
    wait_copies<1>();
    __syncthreads();
    const uint32_t k_tile =
        ring + static_cast<uint32_t>(t % kStages * 2 * kTokens * row_bytes<D>());
    const uint32_t v_tile = k_tile + kTokens * row_bytes<D>();
    if (t * kTokens <= warp_last) {
      float s[kTokens / 8][4];
#pragma unroll
      for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[n][e] = 0.0F;
      }
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        uint32_t q[4];
        const int r = warp * 16 + lane % 16;
        load_matrices(q, q_at + place<D>(r, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < kTokens / 16; ++n) {
          // Tokens 16n .. 16n + 15 as two column operands: matrices (tokens 0-7, d 0-7), (0-7,
          // 8-15), (8-15, 0-7), (8-15, 8-15).
          uint32_t key[4];
          const int token = n * 16 + lane % 8 + lane / 16 * 8;
          load_matrices(key, k_tile + place<D>(token, 2 * k + lane / 8 % 2));
          multiply<T>(s[2 * n], q, key[0], key[1]);
          multiply<T>(s[2 * n + 1], q, key[2], key[3]);
        }
      }
      const bool all_visible = (t + 1) * kTokens - 1 <= warp_first &&
                               (a.window == 0 || t * kTokens > warp_last - a.window);
      float now[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[n][e] = score(s[n][e], a.scale, a.softcap);
          if (!all_visible) {
            const int token = t * kTokens + n * 8 + lane % 4 * 2 + e % 2;
            const int position = my_position + e / 2 * 8;
            if (token > position || (a.window > 0 && token <= position - a.window))
              s[n][e] = -INFINITY;
          }
          now[e / 2] = fmaxf(now[e / 2], s[n][e]);
        }
      }
      float base[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        now[h] = fmaxf(now[h], __shfl_xor_sync(0xffffffffU, now[h], 1));
        now[h] = fmaxf(now[h], __shfl_xor_sync(0xffffffffU, now[h], 2));
        const float next = fmaxf(highest[h], now[h]);
        base[h] = next == -INFINITY ? 0.0F : next;
        const float factor = exp2_fast(highest[h] - base[h]);
        highest[h] = next;
        total[h] *= factor;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          o[n][2 * h] *= factor;
          o[n][2 * h + 1] *= factor;
        }
      }
#pragma unroll
      for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[n][e] = exp2_fast(s[n][e] - base[e / 2]);
          total[e / 2] += s[n][e];
        }
      }
#pragma unroll
      for (int k = 0; k < kTokens / 16; ++k) {
        const uint32_t p[4] = {pack<T>(s[2 * k][0], s[2 * k][1]), pack<T>(s[2 * k][2], s[2 * k][3]),
                               pack<T>(s[2 * k + 1][0], s[2 * k + 1][1]),
                               pack<T>(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
          uint32_t value[4];
          const int token = k * 16 + lane % 16;
          load_matrices_transposed(value, v_tile + place<D>(token, 2 * n + lane / 16));
          multiply<T>(o[2 * n], p, value[0], value[1]);
          multiply<T>(o[2 * n + 1], p, value[2], value[3]);
        }
      }
    }
    __syncthreads();
  }
  let_next_start();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    total[h] += __shfl_xor_sync(0xffffffffU, total[h], 1);
    total[h] += __shfl_xor_sync(0xffffffffU, total[h], 2);
    const int r = row0 + warp * 16 + lane / 4 + h * 8;
    if (r >= rows) continue;
    float factor = 1.0F;
    if (a.sinks != nullptr) {
      const float sink = a.sinks[head] * kLog2E;
      const float top = fmaxf(sink, highest[h]);
      factor = exp2_fast(highest[h] - top);
      total[h] = total[h] * factor + exp2_fast(sink - top);
    }
    factor /= total[h];
    T* to =
        static_cast<T*>(a.out.data) + (int64_t{first_row} + r) * a.out.stride + int64_t{head} * D;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      *reinterpret_cast<uint32_t*>(to + n * 8 + lane % 4 * 2) =
          pack<T>(o[n][2 * h] * factor, o[n][2 * h + 1] * factor);
    }
  }
}

// Any type, head dim up to 256, block size: one warp a (row, query head), 32 tokens at a time.
constexpr int kAnyDims = 8;  // of head_dim a lane, times 32

template <class T>
__global__ void any_kernel(AttentionArgs a, int32_t first_sequence) {
  __shared__ float query[32 * kAnyDims];
  wait_for_previous();
  const int head = static_cast<int>(blockIdx.y);
  const int sequence = first_sequence + static_cast<int>(blockIdx.z);
  const int lane = static_cast<int>(threadIdx.x);
  const int first_row = a.cu_seqlens_q[sequence];
  const int rows = a.cu_seqlens_q[sequence + 1] - first_row;
  const int r = static_cast<int>(blockIdx.x);
  if (r >= rows) return;
  const int position = a.context_lens[sequence] - rows + r;
  const int first = a.window > 0 ? max(0, position - a.window + 1) : 0;
  const int kv_head = head / a.group;
  const int dims = a.head_dim;
  const int32_t* table = a.block_table + sequence * a.block_table_stride;
  const T* q = static_cast<const T*>(a.q.data) + (int64_t{first_row} + r) * a.q.stride +
               int64_t{head} * dims;
  for (int d = lane; d < dims; d += 32) query[d] = to_float(q[d]);
  __syncwarp();
  const auto at = [&](int token) {
    return table[token / a.block_size] * a.block_stride + kv_head * a.head_stride +
           int64_t{token % a.block_size} * dims;
  };
  float o[kAnyDims] = {};
  float highest = -INFINITY;
  float total = 0.0F;
  for (int begin = first; begin <= position; begin += 32) {
    const int token = begin + lane;
    float s = -INFINITY;
    if (token <= position) {
      const T* key = static_cast<const T*>(a.k) + at(token);
      float dot = 0.0F;
      for (int d = 0; d < dims; ++d) dot += query[d] * to_float(key[d]);
      s = dot * a.scale;
      if (a.softcap > 0.0F) s = a.softcap * tanhf(s / a.softcap);
    }
    float now = s;
    for (int offset = 16; offset > 0; offset /= 2)
      now = fmaxf(now, __shfl_xor_sync(0xffffffffU, now, offset));
    const float next = fmaxf(highest, now);
    const float base = next == -INFINITY ? 0.0F : next;
    const float factor = expf(highest - base);
    highest = next;
    const float p = expf(s - base);
    total = total * factor + warp_sum(p);
#pragma unroll
    for (int i = 0; i < kAnyDims; ++i) o[i] *= factor;
    const int count = min(32, position - begin + 1);
    for (int t = 0; t < count; ++t) {
      const float w = __shfl_sync(0xffffffffU, p, t);
      const T* value = static_cast<const T*>(a.v) + at(begin + t);
#pragma unroll
      for (int i = 0; i < kAnyDims; ++i) {
        if (i * 32 + lane < dims) o[i] += w * to_float(value[i * 32 + lane]);
      }
    }
  }
  float factor = 1.0F;
  if (a.sinks != nullptr) {
    const float top = fmaxf(a.sinks[head], highest);
    factor = expf(highest - top);
    total = total * factor + expf(a.sinks[head] - top);
  }
  T* to =
      static_cast<T*>(a.out.data) + (int64_t{first_row} + r) * a.out.stride + int64_t{head} * dims;
#pragma unroll
  for (int i = 0; i < kAnyDims; ++i) {
    if (i * 32 + lane < dims) to[i * 32 + lane] = from_float<T>(o[i] * factor / total);
  }
}

template <class T, int D>
void launch_prefill(cudaStream_t stream, const AttentionArgs& args, int32_t first,
                    int32_t sequences, int32_t max_rows) {
  static const cudaError_t raised = cudaFuncSetAttribute(
      prefill_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<D>());
  static_cast<void>(raised);
  const dim3 grid(blocks_for(max_rows, kRows),
                  static_cast<unsigned>(args.num_kv_heads * args.group),
                  static_cast<unsigned>(sequences));
  launch(prefill_kernel<T, D>, grid, kThreads, shared_bytes<D>(), stream, args, first);
}

template <class T>
void choose_dim(cudaStream_t stream, const AttentionArgs& args, int32_t first, int32_t sequences,
                int32_t max_rows) {
  if (args.head_dim == 128) return launch_prefill<T, 128>(stream, args, first, sequences, max_rows);
  launch_prefill<T, 64>(stream, args, first, sequences, max_rows);
}

}  // namespace

void attention_prefill(cudaStream_t stream, const AttentionArgs& args, int32_t first,
                       int32_t sequences, int32_t max_rows) {
  if (args.q.dtype == ElementType::kBF16)
    return choose_dim<bf16>(stream, args, first, sequences, max_rows);
  choose_dim<__half>(stream, args, first, sequences, max_rows);
}

void attention_any(cudaStream_t stream, const AttentionArgs& args, int32_t first, int32_t sequences,
                   int32_t max_rows) {
  const dim3 grid(static_cast<unsigned>(max_rows),
                  static_cast<unsigned>(args.num_kv_heads * args.group),
                  static_cast<unsigned>(sequences));
  with_type(args.q.dtype, [&](auto type) {
    launch(any_kernel<decltype(type)>, grid, 32, 0, stream, args, first);
  });
}

}  // namespace mpinfer::kernels::cuda
