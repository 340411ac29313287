// Planner: from model and hardware to a layout and a memory plan; weights are never read.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "lib/comm/mesh.h"
#include "lib/core/dtype.h"
#include "lib/model/config.h"
#include "lib/model/kv_cache.h"

namespace mpinfer::planner {

struct Hardware {
  int world = 1;  // ranks
  int nodes = 1;
  bool cuda = false;
  int64_t memory_per_rank =
      0;  // bytes to plan with: GPU memory × utilisation; host: available ÷ local ranks
};

struct Lengths {  // typical row, from the input if there is one
  double prompt = 512;
  double completion = 256;
};

struct PlanRequest {
  int dp = 0, pp = 0, tp = 0, ep = 0;  // 0: choose
  bool spread_experts = false;         // ep = dp * tp
  std::vector<int32_t> pp_layers;
  int32_t block_size = 16;
  int64_t max_model_len = 0;  // 0: the model's, or what fits
  int64_t max_num_batched_tokens = 8192;
  int64_t kv_cache_memory_bytes = 0;  // 0: what is left (CUDA), what the input needs (CPU)
  int32_t max_num_seqs = 0;           // 0: the backend's default
  DType activation = DType::kF32;
  Lengths lengths;
  int64_t num_rows = 0;  // of the whole job; 0: not known
  // Bytes beside weights and KV on a rank of the layout (forward, LM head, step buffers), by a dry
  // run of the rooms above.
  std::function<int64_t(const comm::Layout&, int32_t max_num_seqs, int64_t max_model_len)>
      workspace_bytes;
};

struct MemoryPlan {  // of the fullest rank
  int64_t weights = 0;
  int64_t workspace = 0;
  int64_t kv = 0;
  int64_t limit = 0;
  std::vector<int32_t> num_blocks;  // per cache group, min over the replica's ranks
  int64_t kv_tokens = 0;            // tokens a replica's KV holds
  int64_t max_model_len = 0;
  int32_t max_num_seqs = 0;
  bool fits = false;
  std::string sum;  // "weights 141.1 GB + workspace 2.1 GB > 80.7 GB: short 62.5 GB a rank"
};

struct Plan {
  comm::Layout layout;
  std::vector<model::StageLayers> stages;
  MemoryPlan memory;
  std::string reason;
  double tokens_per_second = 0;  // modelled, 0 unknown
  // Running sequences whose arithmetic costs as much as reading the weights for a step (admission).
  int64_t break_even_seqs = 0;
};

// Memory of one layout; never throws for "does not fit" (fits = false, sum says why).
MemoryPlan plan_memory(const model::ModelConfig& config, const comm::Layout& layout,
                       const std::vector<model::StageLayers>& stages, const Hardware& hardware,
                       const PlanRequest& request);
// Every layout of the world that is valid for the model, best first.
std::vector<Plan> rank_layouts(const model::ModelConfig& config, const Hardware& hardware,
                               const PlanRequest& request);
// The one to use. Given sizes are never changed. Throws Error(kUsage) naming the product and the
// layouts that work, or Error(kModelRefused) with the sum that is short and a command line that
// works.
Plan choose_plan(const model::ModelConfig& config, const Hardware& hardware,
                 const PlanRequest& request);

}  // namespace mpinfer::planner
