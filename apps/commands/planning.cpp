#include "apps/commands/planning.h"

#include <algorithm>
#include <fstream>
#include <string>

#include "lib/core/error.h"
#include "lib/engine/engine.h"
#include "lib/io/index.h"
#include "lib/io/spool.h"
#include "lib/model/lm_head.h"
#include "lib/model/transformer.h"

namespace mpinfer::apps {
namespace {

int64_t number_in(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : -1;  // "max" is no number
}

int64_t meminfo_available() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  int64_t kilobytes = 0;
  std::string unit;
  while (file >> key >> kilobytes >> unit) {
    if (key == "MemAvailable:") return kilobytes * 1024;
  }
  return int64_t{4} << 30;
}

}  // namespace

int64_t available_host_memory() {
  int64_t bytes = meminfo_available();
  const int64_t limit = number_in("/sys/fs/cgroup/memory.max");
  const int64_t used = number_in("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) bytes = std::min(bytes, std::max<int64_t>(0, limit - used));
  return bytes;
}

planner::PlanRequest make_plan_request(const Options& options, const model::ModelConfig& config,
                                       bool cuda) {
  planner::PlanRequest request;
  request.dp = options.dp;
  request.pp = options.pp;
  request.tp = options.tp;
  request.ep = options.ep;
  request.spread_experts = options.enable_expert_parallel;
  request.pp_layers = options.pp_layers;
  request.block_size =
      options.block_size > 0 ? static_cast<int32_t>(options.block_size) : (cuda ? 32 : 16);
  request.max_model_len = options.max_model_len;
  request.max_num_batched_tokens =
      options.max_num_batched_tokens > 0 ? options.max_num_batched_tokens : (cuda ? 16384 : 8192);
  request.kv_cache_memory_bytes = options.kv_cache_memory_bytes;
  request.max_num_seqs = static_cast<int32_t>(options.max_num_seqs);
  request.activation = DType::kF32;
  if (cuda) {
    request.activation = options.dtype == "float32"   ? DType::kF32
                         : options.dtype == "float16" ? DType::kF16
                                                      : DType::kBF16;
  }
  const auto activation = request.activation;
  const auto rows = request.max_num_batched_tokens;
  const auto block_size = request.block_size;
  const int32_t logit_rows = max_logit_rows(cuda);
  request.workspace_bytes = [&config, activation, rows, block_size, logit_rows, cuda](
                                const comm::Layout& layout, int32_t max_num_seqs,
                                int64_t max_model_len) {
    engine::EngineOptions engine;
    engine.block_size = block_size;
    engine.num_blocks.assign(config.cache_groups.size(), 1);
    engine.max_num_seqs = max_num_seqs;
    engine.max_logit_rows = logit_rows;
    engine.max_num_batched_tokens = static_cast<int32_t>(rows);
    engine.max_model_len = static_cast<int32_t>(max_model_len);
    return model::Transformer::workspace_bytes(config, layout.tp, rows, activation, layout.ep,
                                               cuda) +
           model::LmHead::workspace_bytes(config, layout.tp, engine.max_logit_rows, activation) +
           engine::Engine::buffer_bytes(engine, config, layout.pp, activation);
  };
  return request;
}

void read_lengths(planner::PlanRequest* request, const Options& options,
                  int64_t default_max_tokens) {
  if (options.input.empty()) return;
  io::IndexOptions index_options;
  std::vector<io::Spooled> spooled;
  for (const std::string& path : options.input) {
    if (io::needs_spool(path)) {
      spooled.push_back(io::spool_input(path, "", /*reuse=*/false));
      index_options.files.push_back(spooled.back().path);
    } else {
      index_options.files.push_back(path);
    }
  }
  index_options.skip = options.skip;
  index_options.limit = options.limit;
  index_options.prompt_field = options.field;
  if (default_max_tokens > 0)
    index_options.default_completion_tokens = checked_cast<uint32_t>(default_max_tokens);
  const io::InputIndex index = io::build_index(index_options);
  if (index.rows.empty()) return;
  planner::Lengths lengths{0, 0};
  const auto num_rows = static_cast<double>(index.rows.size());
  for (const io::Row& row : index.rows) {
    lengths.prompt += static_cast<double>(row.entry.prompt_tokens) / num_rows;
    lengths.completion += static_cast<double>(row.entry.completion_tokens) / num_rows;
  }
  request->lengths = lengths;
  request->num_rows = static_cast<int64_t>(index.rows.size());
}

}  // namespace mpinfer::apps
