// What the blocks of attention_hopper.cu work on: tasks of 128 rows, handed out by a counter. A row
// is (token or sequence, query head of the KV head).
#pragma once

#include "kernels/cuda/device/common.cuh"

namespace mpinfer::kernels::cuda {

constexpr int kConsumers = 2;  // warpgroups of 64 rows
constexpr int kRows = 64 * kConsumers;
constexpr int kTokens = 128;  // of a tile of K and V

// What a block works on.
struct Task {
  int sequence;  // whose block table
  int kv_head;
  int rows;      // that there are; 0: no more tasks
  int row0;      // the first of this task's
  int q_row;     // of q and out, for row 0
  int position;  // of row 0
  int begin_token;
  int end_token;   // tokens that any of the rows sees: [begin_token, end_token)
  int num_tokens;  // memory behind them holds anything
  int split;
  __device__ int first_tile() const { return begin_token / kTokens; }
  // At least one: rows that see nothing leave empty sums.
  __device__ int end_tile() const {
    return max(first_tile() + 1, (end_token + kTokens - 1) / kTokens);
  }
};

// Prefill: sequences [first, first + count). Prefix: the plan's groups, count of them.
struct Work {
  int32_t first = 0;
  int32_t count = 0;
  DecodePlan plan;
};

// A warp takes the next task. Slot numbers of row tiles need no table: the rows before an item,
// over 128, plus its place leave room for every tile, and at most one slot an item is empty. The
// longest tasks of an item, at its end, come first.
template <bool kPrefix>
__device__ Task next_task(const AttentionArgs& a, const Work& work, int lane) {
  const DecodePlan& plan = work.plan;
  const auto slots_before = [&](int i) {
    int rows = 0;
    if constexpr (kPrefix) {
      const PrefixGroup& group = plan.groups[min(i, work.count - 1)];
      rows = group.first_sequence + (i == work.count ? group.num_sequences : 0) -
             plan.groups[0].first_sequence;
    } else {
      rows = a.cu_seqlens_q[work.first + i] - a.cu_seqlens_q[work.first];
    }
    return rows * a.group / kRows + i;
  };
  const int splits = kPrefix ? plan.prefix_splits : 1;
  const int tasks = slots_before(work.count) * a.num_kv_heads * splits;
  for (;;) {
    int index = 0;
    if (lane == 0) index = atomicAdd(a.task_counter, 1);
    index = __shfl_sync(0xffffffffU, index, 0);
    if (index >= tasks) {
      // Each block is refused once; the last one leaves the counter as it was.
      if (lane == 0 && index == tasks + static_cast<int>(gridDim.x) - 1) *a.task_counter = 0;
      return Task{};
    }
    Task task{};
    task.split = index % splits;
    task.kv_head = index / splits % a.num_kv_heads;
    const int slot = index / splits / a.num_kv_heads;
    int item = 0;
    for (int left = work.count; left > 1;) {
      const int step = (left + 31) / 32;
      const bool starts = lane * step < left && slots_before(item + lane * step) <= slot;
      const int last = __popc(__ballot_sync(0xffffffffU, starts)) - 1;
      item += last * step;
      left = min(step, left - last * step);
    }
    int tokens = 1;  // that one sequence's rows stand at
    if constexpr (kPrefix) {
      const PrefixGroup group = plan.groups[item];
      task.sequence = group.first_sequence;
      task.rows = group.num_sequences * a.group;
      task.q_row = group.first_sequence;
      task.num_tokens = group.num_tokens;
    } else {
      task.sequence = work.first + item;
      task.q_row = a.cu_seqlens_q[task.sequence];
      tokens = a.cu_seqlens_q[task.sequence + 1] - task.q_row;
      task.rows = tokens * a.group;
      task.num_tokens = a.context_lens[task.sequence];
    }
    const int row_tile = (task.rows + kRows - 1) / kRows - 1 - (slot - slots_before(item));
    if (row_tile < 0) continue;
    task.row0 = row_tile * kRows;
    if constexpr (kPrefix) {
      task.begin_token = task.split * plan.tokens_per_prefix_split;
      task.end_token = min(task.num_tokens, task.begin_token + plan.tokens_per_prefix_split);
    } else {
      task.position = task.num_tokens - tokens;
      const int first = task.position + task.row0 / a.group;
      const int last = task.position + min(task.rows - 1, task.row0 + kRows - 1) / a.group;
      task.begin_token = a.window > 0 ? max(0, first - a.window + 1) : 0;
      task.end_token = last + 1;
    }
    return task;
  }
}

}  // namespace mpinfer::kernels::cuda
