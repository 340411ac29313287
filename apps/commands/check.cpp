// mpinfer check: everything a run would refuse, found without reading weights: the model's headers,
// the tokenizer, every row, the memory plan.
#include <map>

#include "apps/commands/commands.h"
#include "apps/commands/planning.h"
#include "apps/commands/row_setup.h"
#include "apps/commands/rows.h"
#include "apps/commands/run_setup.h"
#include "lib/backend/cuda_backend.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/job/request_builder.h"
#include "lib/model/loader.h"
#include "lib/text/grammar/grammars.h"
#include "lib/text/tokenizer.h"

namespace mpinfer::apps {
namespace {

struct RowCounts {
  int64_t num_rows = 0;
  int64_t num_failed = 0;
  int64_t prompt_tokens = 0;
  int64_t longest = 0;
  std::map<std::string, int64_t> by_code;
};

planner::Plan plan_check(const Options& options, const model::ModelConfig& config, int world_size,
                         int64_t default_max_tokens) {
  const int devices = options.backend == "cpu" ? 0 : backend::cuda_device_count();
  planner::Hardware hardware;
  hardware.cuda = devices > 0;
  hardware.world = world_size;
  if (hardware.cuda) {
    const auto backend = backend::make_cuda_backend({});
    hardware.memory_per_rank = static_cast<int64_t>(
        static_cast<double>(backend->memory_info().total_bytes) * options.gpu_memory_utilization);
  } else {
    hardware.memory_per_rank = available_host_memory() / world_size;
  }
  planner::PlanRequest request = make_plan_request(options, config, hardware.cuda);
  read_lengths(&request, options, default_max_tokens);
  return planner::choose_plan(config, hardware, request);
}

RowCounts check_rows(const Options& options, const job::RequestBuilder& builder) {
  constexpr int64_t kShown = 20;
  RowCounts counts;
  for_each_row(options, [&](const InputRow& row) {
    ++counts.num_rows;
    const Expected<Request> request =
        row.line.too_long ? tl::make_unexpected(job::RequestBuilder::line_too_long())
                          : builder.build(row.index, row.line.bytes);
    if (request) {
      const auto tokens = static_cast<int64_t>(request->prompt_token_ids.size());
      counts.prompt_tokens += tokens;
      counts.longest = std::max(counts.longest, tokens);
      return;
    }
    ++counts.by_code[request.error().code];
    if (++counts.num_failed <= kShown) {
      fmt::print("{}:{}: {}: {}\n", row.file, row.line.number, request.error().code,
                 printable(request.error().message));
    }
    if (counts.num_failed == kShown + 1) fmt::print("… further bad rows are only counted\n");
  });
  return counts;
}

}  // namespace

int check_command(const Options& options, int world_size) {
  const model::ModelConfig config = model::load_model_config(options.model);
  const job::SamplingFields defaults = sampling_defaults(options, config);
  const uint64_t identity = model::check_checkpoint(options.model, config);
  fmt::print("model: {}, {} layers, headers in order (identity {:016x})\n", config.architecture,
             config.num_layers(), identity);
  const std::string directory = tokenizer_directory(options);
  const auto tokenizer = directory.empty() ? nullptr : text::Tokenizer::load(directory);
  fmt::print("tokenizer: {}\n", tokenizer ? fmt::format("{} tokens", tokenizer->vocab_size())
                                          : "none, only prompt_token_ids rows can run");
  const RowSetup setup(options, directory);
  const planner::Plan plan =
      plan_check(options, config, world_size, defaults.max_tokens.value_or(0));
  fmt::print("plan: -dp {} -pp {} -tp {}: {}\n", plan.layout.dp, plan.layout.pp, plan.layout.tp,
             plan.memory.sum);
  job::BuilderOptions builder_options = setup.builder_options(options);
  builder_options.max_model_len = plan.memory.max_model_len;
  builder_options.vocab_size = config.vocab_size;
  builder_options.defaults = defaults;
  std::optional<text::grammar::Grammars> grammars;
  if (tokenizer != nullptr) {
    builder_options.grammars =
        &grammars.emplace(*tokenizer, config.vocab_size, config.eos_token_ids);
  }
  const RowCounts counts =
      check_rows(options, job::RequestBuilder(builder_options, tokenizer.get()));
  fmt::print("rows: {} in {} file{}, {} bad; {} prompt tokens, the longest prompt {}\n",
             counts.num_rows, options.input.size(), options.input.size() == 1 ? "" : "s",
             counts.num_failed, counts.prompt_tokens, counts.longest);
  for (const auto& [code, count] : counts.by_code) fmt::print("  {}: {}\n", code, count);
  return static_cast<int>(counts.num_failed > 0 ? ExitCode::kFailedRows : ExitCode::kComplete);
}

}  // namespace mpinfer::apps
