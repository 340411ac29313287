// mpinfer plan: layouts of a model on given or present hardware, with memory per rank; reads
// config.json only.
#include <fmt/core.h>

#include <algorithm>

#include "apps/commands/commands.h"
#include "apps/commands/planning.h"
#include "lib/backend/cuda_backend.h"
#include "lib/core/error.h"

namespace mpinfer::apps {
namespace {

planner::Hardware hardware_of(const Options& options, int world_size) {
  planner::Hardware hardware;
  hardware.nodes = options.plan_nodes;
  const bool gpus = options.plan_gpus > 0 || options.plan_gpu_memory > 0;
  hardware.cuda = options.backend == "cuda" ||
                  (options.backend == "auto" && (gpus || backend::cuda_device_count() > 0));
  hardware.world = options.plan_gpus > 0 ? options.plan_gpus : world_size;
  if (hardware.cuda) {
    constexpr int64_t kUnsaid = int64_t{80} << 30;
    const int64_t memory = options.plan_gpu_memory > 0 ? options.plan_gpu_memory : kUnsaid;
    hardware.memory_per_rank =
        static_cast<int64_t>(static_cast<double>(memory) * options.gpu_memory_utilization);
  } else {
    const int per_node = std::max(1, (hardware.world + hardware.nodes - 1) / hardware.nodes);
    hardware.memory_per_rank = available_host_memory() / per_node;
  }
  if (hardware.world % hardware.nodes != 0) {
    throw Error(ExitCode::kUsage, fmt::format("--gpus {} do not divide over --nodes {}",
                                              hardware.world, hardware.nodes));
  }
  return hardware;
}

void print_table(const std::vector<planner::Plan>& plans) {
  fmt::print("{:>5} {:>4} {:>4} {:>4} {:>10} {:>10} {:>9} {:>10} {:>6} {:>10}\n", "dp", "pp", "tp",
             "ep", "weights GB", "work GB", "KV GB", "KV tokens", "seqs", "tok/s*");
  for (const planner::Plan& plan : plans) {
    const auto& layout = plan.layout;
    const auto& memory = plan.memory;
    const auto gb = [](int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
    if (memory.fits) {
      fmt::print("{:>5} {:>4} {:>4} {:>4} {:>10.2f} {:>10.2f} {:>9.2f} {:>10} {:>6} {:>10.0f}\n",
                 layout.dp, layout.pp, layout.tp, layout.ep, gb(memory.weights),
                 gb(memory.workspace), gb(memory.kv), memory.kv_tokens, memory.max_num_seqs,
                 plan.tokens_per_second);
    } else {
      fmt::print("{:>5} {:>4} {:>4} {:>4}  does not fit: {}\n", layout.dp, layout.pp, layout.tp,
                 layout.ep, memory.sum);
    }
  }
  fmt::print(
      "per rank (the fullest); * modelled, prompt and completion tokens, whole job; KV tokens a "
      "replica\n");
}

}  // namespace

int plan_command(const Options& options, int world_size) {
  const model::ModelConfig config = model::load_model_config(options.model);
  const planner::Hardware hardware = hardware_of(options, world_size);
  planner::PlanRequest request = make_plan_request(options, config, hardware.cuda);
  read_lengths(&request, options, options.sampling.max_tokens.value_or(0));
  const std::string kv =
      config.is_latent()
          ? fmt::format("latent KV rows of {}", config.head_dim)
          : fmt::format("{} KV heads of {}", config.num_key_value_heads, config.head_dim);
  fmt::print("{}: {} layers, hidden {}, {} heads, {}, vocabulary {}\n", config.architecture,
             config.num_layers(), config.hidden_size, config.num_attention_heads, kv,
             config.vocab_size);
  fmt::print("typical row: {:.0f} prompt and {:.0f} completion tokens ({})\n",
             request.lengths.prompt, request.lengths.completion,
             options.input.empty() ? "a guess; -i reads them off the input" : "from the input");
  fmt::print("{} rank{} on {} node{}, {:.1f} GB each to plan with ({})\n\n", hardware.world,
             hardware.world == 1 ? "" : "s", hardware.nodes, hardware.nodes == 1 ? "" : "s",
             static_cast<double>(hardware.memory_per_rank) / 1e9, hardware.cuda ? "GPU" : "CPU");
  auto plans = planner::rank_layouts(config, hardware, request);
  constexpr size_t kShown = 12;
  if (plans.size() > kShown) plans.resize(kShown);
  if (!plans.empty()) print_table(plans);
  const planner::Plan chosen = planner::choose_plan(config, hardware, request);
  fmt::print("\nchosen: -dp {} -pp {} -tp {}{} ({})\n", chosen.layout.dp, chosen.layout.pp,
             chosen.layout.tp,
             chosen.layout.ep > 1 ? fmt::format(" --ep {}", chosen.layout.ep) : "", chosen.reason);
  fmt::print("a rank holds {}; max-model-len {}, up to {} sequences at once\n", chosen.memory.sum,
             chosen.memory.max_model_len, chosen.memory.max_num_seqs);
  return 0;
}

}  // namespace mpinfer::apps
