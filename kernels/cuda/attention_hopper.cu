// Attention of many rows over the same tokens on sm_90a (after Shah et al., "FlashAttention-3",
// 2024). A row is (token or sequence, query head of the KV head); tasks of 128 rows, handed out by
// a counter to blocks that stay. A producer warpgroup fetches Q and, tile by tile of 128 tokens, K
// and V into two stages each; two consumer warpgroups of 64 rows multiply by wgmma and keep the
// online softmax in registers. A consumer starts S = Q·Kᵀ of a tile before the softmax of that tile
// runs beside O += P·V of the one before it, and the two take turns, so that one's softmax runs
// beside the other's products. Tiles start at multiples of 128 tokens whoever shares the task, and
// a tile that a row does not see leaves its sums as they are: a row's bits depend on its own tokens
// alone. Two uses. Prefill chunks: each row sees the tokens up to its own; the same arguments and
// results as attention_prefill.cu, which other devices use. Prefix groups of decode rows: all rows
// see all tokens of the shared prefix; what comes out are partial sums that decode attention merges
// with those of a member's own tokens.
#include "kernels/cuda/device/attention_rows.cuh"
#include "kernels/cuda/device/paged_tiles.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kThreads = 128 * (1 + kConsumers);
constexpr int kStages = 2;
// Of tasks: the producers may be two tasks ahead of what a consumer is yet to read.
constexpr uint32_t kSlots = 4;
constexpr int kPanelBytes = kTokens * 128;  // of K and V: 64 elements of each token
constexpr int kQPanelBytes = 64 * 128;
// Named barriers.
constexpr int kProduce = 1;
constexpr int kTurn = 2;                     // and the next: a consumer's turn to multiply
constexpr int kZeroed = kTurn + kConsumers;  // and the next: a consumer's zeros are written

template <int D>
struct Shared {
  static constexpr int kPanels = D / 64;
  static constexpr uint32_t kQBytes = kConsumers * kPanels * kQPanelBytes;
  static constexpr uint32_t kTileBytes = kPanels * kPanelBytes;
  static constexpr uint32_t kBarriers = kQBytes + kStages * 2 * kTileBytes;
  static constexpr int kBytes = static_cast<int>(kBarriers) + 512 + 1024;  // and room to align
  uint32_t base;
  Task* tasks;  // kSlots, walked in turn
  __device__ uint32_t q(int group) const {
    return base + static_cast<uint32_t>(group * kPanels * kQPanelBytes);
  }
  __device__ uint32_t k(uint32_t n) const { return base + kQBytes + n % kStages * 2 * kTileBytes; }
  __device__ uint32_t v(uint32_t n) const { return k(n) + kTileBytes; }
  // Of a consumer.
  __device__ uint32_t q_full(int group) const { return barrier(0, static_cast<uint32_t>(group)); }
  __device__ uint32_t q_empty(int group) const { return barrier(1, static_cast<uint32_t>(group)); }
  // Of the n-th tile's stage.
  __device__ uint32_t k_full(uint32_t n) const { return barrier(2, n % kStages); }
  __device__ uint32_t k_empty(uint32_t n) const { return barrier(3, n % kStages); }
  __device__ uint32_t v_full(uint32_t n) const { return barrier(4, n % kStages); }
  __device__ uint32_t v_empty(uint32_t n) const { return barrier(5, n % kStages); }
  __device__ uint32_t barrier(uint32_t kind, uint32_t i) const {
    return base + kBarriers + kind * 16 + i * 8;
  }
};
// Of the n-th tile that a block works on, its stage's parity.
__device__ inline uint32_t parity(uint32_t n) {
  return n / kStages & 1;
}

// One warp: K and V of a task, the last tile first, and then the next task; n counts the block's
// tiles.
template <int D, bool kPrefix>
__device__ Task produce_tiles(const AttentionArgs& a, const Work& work, const PagedMaps& maps,
                              const Shared<D>& shared, const Task& task, uint32_t& n, int lane) {
  const int pieces = kTokens / maps.tokens;
  const int piece = lane % pieces;
  const int panel = lane / pieces;
  const int32_t* table = a.block_table + task.sequence * a.block_table_stride;
  // Asked for a tile early, so that no copy waits for it.
  const auto look_up = [&](int t) {
    const int token = t * kTokens + piece * maps.tokens;
    const int entry = token / a.block_size;
    // Blocks that a window has left behind have no entry.
    return t >= 0 && token < task.end_token && entry >= task.begin_token / a.block_size
               ? table[entry]
               : -1;
  };
  Task next{};
  const int first_tile = task.first_tile();
  const int last_tile = task.end_tile() - 1;
  int block = look_up(last_tile);
  for (int t = last_tile; t >= first_tile; --t, ++n) {
    const int next_block = look_up(t - 1);
    const int token = (t * kTokens + piece * maps.tokens) % a.block_size;
    const auto fetch = [&](const CUtensorMap& map, uint32_t to, uint32_t full, uint32_t empty) {
      barrier_wait(empty, parity(n) ^ 1);
      if (lane == 0) barrier_expect(full, Shared<D>::kTileBytes);
      __syncwarp();
      if (panel < D / 64) {
        copy_paged(to + static_cast<uint32_t>(panel * kPanelBytes + piece * maps.tokens * 128), map,
                   panel * 64, token, task.kv_head, block, full);
      }
    };
    fetch(maps.k, shared.k(n), shared.k_full(n), shared.k_empty(n));
    fetch(maps.v, shared.v(n), shared.v_full(n), shared.v_empty(n));
    if (t == last_tile) next = next_task<kPrefix>(a, work, lane);
    block = next_block;
  }
  return next;
}

// The other three warps: Q of a task for one consumer, rows that do not exist as zeros.
template <class T, int D>
__device__ void produce_q(const AttentionArgs& a, const Shared<D>& shared, const Task& task,
                          int group, int thread) {
  constexpr int kChunks = D / 8;  // of 16 bytes a row
  constexpr int kStep = 96 / kChunks;
  const int chunk = thread % kChunks;
  const T* base = static_cast<const T*>(a.q.data) + task.q_row * a.q.stride +
                  int64_t{task.kv_head} * a.group * D + chunk * 8;
  const int row0 = task.row0 + group * 64;
  int unit = (row0 + thread / kChunks) / a.group;
  int g = (row0 + thread / kChunks) % a.group;
  const uint32_t to = shared.q(group) + static_cast<uint32_t>(chunk / 8 * kQPanelBytes);
#pragma unroll 2
  for (int r = thread / kChunks; r < 64; r += kStep) {
    copy_async(to + static_cast<uint32_t>(r * 128 + ((chunk % 8) ^ (r & 7)) * 16),
               base + unit * a.q.stride + g * D, row0 + r < task.rows);
    unit += kStep / a.group;
    g += kStep % a.group;
    if (g >= a.group) {
      g -= a.group;
      ++unit;
    }
  }
  arrive_with_copies(shared.q_full(group));
}

template <class T, int D, bool kPrefix>
__device__ void produce(const AttentionArgs& a, const Work& work, const PagedMaps& maps,
                        const Shared<D>& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool fetches_tiles = threadIdx.x < 32;
  Task task{};
  uint32_t n = 0;
  if (fetches_tiles) task = next_task<kPrefix>(a, work, lane);
  for (uint32_t round = 0;; ++round) {
    Task* slot = shared.tasks + round % kSlots;
    if (threadIdx.x == 0) *slot = task;
    named_wait(kProduce, 128);
    if (!fetches_tiles) task = *slot;
    if (fetches_tiles) {
      if (task.rows == 0) break;
      task = produce_tiles<D, kPrefix>(a, work, maps, shared, task, n, lane);
      continue;
    }
#pragma unroll
    for (int group = 0; group < kConsumers; ++group) {
      barrier_wait(shared.q_empty(group), (round & 1) ^ 1);
      // With this the slot is seen, whatever the copies bring.
      if (threadIdx.x == 32) barrier_arrive(shared.q_full(group));
      produce_q<T, D>(a, shared, task, group, static_cast<int>(threadIdx.x) - 32);
    }
    if (task.rows == 0) break;
  }
}

// The first product of a tile: s = Q · Kᵀ, in flight when this returns.
template <class T, int D>
__device__ void start_scores(float (&s)[kTokens / 8][4], uint64_t q, uint64_t k_tile) {
  warpgroup_arrive();
#pragma unroll
  for (uint32_t k = 0; k < D / 16; ++k) {
    const uint32_t column = k % 4 * 32;
    warpgroup_multiply<T>(s, shifted(q, k / 4 * kQPanelBytes + column),
                          shifted(k_tile, k / 4 * kPanelBytes + column), k > 0);
  }
  warpgroup_commit();
}
// And the second: o += P · V.
template <class T, int D>
__device__ void start_sums(float (&o)[D / 8][4], const uint32_t (&p)[kTokens / 16][4],
                           uint64_t v_tile) {
  warpgroup_arrive();
#pragma unroll
  for (uint32_t k = 0; k < kTokens / 16; ++k) {
    warpgroup_multiply<T>(o, p[k], shifted(v_tile, k * 2048));
  }
  warpgroup_commit();
}

template <class T>
__device__ void pack_weights(uint32_t (&p)[kTokens / 16][4], const float (&s)[kTokens / 8][4]) {
#pragma unroll
  for (int k = 0; k < kTokens / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float(&from)[4] = s[2 * k + i / 2];
      p[k][i] = pack<T>(from[i % 2 * 2], from[i % 2 * 2 + 1]);
    }
  }
}

// Rows of V behind the last token, up to the end of what one copy brings, become zeros: they meet
// weights of zero, but may hold NaN.
template <int D>
__device__ void hide_rest(uint32_t v_tile, int tokens, int piece, int group, int thread) {
  const int rows = (tokens + piece - 1) / piece * piece - tokens;
  for (int i = thread; i < rows * D / 8; i += 128) {
    const uint32_t at = v_tile + static_cast<uint32_t>(i / 8 % (D / 64) * kPanelBytes +
                                                       (tokens + i / (D / 8)) * 128 + i % 8 * 16);
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
  }
  fence_shared_writes();
  group == 0 ? named_wait(kZeroed, 128) : named_wait(kZeroed + 1, 128);
}

template <class T, int D, bool kPrefix>
__device__ void consume(const AttentionArgs& a, const DecodePlan& plan, int piece,
                        const Shared<D>& shared) {
  const int group = static_cast<int>(threadIdx.x) / 128 - 1;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int lane = thread % 32;
  const int row = group * 64 + thread / 32 * 16 + lane / 4;  // of the task's, and the one 8 below
  const uint64_t q = operand(shared.q(group), 16, 1024);
  const auto k_tile = [&](uint32_t i) { return operand(shared.k(i), 16, 1024); };
  const auto v_tile = [&](uint32_t i) { return operand(shared.v(i), kPanelBytes, 1024); };
  // Without a cap the scale is folded into the exponent.
  const float scale = a.softcap > 0.0F ? 1.0F : a.scale * kLog2E;
  const auto release = [&](uint32_t empty) {
    if (lane == 0) barrier_arrive(empty);
  };
  if (group == 1) named_arrive(kTurn, 256);
  uint32_t n = 0;
  for (uint32_t round = 0;; ++round) {
    barrier_wait(shared.q_full(group), round & 1);
    const Task task = shared.tasks[round % kSlots];
    if (task.rows == 0) break;
    fence_shared_writes();
    const Sight sight = sight_of<kPrefix>(a, task, group, row);
    const int first_tile = task.first_tile();
    int t = task.end_tile() - 1;
    Softmax softmax;
    float s[kTokens / 8][4];
    float o[D / 8][4];
    uint32_t p[kTokens / 16][4];
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o[i][e] = 0.0F;
    }
    barrier_wait(shared.k_full(n), parity(n));
    start_scores<T, D>(s, q, k_tile(n));
    warpgroup_wait<0>();
    warpgroup_settle(s);
    release(shared.k_empty(n));
    if (t == first_tile) release(shared.q_empty(group));
    finish_scores(s, a, sight, t * kTokens, lane);
    softmax.take(s, scale);
    pack_weights<T>(p, s);
    barrier_wait(shared.v_full(n), parity(n));
    const int rest = task.num_tokens - t * kTokens;
    if (rest > 0 && rest < kTokens && rest % piece != 0) {
      hide_rest<D>(shared.v(n), rest, piece, group, thread);
    }
    while (--t >= first_tile) {
      barrier_wait(shared.k_full(n + 1), parity(n + 1));
      group == 0 ? named_wait(kTurn, 256) : named_wait(kTurn + 1, 256);
      start_scores<T, D>(s, q, k_tile(n + 1));
      barrier_wait(shared.v_full(n), parity(n));
      start_sums<T, D>(o, p, v_tile(n));
      group == 0 ? named_arrive(kTurn + 1, 256) : named_arrive(kTurn, 256);
      warpgroup_wait<1>();
      warpgroup_settle(s);
      release(shared.k_empty(n + 1));
      if (t == first_tile) release(shared.q_empty(group));
      finish_scores(s, a, sight, t * kTokens, lane);
      softmax.take(s, scale);
      // Never: but what could leave here keeps ptxas from moving the wait before the softmax.
      if (softmax.total[0] + softmax.total[1] < 0.0F) __trap();
      warpgroup_wait<0>();
      warpgroup_settle(o);
      release(shared.v_empty(n));
      pack_weights<T>(p, s);
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[i][e] *= softmax.factor[e / 2];
      }
      ++n;
    }
    barrier_wait(shared.v_full(n), parity(n));
    start_sums<T, D>(o, p, v_tile(n));
    warpgroup_wait<0>();
    warpgroup_settle(o);
    release(shared.v_empty(n));
    ++n;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      store_row<T, D, kPrefix>(a, plan, task, task.row0 + row + h * 8, o, h, softmax, lane);
    }
  }
}

template <class T, int D, bool kPrefix>
__global__ void __launch_bounds__(kThreads, 1)
    hopper_kernel(AttentionArgs a, Work work, const __grid_constant__ PagedMaps maps) {
  extern __shared__ char memory[];
  const uint32_t start = shared_address(memory);
  const uint32_t base = (start + 1023U) & ~1023U;
  const Shared<D> shared{
      base, reinterpret_cast<Task*>(memory + (base - start) + Shared<D>::kBarriers + 128)};
  if (threadIdx.x == 0) {
    for (int group = 0; group < kConsumers; ++group) {
      barrier_init(shared.q_full(group), 96 + 1);
      barrier_init(shared.q_empty(group), 4);  // a lane of each warp
    }
    for (uint32_t stage = 0; stage < kStages; ++stage) {
      barrier_init(shared.k_full(stage), 1);
      barrier_init(shared.v_full(stage), 1);
      barrier_init(shared.k_empty(stage), 4 * kConsumers);
      barrier_init(shared.v_empty(stage), 4 * kConsumers);
    }
    fence_barrier_init();
  }
  __syncthreads();
  wait_for_previous();
  if (threadIdx.x < 128) {
    give_registers<64>();
    produce<T, D, kPrefix>(a, work, maps, shared);
  } else {
    take_registers<216>();
    consume<T, D, kPrefix>(a, work.plan, maps.tokens, shared);
  }
  let_next_start();
}

template <class T, int D, bool kPrefix>
void launch_hopper(cudaStream_t stream, const AttentionArgs& args, const Work& work,
                   const PagedMaps& maps) {
  constexpr int kBytes = Shared<D>::kBytes;
  static const cudaError_t raised = cudaFuncSetAttribute(
      hopper_kernel<T, D, kPrefix>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  static_cast<void>(raised);
  launch(hopper_kernel<T, D, kPrefix>, static_cast<unsigned>(args.num_processors), kThreads, kBytes,
         stream, args, work, maps);
}

template <bool kPrefix>
bool choose_kernel(cudaStream_t stream, const AttentionArgs& args, const Work& work) {
  PagedMaps maps{};
  if (!make_paged_maps(maps, args, kTokens)) return false;
  const bool wide = args.head_dim == 128;
  if (args.q.dtype == ElementType::kBF16) {
    wide ? launch_hopper<bf16, 128, kPrefix>(stream, args, work, maps)
         : launch_hopper<bf16, 64, kPrefix>(stream, args, work, maps);
  } else {
    wide ? launch_hopper<__half, 128, kPrefix>(stream, args, work, maps)
         : launch_hopper<__half, 64, kPrefix>(stream, args, work, maps);
  }
  return true;
}

}  // namespace

bool attention_prefill_hopper(cudaStream_t stream, const AttentionArgs& args, int32_t first,
                              int32_t sequences) {
  return choose_kernel<false>(stream, args, {.first = first, .count = sequences, .plan = {}});
}

bool attention_prefix_hopper(cudaStream_t stream, const AttentionArgs& args,
                             const DecodePlan& plan) {
  return choose_kernel<true>(stream, args, {.first = 0, .count = plan.num_groups, .plan = plan});
}

}  // namespace mpinfer::kernels::cuda
