// Decode attention: one new row a sequence, its context in the paged cache. Bound by reading K and
// V once, so: a block a (sequence, KV head, split) with four warps that walk tiles of 16 tokens on
// their own, each with its own ring of asynchronous copies; all query heads of the KV head at once
// on tensor cores. The products are turned round (S^T = K Q^T, O^T = V^T P^T): tokens and head_dim
// fill the 16 rows of an mma, the up to 8 query heads its 8 columns. Splits of a context merge
// their sums in the order of the splits, behind those that attention_prefix_hopper left of a
// prefix: each block of a cluster a share of the elements, through shared memory; without clusters
// the block that comes last all of them, through partial sums in memory.
#include "kernels/cuda/device/attention_parts.cuh"

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

template <class T, int D, int kStages, bool kCluster>
__global__ void __launch_bounds__(kThreads) decode_kernel(AttentionArgs a, DecodePlan plan) {
  constexpr int kChunksPerRow = D / 8;  // of 16 bytes
  constexpr int kCopies = kTile * kChunksPerRow / 32;
  extern __shared__ __align__(128) char shared[];
  __shared__ alignas(16) float maxima[kWarps][kColumns];
  __shared__ alignas(16) float totals[kWarps][kColumns];
  __shared__ alignas(16) float tops[kColumns];
  __shared__ int last_here;
  __shared__ std::conditional_t<kCluster, Inbox<D, kColumns>, int> inbox;
  if constexpr (kCluster) cluster_arrive();
  const int split = static_cast<int>(blockIdx.x);
  const int kv_head = static_cast<int>(blockIdx.y);
  const int sequence = static_cast<int>(blockIdx.z);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int32_t* table = a.block_table + sequence * a.block_table_stride;
  // Where this warp's next 32 tiles lie, one a lane; the first are asked for before it is known
  // where the context ends.
  const auto places_from = [&](int tile) {
    const int token = (tile + warp + lane * kWarps) * kTile;
    const int block = min(token / a.block_size, static_cast<int>(a.block_table_stride) - 1);
    return table[block] * a.block_stride + int64_t{token % a.block_size} * D;
  };
  const int guess = split * plan.tokens_per_split / kTile;
  int64_t places = places_from(guess);
  const int context = a.context_lens[sequence];
  const int64_t row = a.cu_seqlens_q[sequence];
  const int prefix = plan.num_groups == 0 ? 0 : plan.prefix_lens[sequence];
  const int first_visible = a.window > 0 ? max(0, context - a.window) : 0;
  const int first = max(prefix, first_visible / kTile * kTile);
  const int splits = plan.num_splits == 1 ? 1
                                          : (context - first + plan.tokens_per_split - 1) /
                                                plan.tokens_per_split;  // of this sequence
  if (split >= splits) return;
  const int begin = first + split * plan.tokens_per_split;
  const int end = splits == 1 ? context : min(context, begin + plan.tokens_per_split);
  const int first_tile = begin / kTile;
  const int num_tiles = (end + kTile - 1) / kTile - first_tile;  // of the whole block
  const int my_tiles = num_tiles > warp ? (num_tiles - warp + kWarps - 1) / kWarps : 0;
  if (first_tile != guess) places = places_from(first_tile);

  char* ring = shared + warp * kStages * 2 * tile_bytes<D>();
  const uint32_t ring_address = shared_address(ring);
  const T* k_base = static_cast<const T*>(a.k) + kv_head * a.head_stride;
  const T* v_base = static_cast<const T*>(a.v) + kv_head * a.head_stride;
  const auto fetch = [&](int i) {
    if (i < my_tiles) {
      if (i > 0 && i % 32 == 0) places = places_from(first_tile + i * kWarps);
      const int64_t at = __shfl_sync(0xffffffffU, places, i % 32);
      const int token = (first_tile + warp + i * kWarps) * kTile;
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
    const uint32_t tile = ring_address + static_cast<uint32_t>(i % kStages * 2 * tile_bytes<D>());
    uint32_t loaded[D / 16][4];  // of K, then of V: all on their way before the first product
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      const int r = lane % 16;
      load_matrices(loaded[k],
                    tile + static_cast<uint32_t>(r * D * 2 + ((2 * k + lane / 16) ^ (r & 7)) * 16));
    }
    fetch(i + kStages - 1);
    float s[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    float odd[4] = {0.0F, 0.0F, 0.0F, 0.0F};  // two chains of products: half the wait
#pragma unroll
    for (int k = 0; k < D / 16; ++k) multiply<T>(k % 2 == 0 ? s : odd, loaded[k], q[k][0], q[k][1]);
#pragma unroll
    for (int m = 0; m < D / 16; ++m) {
      const int r = lane % 8 + lane / 16 * 8;
      const int chunk = lane / 8 % 2;
      load_matrices_transposed(
          loaded[m], tile + tile_bytes<D>() +
                         static_cast<uint32_t>(r * D * 2 + ((2 * m + chunk) ^ (r & 7)) * 16));
    }
    // S^T: tokens lane / 4 (+ 8), columns (lane % 4) * 2 (+ 1).
    const int token = (first_tile + warp + i * kWarps) * kTile + lane / 4;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int t = token + e / 2 * 8;
      s[e] = t >= first_visible && t < end ? score(s[e] + odd[e], a.scale, a.softcap) : -INFINITY;
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
#pragma unroll
    for (int m = 0; m < D / 16; ++m) multiply<T>(o[m], loaded[m], b0, b1);
    __syncwarp();
  }
  wait_copies<0>();
  let_next_start();  // after the wait: kernels behind read older results before theirs

  // The warps together: sums, as if all had the same highest score, to shared memory
  // [warp][column][d], in the place of the ring.
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2)
      total[c] += __shfl_xor_sync(0xffffffffU, total[c], offset);
  }
  if (lane < 4) {
    *reinterpret_cast<float2*>(&maxima[warp][lane * 2]) = make_float2(highest[0], highest[1]);
  }
  __syncthreads();
  float2 top = {-INFINITY, -INFINITY};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float2 one = *reinterpret_cast<const float2*>(&maxima[w][lane % 4 * 2]);
    top = make_float2(fmaxf(top.x, one.x), fmaxf(top.y, one.y));
  }
  const float factor[2] = {top.x == -INFINITY ? 0.0F : exp2_fast(highest[0] - top.x),
                           top.y == -INFINITY ? 0.0F : exp2_fast(highest[1] - top.y)};
  if (lane < 4) {
    *reinterpret_cast<float2*>(&totals[warp][lane * 2]) =
        make_float2(total[0] * factor[0], total[1] * factor[1]);
    if (warp == 0) *reinterpret_cast<float2*>(&tops[lane * 2]) = top;
  }
  float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int m = 0; m < D / 16; ++m) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int g = lane % 4 * 2 + e % 2;
      const int d = m * 16 + lane / 4 + e / 2 * 8;
      if (g < a.group) sums[(warp * kColumns + g) * (D + 4) + d] = o[m][e] * factor[e % 2];
    }
  }
  __syncthreads();
  const bool whole = splits == 1;
  const Heads<T, D> heads{a, row, kv_head,
                          plan.partial + (int64_t{sequence} * a.num_kv_heads + kv_head) *
                                             plan.num_parts() * partial_floats(a.group, D)};
  const int prefix_splits = prefix > 0 ? plan.prefix_splits : 0;
  const auto for_quads = [&](auto f) {
    for (int i = static_cast<int>(threadIdx.x); i < heads.quads(); i += kThreads) f(i);
  };
  if constexpr (kCluster) {
    if (!whole) cluster_wait();
  }
  for_quads([&](int i) {
    const int g = i / heads.kQuads;
    Merged merged{.highest = tops[g]};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const int at = (w * kColumns + g) * (D + 4) + i % heads.kQuads * 4;
      const float4 one = *reinterpret_cast<const float4*>(sums + at);
      merged.total += totals[w][g];
      merged.sum.x += one.x;
      merged.sum.y += one.y;
      merged.sum.z += one.z;
      merged.sum.w += one.w;
    }
    if (whole) {
      heads.take_parts(merged, i, 0, prefix_splits);
      heads.store(merged, i);
    } else if constexpr (kCluster) {
      inbox.send(merged, i, split, splits, heads.quads());
    } else {
      heads.leave_part(merged, i, plan.prefix_splits + split);
    }
  });
  if (whole) return;
  if constexpr (kCluster) {
    cluster_sync();
    for (int i = static_cast<int>(threadIdx.x) * splits + split; i < heads.quads();
         i += kThreads * splits) {
      Merged merged;
      heads.take_parts(merged, i, 0, prefix_splits);
      inbox.take(merged, i, splits, heads.quads());
      heads.store(merged, i);
    }
  } else {
    __threadfence();
    __syncthreads();
    int32_t* counter = plan.counters + int64_t{sequence} * a.num_kv_heads + kv_head;
    if (threadIdx.x == 0) last_here = atomicAdd(counter, 1) == splits - 1 ? 1 : 0;
    __syncthreads();
    if (last_here == 0) return;
    __threadfence();
    if (threadIdx.x == 0) *counter = 0;
    for_quads([&](int i) {
      Merged merged;
      heads.take_parts(merged, i, 0, prefix_splits);
      heads.take_parts(merged, i, plan.prefix_splits, splits);
      heads.store(merged, i);
    });
  }
}

template <class T, int D, int kStages, bool kCluster>
void launch_decode(cudaStream_t stream, const AttentionArgs& args, int32_t sequences,
                   const DecodePlan& plan) {
  constexpr int kBytes = shared_bytes<D, kStages>();
  static_assert(kWarps * kColumns * (D + 4) * 4 <= kBytes);
  const auto kernel = decode_kernel<T, D, kStages, kCluster>;
  static const cudaError_t raised =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  static_cast<void>(raised);
  const auto splits = static_cast<unsigned>(plan.num_splits);
  const dim3 grid(splits, static_cast<unsigned>(args.num_kv_heads),
                  static_cast<unsigned>(sequences));
  launch_clusters(kCluster ? splits : 1U, kernel, grid, kThreads, kBytes, stream, args, plan);
}

template <class T, int D, int kStages>
void with_clusters_or_not(cudaStream_t stream, const AttentionArgs& args, int32_t sequences,
                          const DecodePlan& plan) {
  return plan.clusters ? launch_decode<T, D, kStages, true>(stream, args, sequences, plan)
                       : launch_decode<T, D, kStages, false>(stream, args, sequences, plan);
}

template <class T>
void choose_dim(cudaStream_t stream, const AttentionArgs& args, int32_t sequences,
                const DecodePlan& plan) {
  if (args.head_dim == 128) {
    // Where blocks queue for processors a third one on each hides their starts and ends; fewer of
    // them read faster with more tiles on the way.
    const bool queue = int64_t{sequences} * args.num_kv_heads >= int64_t{4} * args.num_processors;
    return queue ? with_clusters_or_not<T, 128, 2>(stream, args, sequences, plan)
                 : with_clusters_or_not<T, 128, 3>(stream, args, sequences, plan);
  }
  with_clusters_or_not<T, 64, 5>(stream, args, sequences, plan);
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
