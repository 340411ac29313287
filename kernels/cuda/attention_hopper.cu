// Attention of many rows over the same tokens on sm_90a: 128 rows a block, two warpgroups of 64
// rows, K and V in tiles of 64 tokens through two stages; both products by wgmma, online softmax in
// registers (Shah et al., "FlashAttention-3", 2024, without its producer warps). Two uses. Prefill
// chunks: rows are those of one query head, each sees the tokens up to its own; the same arguments
// and results as attention_prefill.cu, which other devices use. Prefix groups of decode rows: rows
// are (member, query head of the KV head), all see all tokens of the shared prefix; what comes out
// are partial sums that decode attention merges with those of a member's own tokens.
#include "kernels/cuda/device/warpgroup.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kGroups = 2;
constexpr int kThreads = 128 * kGroups;
constexpr int kRows = 64 * kGroups;
constexpr int kTokens = 64;
constexpr int kStages = 2;
constexpr int kPanelBytes = 64 * 128;  // 64 rows of 64 elements

template <int D>
constexpr int panels() {
  return D / 64;
}
template <int D>
constexpr int shared_bytes() {  // Q of each group, then stages of K and V, and room to align
  return (kGroups + kStages * 2) * panels<D>() * kPanelBytes + 1024;
}

__device__ inline uint32_t place(int row, int chunk) {
  return static_cast<uint32_t>(chunk / 8 * kPanelBytes + row * 128 +
                               ((chunk % 8) ^ (row & 7)) * 16);
}

// What a block works on.
template <class T>
struct Task {
  int sequence;  // whose block table
  int kv_head;
  int rows;         // that there are
  int row0;         // the first of this block's
  int begin_token;  // tokens that any of them sees: [begin_token, end_token)
  int end_token;
  const T* q;
  int64_t q_stride;
};

template <class T, int D>
__device__ Task<T> chunk_task(const AttentionArgs& a, int32_t first_sequence) {
  Task<T> task{};
  const int head = static_cast<int>(blockIdx.y);
  task.sequence = first_sequence + static_cast<int>(blockIdx.z);
  task.kv_head = head / a.group;
  const int first_row = a.cu_seqlens_q[task.sequence];
  task.rows = a.cu_seqlens_q[task.sequence + 1] - first_row;
  // The longest tasks, at the end of a chunk, start first.
  task.row0 = ((task.rows + kRows - 1) / kRows - 1 - static_cast<int>(blockIdx.x)) * kRows;
  const int context = a.context_lens[task.sequence];
  const int position0 = context - task.rows + task.row0;
  task.begin_token = a.window > 0 ? max(0, position0 - a.window + 1) : 0;
  task.end_token = min(context, position0 + kRows);
  task.q = static_cast<const T*>(a.q.data) + first_row * a.q.stride + int64_t{head} * D;
  task.q_stride = a.q.stride;
  return task;
}

template <class T, int D>
__device__ Task<T> prefix_task(const AttentionArgs& a, const DecodePlan& plan) {
  Task<T> task{};
  const PrefixGroup group = plan.groups[blockIdx.z];
  task.sequence = group.first_sequence;
  task.kv_head = static_cast<int>(blockIdx.y);
  task.rows = group.num_sequences * a.group;
  task.row0 = static_cast<int>(blockIdx.x) / plan.prefix_splits * kRows;
  const int split = static_cast<int>(blockIdx.x) % plan.prefix_splits;
  task.begin_token = split * plan.tokens_per_prefix_split;
  task.end_token = min(group.num_tokens, task.begin_token + plan.tokens_per_prefix_split);
  task.q = static_cast<const T*>(a.q.data) + group.first_sequence * a.q.stride +
           int64_t{task.kv_head} * a.group * D;
  task.q_stride = a.q.stride;
  return task;
}

template <class T, int D, bool kPrefix>
__global__ void __launch_bounds__(kThreads, 2)
    hopper_kernel(AttentionArgs a, int32_t first_sequence, DecodePlan plan) {
  constexpr int kChunks = D / 8;  // of 16 bytes a row
  constexpr int kRowsAPass = kThreads / kChunks;
  constexpr int kPanels = panels<D>();
  extern __shared__ char shared[];
  const int thread = static_cast<int>(threadIdx.x);
  const int group = thread / 128;
  const int warp = thread / 32 % 4;
  const int lane = thread % 32;
  wait_for_previous();
  const Task<T> task = kPrefix ? prefix_task<T, D>(a, plan) : chunk_task<T, D>(a, first_sequence);
  if (task.row0 < 0 || task.row0 >= task.rows) return;
  // Of row0, where rows are tokens.
  const int position0 = kPrefix ? 0 : a.context_lens[task.sequence] - task.rows + task.row0;
  const int32_t* table = a.block_table + task.sequence * a.block_table_stride;
  const uint32_t q_at = (shared_address(shared) + 1023U) & ~1023U;
  const uint32_t ring = q_at + kGroups * kPanels * kPanelBytes;

  const int chunk = thread % kChunks;
  const int pass_row = thread / kChunks;
#pragma unroll
  for (int r = pass_row; r < kRows; r += kRowsAPass) {
    const int row = task.row0 + r;
    const T* from = kPrefix ? task.q + row / a.group * task.q_stride + row % a.group * D
                            : task.q + row * task.q_stride;
    copy_async(q_at + static_cast<uint32_t>(r / 64 * kPanels * kPanelBytes) + place(r % 64, chunk),
               from + chunk * 8, row < task.rows);
  }
  const T* k_base = static_cast<const T*>(a.k) + task.kv_head * a.head_stride + chunk * 8;
  const T* v_base = static_cast<const T*>(a.v) + task.kv_head * a.head_stride + chunk * 8;
  const int first_tile = task.begin_token / kTokens;
  const int end_tile = (task.end_token + kTokens - 1) / kTokens;
  // Block numbers of the next tile to fetch: asked for a tile early, so that no copy waits for
  // them.
  constexpr int kPasses = kTokens / kRowsAPass;
  int32_t blocks[kPasses];
  const auto look_up = [&](int t) {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int token = t * kTokens + pass_row + i * kRowsAPass;
      const int entry = token / a.block_size;
      // Blocks that a window has left behind have no entry.
      blocks[i] =
          token < task.end_token && entry >= task.begin_token / a.block_size ? table[entry] : -1;
    }
  };
  const auto fetch = [&](int t) {
    if (t < end_tile) {
      const uint32_t k_to = ring + static_cast<uint32_t>(t % kStages * 2 * kPanels * kPanelBytes);
      const uint32_t v_to = k_to + kPanels * kPanelBytes;
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        const int r = pass_row + i * kRowsAPass;
        const bool valid = blocks[i] >= 0;
        const int64_t at =
            valid ? blocks[i] * a.block_stride + int64_t{(t * kTokens + r) % a.block_size} * D : 0;
        copy_async(k_to + place(r, chunk), k_base + at, valid);
        copy_async(v_to + place(r, chunk), v_base + at, valid);
      }
    }
    commit_copies();
    look_up(t + 1);
  };
  look_up(first_tile);
  fetch(first_tile);

  float o[D / 8][4];
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) o[n][e] = 0.0F;
  }
  float highest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0F, 0.0F};
  const int group_first = position0 + group * 64;
  const int group_last = group_first + 63;
  const int my_position = group_first + warp * 16 + lane / 4;
  const uint32_t my_q = q_at + static_cast<uint32_t>(group * kPanels * kPanelBytes);
  for (int t = first_tile; t < end_tile; ++t) {
    fetch(t + 1);
    wait_copies<1>();
    fence_shared_writes();
    __syncthreads();
    const uint32_t k_tile = ring + static_cast<uint32_t>(t % kStages * 2 * kPanels * kPanelBytes);
    const uint32_t v_tile = k_tile + kPanels * kPanelBytes;
    const bool mine = kPrefix ? task.row0 + group * 64 < task.rows : t * kTokens <= group_last;
    if (mine) {
      float s[kTokens / 8][4];
      warpgroup_arrive();
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        const auto offset = static_cast<uint32_t>(k / 4 * kPanelBytes + k % 4 * 32);
        warpgroup_multiply<T>(s, operand(my_q + offset, 16, 1024),
                              operand(k_tile + offset, 16, 1024), k > 0);
      }
      warpgroup_commit();
      warpgroup_wait<0>();
      const bool all_visible = kPrefix ? (t + 1) * kTokens <= task.end_token
                                       : (t + 1) * kTokens - 1 <= group_first &&
                                             (a.window == 0 || t * kTokens > group_last - a.window);
      if (a.softcap > 0.0F) {
#pragma unroll
        for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) s[n][e] = score(s[n][e], a.scale, a.softcap);
        }
      }
      // Without a cap the scale is folded into the exponent below.
      const float scale = a.softcap > 0.0F ? 1.0F : a.scale * kLog2E;
      if (!all_visible) {
#pragma unroll
        for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int token = t * kTokens + n * 8 + lane % 4 * 2 + e % 2;
            const int position = my_position + e / 2 * 8;
            const bool visible =
                kPrefix ? token < task.end_token
                        : token <= position && (a.window == 0 || token > position - a.window);
            if (!visible) s[n][e] = -INFINITY;
          }
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float now = -INFINITY;
#pragma unroll
        for (int n = 0; n < kTokens / 8; ++n) now = fmaxf(now, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        now = fmaxf(now, __shfl_xor_sync(0xffffffffU, now, 1));
        now = fmaxf(now, __shfl_xor_sync(0xffffffffU, now, 2));
        const float next = fmaxf(highest[h], now * scale);
        const float base = next == -INFINITY ? 0.0F : next;
        const float factor = exp2_fast(highest[h] - base);
        highest[h] = next;
        total[h] *= factor;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          o[n][2 * h] *= factor;
          o[n][2 * h + 1] *= factor;
        }
#pragma unroll
        for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
          for (int e = 2 * h; e < 2 * h + 2; ++e) {
            s[n][e] = exp2_fast(fmaf(s[n][e], scale, -base));
            total[h] += s[n][e];
          }
        }
      }
      uint32_t p[kTokens / 16][4];
#pragma unroll
      for (int k = 0; k < kTokens / 16; ++k) {
        p[k][0] = pack<T>(s[2 * k][0], s[2 * k][1]);
        p[k][1] = pack<T>(s[2 * k][2], s[2 * k][3]);
        p[k][2] = pack<T>(s[2 * k + 1][0], s[2 * k + 1][1]);
        p[k][3] = pack<T>(s[2 * k + 1][2], s[2 * k + 1][3]);
      }
      warpgroup_arrive();
#pragma unroll
      for (int k = 0; k < kTokens / 16; ++k) {
        warpgroup_multiply<T>(o, p[k],
                              operand(v_tile + static_cast<uint32_t>(k * 2048), kPanelBytes, 1024));
      }
      warpgroup_commit();
      warpgroup_wait<0>();
    }
    __syncthreads();
  }
  let_next_start();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    total[h] += __shfl_xor_sync(0xffffffffU, total[h], 1);
    total[h] += __shfl_xor_sync(0xffffffffU, total[h], 2);
    const int r = task.row0 + group * 64 + warp * 16 + lane / 4 + h * 8;
    if (r >= task.rows) continue;
    if constexpr (kPrefix) {
      const int g = r % a.group;
      float* to = plan.partial +
                  ((int64_t{task.sequence} + r / a.group) * a.num_kv_heads + task.kv_head) *
                      plan.num_parts() * partial_floats(a.group, D) +
                  static_cast<int>(blockIdx.x) % plan.prefix_splits * partial_floats(a.group, D);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        *reinterpret_cast<float2*>(to + g * D + n * 8 + lane % 4 * 2) =
            make_float2(o[n][2 * h], o[n][2 * h + 1]);
      }
      if (lane % 4 == 0) {
        to[a.group * D + g] = highest[h];
        to[a.group * (D + 1) + g] = total[h];
      }
      continue;
    }
    const int head = static_cast<int>(blockIdx.y);
    float factor = 1.0F;
    if (a.sinks != nullptr) {
      const float sink = a.sinks[head] * kLog2E;
      const float top = fmaxf(sink, highest[h]);
      factor = exp2_fast(highest[h] - top);
      total[h] = total[h] * factor + exp2_fast(sink - top);
    }
    factor /= total[h];
    T* to = static_cast<T*>(a.out.data) +
            (int64_t{a.cu_seqlens_q[task.sequence]} + r) * a.out.stride + int64_t{head} * D;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      *reinterpret_cast<uint32_t*>(to + n * 8 + lane % 4 * 2) =
          pack<T>(o[n][2 * h] * factor, o[n][2 * h + 1] * factor);
    }
  }
}

template <class T, int D, bool kPrefix>
void launch_hopper(cudaStream_t stream, const AttentionArgs& args, const dim3& grid, int32_t first,
                   const DecodePlan& plan) {
  static const cudaError_t raised = cudaFuncSetAttribute(
      hopper_kernel<T, D, kPrefix>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<D>());
  static_cast<void>(raised);
  launch(hopper_kernel<T, D, kPrefix>, grid, kThreads, shared_bytes<D>(), stream, args, first,
         plan);
}

template <bool kPrefix>
void choose_kernel(cudaStream_t stream, const AttentionArgs& args, const dim3& grid, int32_t first,
                   const DecodePlan& plan) {
  const bool wide = args.head_dim == 128;
  if (args.q.dtype == ElementType::kBF16) {
    return wide ? launch_hopper<bf16, 128, kPrefix>(stream, args, grid, first, plan)
                : launch_hopper<bf16, 64, kPrefix>(stream, args, grid, first, plan);
  }
  wide ? launch_hopper<__half, 128, kPrefix>(stream, args, grid, first, plan)
       : launch_hopper<__half, 64, kPrefix>(stream, args, grid, first, plan);
}

}  // namespace

void attention_prefill_hopper(cudaStream_t stream, const AttentionArgs& args, int32_t first,
                              int32_t sequences, int32_t max_rows) {
  const dim3 grid(blocks_for(max_rows, kRows),
                  static_cast<unsigned>(args.num_kv_heads * args.group),
                  static_cast<unsigned>(sequences));
  choose_kernel<false>(stream, args, grid, first, {});
}

void attention_prefix_hopper(cudaStream_t stream, const AttentionArgs& args,
                             const DecodePlan& plan) {
  const dim3 grid(blocks_for(int64_t{plan.most_sequences} * args.group, kRows) *
                      static_cast<unsigned>(plan.prefix_splits),
                  static_cast<unsigned>(args.num_kv_heads), static_cast<unsigned>(plan.num_groups));
  choose_kernel<true>(stream, args, grid, 0, plan);
}

}  // namespace mpinfer::kernels::cuda
