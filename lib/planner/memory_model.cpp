// What one rank of a layout holds, in bytes: weights from the parameter table, workspace from a dry
// run, the rest KV.
#include <algorithm>

#include "lib/core/error.h"
#include "lib/model/loader.h"
#include "lib/planner/planner.h"

namespace mpinfer::planner {
namespace {

std::string gigabytes(int64_t bytes) {
  return fmt::format("{:.1f} GB", static_cast<double>(bytes) / 1e9);
}

// Most blocks of a group that one sequence of num_tokens holds (BlockManager::peak_blocks says the
// same).
int64_t blocks_of(const model::CacheGroup& group, int64_t num_tokens, const PlanRequest& request) {
  const int64_t all = (num_tokens + request.block_size - 1) / request.block_size;
  if (group.window == 0) return all;
  const int64_t seen = int64_t{group.window} + request.max_num_batched_tokens;
  return std::min(all, (seen + request.block_size - 1) / request.block_size + 1);
}

struct KvCost {
  std::vector<int64_t> block_bytes;  // per group, of the fullest stage
  int64_t of_sequence(const model::ModelConfig& config, int64_t num_tokens,
                      const PlanRequest& request) const {
    int64_t bytes = 0;
    for (size_t g = 0; g < block_bytes.size(); ++g) {
      bytes += block_bytes[g] * blocks_of(config.cache_groups[g], num_tokens, request);
    }
    return bytes;
  }
};

// The longest sequence whose KV fits in bytes.
int64_t longest_sequence(const model::ModelConfig& config, const KvCost& cost,
                         const PlanRequest& request, int64_t bytes, int64_t most) {
  int64_t low = 0;
  for (int64_t high = most; low < high;) {
    const int64_t middle = (low + high + 1) / 2;
    if (cost.of_sequence(config, middle, request) <= bytes) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

void divide_kv(MemoryPlan& plan, const model::ModelConfig& config, const KvCost& cost,
               const PlanRequest& request, int64_t kv, int64_t typical) {
  const int64_t of_one =
      std::max<int64_t>(1, cost.of_sequence(config, plan.max_model_len, request));
  const int64_t of_typical = std::max<int64_t>(1, cost.of_sequence(config, typical, request));
  plan.kv = 0;
  for (size_t g = 0; g < cost.block_bytes.size(); ++g) {
    const auto& group = config.cache_groups[g];
    // One full-length sequence must fit; the rest is dealt by what typical sequences hold in each
    // group.
    const double rest =
        static_cast<double>(std::max<int64_t>(0, kv - of_one)) / static_cast<double>(of_typical);
    const int64_t blocks =
        blocks_of(group, plan.max_model_len, request) +
        static_cast<int64_t>(rest * static_cast<double>(blocks_of(group, typical, request)));
    plan.num_blocks.push_back(
        checked_cast<int32_t>(std::min<int64_t>(blocks, INT32_MAX / request.block_size)));
    plan.kv += cost.block_bytes[g] * plan.num_blocks.back();
    if (group.window == 0 || plan.kv_tokens == 0) {
      plan.kv_tokens = int64_t{plan.num_blocks.back()} * request.block_size;
    }
  }
}

}  // namespace

MemoryPlan plan_memory(const model::ModelConfig& config, const comm::Layout& layout,
                       const std::vector<model::StageLayers>& stages, const Hardware& hardware,
                       const PlanRequest& request) {
  MemoryPlan plan;
  plan.limit = hardware.memory_per_rank;
  KvCost cost;
  cost.block_bytes.assign(config.cache_groups.size(), 0);
  for (size_t stage = 0; stage < stages.size(); ++stage) {
    const model::ShardOf shard{stages[stage], layout.pp, static_cast<int>(stage), layout.tp, 0,
                               layout.ep,     0};
    plan.weights = std::max(plan.weights, model::weight_bytes(config, shard));
    for (size_t g = 0; g < cost.block_bytes.size(); ++g) {
      cost.block_bytes[g] =
          std::max(cost.block_bytes[g],
                   model::kv_block_bytes(config, stages[stage], layout.tp, static_cast<int32_t>(g),
                                         request.block_size, request.activation));
    }
  }
  const int64_t longest =
      request.max_model_len > 0 ? request.max_model_len : config.max_position_embeddings;
  const auto typical = static_cast<int64_t>(std::clamp(
      request.lengths.prompt + request.lengths.completion, 1.0, static_cast<double>(longest)));
  constexpr int32_t kCpuSequences = 256;
  constexpr int32_t kMostSequences = 4096;
  // What runs at once on a GPU is for the scheduler to say, block by block: rows that share a
  // prefix take less than their lengths. A slot costs little.
  plan.max_num_seqs = request.max_num_seqs > 0 ? request.max_num_seqs
                      : hardware.cuda          ? kMostSequences
                                               : kCpuSequences;
  const auto workspace = [&] {
    return request.workspace_bytes ? request.workspace_bytes(layout, plan.max_num_seqs, longest)
                                   : 0;
  };
  plan.max_num_seqs = static_cast<int32_t>(
      std::min<int64_t>(plan.max_num_seqs, std::max<int64_t>(1, request.max_num_batched_tokens)));
  plan.workspace = workspace();

  const int64_t left = plan.limit - plan.weights - plan.workspace;
  int64_t kv = left;
  if (request.kv_cache_memory_bytes > 0) {
    kv = std::min(left, request.kv_cache_memory_bytes);
  } else if (!hardware.cuda) {
    // As many sequences as may run at once, and no more than the replica has rows.
    int64_t sequences = plan.max_num_seqs;
    if (request.num_rows > 0) {
      sequences = std::min(sequences, (request.num_rows + layout.dp - 1) / layout.dp);
    }
    const int64_t needed = cost.of_sequence(config, typical, request) * sequences * 5 / 4;
    kv = std::min(
        {left, plan.limit / 2, std::max(needed, cost.of_sequence(config, longest, request))});
  }
  const int64_t fitting = kv > 0 ? longest_sequence(config, cost, request, kv, longest) : 0;
  plan.max_model_len = request.max_model_len > 0 ? longest : fitting;
  const int64_t of_64 = cost.of_sequence(config, std::min<int64_t>(typical, 64), request);
  plan.fits = left > 0 &&
              fitting >= std::min<int64_t>(longest, request.max_model_len > 0 ? longest : 256) &&
              kv >= of_64;
  if (plan.fits) {
    divide_kv(plan, config, cost, request, kv, typical);
    plan.sum = fmt::format("weights {} + workspace {} + KV {} ({} tokens) of {}",
                           gigabytes(plan.weights), gigabytes(plan.workspace), gigabytes(plan.kv),
                           plan.kv_tokens, gigabytes(plan.limit));
  } else if (left <= 0) {
    plan.sum =
        fmt::format("weights {} + workspace {} > {}: short {} a rank", gigabytes(plan.weights),
                    gigabytes(plan.workspace), gigabytes(plan.limit), gigabytes(-left));
  } else {
    plan.sum = fmt::format(
        "weights {} + workspace {} leave {} of {} for KV: one sequence of {} tokens needs {}; {}",
        gigabytes(plan.weights), gigabytes(plan.workspace), gigabytes(kv), gigabytes(plan.limit),
        longest, gigabytes(cost.of_sequence(config, longest, request)),
        fitting > 0 ? fmt::format("--max-model-len {} fits", fitting) : "no length fits");
  }
  return plan;
}

}  // namespace mpinfer::planner
