// Decode attention: one new row a sequence, its context in the paged cache. Bound by reading K and
// V once, so: a block a (sequence, KV head, split) with four warps that walk tiles of 16 tokens on
// their own, each with its own ring of asynchronous copies; all query heads of the KV head at once
// on tensor cores. The products are turned round (S^T = K Q^T, O^T = V^T P^T): tokens and head_dim
// fill the 16 rows of an mma, the up to 8 query heads its 8 columns. Splits of a long context leave
// partial sums; the block that comes last merges them in the order of the splits, behind those that
// attention_prefix_hopper left of a prefix.
#include "kernels/cuda/device/mma.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTile = 16;    // tokens
constexpr int kColumns = 8;  // query heads

template <int D>
constexpr int tile_bytes() {  // of K, and of V
  return kTile * D * 2;
}
template <int D, int kStages>
constexpr int shared_bytes() {
  return kWarps * kStages * 2 * tile_bytes<D>();
}

// Of one (query head, d).
struct Merged {
  float highest = -INFINITY;
  float total = 0.0F;
  float sum = 0.0F;

  __device__ void add(float other_highest, float other_total, float other_sum) {
    const float top = fmaxf(highest, other_highest);
    if (top == -INFINITY) return;
    const float factor = exp2_fast(highest - top);
    const float other_factor = exp2_fast(other_highest - top);
    total = total * factor + other_total * other_factor;
    sum = sum * factor + other_sum * other_factor;
    highest = top;
  }
};

template <class T, int D, int kStages>
__global__ void __launch_bounds__(kThreads) decode_kernel(AttentionArgs a, DecodePlan plan) {
  constexpr int kChunksPerRow = D / 8;  // of 16 bytes
  constexpr int kCopies = kTile * kChunksPerRow / 32;
  extern __shared__ __align__(128) char shared[];
  __shared__ float maxima[kWarps][kColumns];
  __shared__ float totals[kWarps][kColumns];
  __shared__ int last_here;
  const int split = static_cast<int>(blockIdx.x);
  const int kv_head = static_cast<int>(blockIdx.y);
  const int sequence = static_cast<int>(blockIdx.z);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int context = a.context_lens[sequence];
  const int prefix = plan.num_groups == 0 ? 0 : plan.prefix_lens[sequence];
  const int splits = plan.num_splits == 1 ? 1
                                          : (context - prefix + plan.tokens_per_split - 1) /
                                                plan.tokens_per_split;  // of this sequence
  if (split >= splits) return;
  const int first_visible = a.window > 0 ? max(0, context - a.window) : 0;
  const int begin = prefix + split * plan.tokens_per_split;
  const int end = splits == 1 ? context : min(context, begin + plan.tokens_per_split);
  const int64_t row = a.cu_seqlens_q[sequence];
  const int first_tile = max(begin, first_visible) / kTile;
  const int num_tiles = (end + kTile - 1) / kTile - first_tile;  // of the whole block; may be <= 0
  const int my_tiles = num_tiles > warp ? (num_tiles - warp + kWarps - 1) / kWarps : 0;

  char* ring = shared + warp * kStages * 2 * tile_bytes<D>();
  const uint32_t ring_address = shared_address(ring);
  const T* k_base = static_cast<const T*>(a.k) + kv_head * a.head_stride;
  const T* v_base = static_cast<const T*>(a.v) + kv_head * a.head_stride;
  const int32_t* table = a.block_table + sequence * a.block_table_stride;
  // Block numbers of this warp's next 32 tiles, one a lane.
  int32_t blocks = 0;
  const auto fetch = [&](int i) {
    if (i < my_tiles) {
      if (i % 32 == 0) {
        const int mine = i + lane;
        const int token = (first_tile + warp + mine * kWarps) * kTile;
        blocks = mine < my_tiles ? table[token / a.block_size] : 0;
      }
      const int32_t block = __shfl_sync(0xffffffffU, blocks, i % 32);
      const int token = (first_tile + warp + i * kWarps) * kTile;
      const int64_t at = block * a.block_stride + int64_t{token % a.block_size} * D;
      const uint32_t to = ring_address + static_cast<uint32_t>(i % kStages * 2 * tile_bytes<D>());
#pragma unroll
      for (int c = 0; c < kCopies; ++c) {
        const int piece = c * 32 + lane;
        const int r = piece / kChunksPerRow;
        const int chunk = piece % kChunksPerRow;
        const uint32_t offset = static_cast<uint32_t>(r * D * 2 + (chunk ^ (r & 7)) * 16);
        const bool valid = token + r < context;
        copy_async(to + offset, k_base + at + piece * 8, valid);
        copy_async(to + tile_bytes<D>() + offset, v_base + at + piece * 8, valid);
      }
    }
    commit_copies();
  };
  // What the kernel before writes is q and the newest token's K and V: tiles before that one are
  // fetched while it still runs.
  const int tiles_before = (context - 1) / kTile - first_tile - warp;
  int fetched = 0;
  for (; fetched < kStages - 1 && fetched * kWarps < tiles_before; ++fetched) fetch(fetched);
  wait_for_previous();
  for (; fetched < kStages - 1; ++fetched) fetch(fetched);

  // Q^T as the second operand: lane holds columns g = lane / 4, rows d = (lane % 4) * 2 + {0, 1, 8,
  // 9} of every 16.
  uint32_t q[D / 16][2];
  {
    const int g = lane / 4;
    const T* from =
        static_cast<const T*>(a.q.data) + row * a.q.stride + (int64_t{kv_head} * a.group + g) * D;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        q[k][half] =
            g < a.group
                ? *reinterpret_cast<const uint32_t*>(from + k * 16 + half * 8 + lane % 4 * 2)
                : 0U;
      }
    }
  }

  // O^T: rows d = 16m + lane / 4 (+ 8), columns g = (lane % 4) * 2 (+ 1).
  float o[D / 16][4];
#pragma unroll
  for (int m = 0; m < D / 16; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) o[m][i] = 0.0F;
  }
  float highest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0F, 0.0F};  // of this lane's tokens alone
  for (int i = 0; i < my_tiles; ++i) {
    wait_copies<kStages - 2>();
    __syncwarp();
    fetch(i + kStages - 1);
    const uint32_t tile = ring_address + static_cast<uint32_t>(i % kStages * 2 * tile_bytes<D>());
    float s[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    {
      const int r = lane % 16;
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        uint32_t key[4];
        load_matrices(
            key, tile + static_cast<uint32_t>(r * D * 2 + ((2 * k + lane / 16) ^ (r & 7)) * 16));
        multiply<T>(s, key, q[k][0], q[k][1]);
      }
    }
    // S^T: tokens lane / 4 (+ 8), columns (lane % 4) * 2 (+ 1).
    const int token = (first_tile + warp + i * kWarps) * kTile + lane / 4;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int t = token + e / 2 * 8;
      s[e] = t >= first_visible && t < end ? score(s[e], a.scale, a.softcap) : -INFINITY;
    }
    float now[2] = {fmaxf(s[0], s[2]), fmaxf(s[1], s[3])};
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      now[0] = fmaxf(now[0], __shfl_xor_sync(0xffffffffU, now[0], offset));
      now[1] = fmaxf(now[1], __shfl_xor_sync(0xffffffffU, now[1], offset));
    }
    if (__any_sync(0xffffffffU, now[0] > highest[0] || now[1] > highest[1])) {
      float factor[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float next = fmaxf(highest[c], now[c]);
        factor[c] = next == -INFINITY ? 1.0F : exp2_fast(highest[c] - next);
        highest[c] = next;
        total[c] *= factor[c];
      }
#pragma unroll
      for (int m = 0; m < D / 16; ++m) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[m][e] *= factor[e % 2];
      }
    }
    float p[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float base = highest[e % 2] == -INFINITY ? 0.0F : highest[e % 2];
      p[e] = exp2_fast(s[e] - base);
      total[e % 2] += p[e];
    }
    const uint32_t b0 = transposed(pack<T>(p[0], p[1]));
    const uint32_t b1 = transposed(pack<T>(p[2], p[3]));
    {
      const int r = lane % 8 + lane / 16 * 8;
      const int chunk = lane / 8 % 2;
#pragma unroll
      for (int m = 0; m < D / 16; ++m) {
        uint32_t value[4];
        load_matrices_transposed(
            value, tile + tile_bytes<D>() +
                       static_cast<uint32_t>(r * D * 2 + ((2 * m + chunk) ^ (r & 7)) * 16));
        multiply<T>(o[m], value, b0, b1);
      }
    }
    __syncwarp();
  }
  wait_copies<0>();
  let_next_start();

  // The warps together: sums to shared memory [warp][column][d], in the place of the ring.
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2)
      total[c] += __shfl_xor_sync(0xffffffffU, total[c], offset);
    if (lane < 4) {
      maxima[warp][lane * 2 + c] = highest[c];
      totals[warp][lane * 2 + c] = total[c];
    }
  }
  __syncthreads();
  float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int m = 0; m < D / 16; ++m) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int g = lane % 4 * 2 + e % 2;
      const int d = m * 16 + lane / 4 + e / 2 * 8;
      if (g < a.group) sums[(warp * kColumns + g) * (D + 4) + d] = o[m][e];
    }
  }
  __syncthreads();
  const bool whole = splits == 1;
  const auto piece = static_cast<int>(partial_floats(a.group, D));
  float* pieces =
      plan.partial + (int64_t{sequence} * a.num_kv_heads + kv_head) * plan.num_parts() * piece;
  const auto take_pieces = [&](Merged& merged, int g, int d, int first, int count) {
    for (int n = first; n < first + count; ++n) {
      const float* one = pieces + n * piece;
      merged.add(__ldcg(one + a.group * D + g), __ldcg(one + a.group * (D + 1) + g),
                 __ldcg(one + g * D + d));
    }
  };
  const int prefix_splits = prefix > 0 ? plan.prefix_splits : 0;
  const auto store = [&](int g, int d, Merged merged) {
    if (a.sinks != nullptr) merged.add(a.sinks[kv_head * a.group + g] * kLog2E, 1.0F, 0.0F);
    static_cast<T*>(a.out.data)[row * a.out.stride + (int64_t{kv_head} * a.group + g) * D + d] =
        from_float<T>(merged.sum / merged.total);
  };
  for (int i = static_cast<int>(threadIdx.x); i < a.group * D; i += kThreads) {
    const int g = i / D;
    const int d = i % D;
    Merged merged;
    if (whole) take_pieces(merged, g, d, 0, prefix_splits);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      merged.add(maxima[w][g], totals[w][g], sums[(w * kColumns + g) * (D + 4) + d]);
    }
    if (whole) {
      store(g, d, merged);
    } else {
      float* mine = pieces + (plan.prefix_splits + split) * piece;
      mine[g * D + d] = merged.sum;
      if (d == 0) {
        mine[a.group * D + g] = merged.highest;
        mine[a.group * (D + 1) + g] = merged.total;
      }
    }
  }
  if (whole) return;
  __threadfence();
  __syncthreads();
  int32_t* counter = plan.counters + int64_t{sequence} * a.num_kv_heads + kv_head;
  if (threadIdx.x == 0) last_here = atomicAdd(counter, 1) == splits - 1 ? 1 : 0;
  __syncthreads();
  if (last_here == 0) return;
  __threadfence();
  if (threadIdx.x == 0) *counter = 0;
  for (int i = static_cast<int>(threadIdx.x); i < a.group * D; i += kThreads) {
    Merged merged;
    take_pieces(merged, i / D, i % D, 0, prefix_splits);
    take_pieces(merged, i / D, i % D, plan.prefix_splits, splits);
    store(i / D, i % D, merged);
  }
}

template <class T, int D, int kStages>
void launch_decode(cudaStream_t stream, const AttentionArgs& args, int32_t sequences,
                   const DecodePlan& plan) {
  constexpr int kBytes = shared_bytes<D, kStages>();
  static_assert(kWarps * kColumns * (D + 4) * 4 <= kBytes);
  static const cudaError_t raised = cudaFuncSetAttribute(
      decode_kernel<T, D, kStages>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  static_cast<void>(raised);
  const dim3 grid(static_cast<unsigned>(plan.num_splits), static_cast<unsigned>(args.num_kv_heads),
                  static_cast<unsigned>(sequences));
  launch(decode_kernel<T, D, kStages>, grid, kThreads, kBytes, stream, args, plan);
}

template <class T>
void choose_dim(cudaStream_t stream, const AttentionArgs& args, int32_t sequences,
                const DecodePlan& plan) {
  if (args.head_dim == 128) {
    // Where blocks queue for processors a third one on each hides their starts and ends; fewer of
    // them read faster with more tiles on the way.
    const bool queue = int64_t{sequences} * args.num_kv_heads >= int64_t{4} * args.num_processors;
    return queue ? launch_decode<T, 128, 2>(stream, args, sequences, plan)
                 : launch_decode<T, 128, 3>(stream, args, sequences, plan);
  }
  launch_decode<T, 64, 5>(stream, args, sequences, plan);
}

}  // namespace

bool attention_is_fast(const AttentionArgs& args) {
  const bool dims = args.head_dim == 64 || args.head_dim == 128;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return dims && args.q.dtype != ElementType::kF32 && args.block_size % kTile == 0 &&
         args.block_stride % 8 == 0 && args.head_stride % 8 == 0 && aligned(args.k) &&
         aligned(args.v) && aligned(args.q.data) && args.q.stride % 8 == 0 &&
         aligned(args.out.data) && args.out.stride % 8 == 0;
}

void attention_decode(cudaStream_t stream, const AttentionArgs& args, int32_t sequences,
                      const DecodePlan& plan) {
  if (args.q.dtype == ElementType::kBF16) return choose_dim<bf16>(stream, args, sequences, plan);
  choose_dim<__half>(stream, args, sequences, plan);
}

}  // namespace mpinfer::kernels::cuda
