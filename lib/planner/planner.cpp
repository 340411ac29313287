#include "lib/planner/planner.h"

#include <algorithm>
#include <cmath>

#include "lib/core/error.h"
#include "lib/model/loader.h"

namespace mpinfer::planner {
namespace {

// Rates of one device, for comparing layouts and nothing else: H200 by measurement; two AVX-512
// cores.
struct Rates {
  double flops;
  double bytes;
  double tp_efficiency;        // of doubling tp
  double pp_efficiency;        // of having stages at all
  double lockstep_efficiency;  // of doubling a lockstep group
};
constexpr Rates kCuda{6.5e14, 4.0e12, 0.88, 0.93, 0.90};
constexpr Rates kCpu{1.5e11, 2.0e10, 0.85, 0.93, 0.90};

// Experts make a token's arithmetic and a step's reading differ: a token takes top_k of them, a
// step the ones that any of its rows chose.
struct ExpertShare {
  double of_token = 0.0;  // of a rank's expert bytes, for one token
  double of_step = 0.0;
  double bytes = 0.0;
};

ExpertShare expert_share(const model::ModelConfig& config, const Plan& plan, double rows) {
  const model::MoeConfig& moe = config.moe;
  ExpertShare share;
  if (moe.num_experts == 0) return share;
  int64_t sparse = 0;  // of the fullest stage
  for (const model::StageLayers& stage : plan.stages) {
    int64_t here = 0;
    for (int32_t layer = stage.begin; layer < stage.end; ++layer) {
      here += config.layers[static_cast<size_t>(layer)].moe ? 1 : 0;
    }
    sparse = std::max(sparse, here);
  }
  const int ranks = std::max(plan.layout.tp, plan.layout.ep);
  share.bytes = static_cast<double>(sparse * moe.num_experts * 3 * config.hidden_size *
                                    moe.intermediate_size * size_of(config.dtype)) /
                ranks;
  const double chosen = static_cast<double>(moe.top_k) / moe.num_experts;
  share.of_token = chosen * plan.layout.members();  // rows of all members come to this rank
  share.of_step = 1.0 - std::pow(1.0 - chosen, rows * plan.layout.members());
  return share;
}

double drawn_share(const Lengths& lengths) {
  return std::clamp(lengths.completion / std::max(1.0, lengths.prompt + lengths.completion), 0.0,
                    1.0);
}

// Steady tokens per second of a layout, by a roofline of one decode step with its share of prefill.
double model_rate(const model::ModelConfig& config, const Plan& plan, const Hardware& hardware,
                  const PlanRequest& request) {
  const Rates& rates = hardware.cuda ? kCuda : kCpu;
  const comm::Layout& layout = plan.layout;
  const double context = request.lengths.prompt + request.lengths.completion;
  const double sequences =
      std::min(static_cast<double>(plan.memory.max_num_seqs),
               static_cast<double>(plan.memory.kv_tokens) / std::max(1.0, context));
  const double lane = std::max(1.0, sequences / layout.pp);
  const double weights = static_cast<double>(plan.memory.weights);
  const ExpertShare experts = expert_share(config, plan, lane);
  const double streamed = weights - experts.bytes * (1.0 - experts.of_step);
  const double parameters = (weights - experts.bytes * (1.0 - experts.of_token)) /
                            static_cast<double>(size_of(config.dtype));
  // Latent rows are read whole by every rank of a replica's stage.
  const double kv_bytes =
      (config.is_latent() ? layout.tp : 2.0 * config.num_key_value_heads) * config.num_layers() *
      config.head_dim * static_cast<double>(size_of(request.activation)) / (layout.tp * layout.pp);
  const double tokens_per_output =
      1.0 + request.lengths.prompt / std::max(1.0, request.lengths.completion);
  const double seconds =
      std::max(streamed / rates.bytes, lane * tokens_per_output * 2.0 * parameters / rates.flops) +
      lane * context * kv_bytes / rates.bytes;
  double efficiency = layout.pp > 1 ? rates.pp_efficiency : 1.0;
  for (int tp = 1; tp < layout.tp; tp *= 2) efficiency *= rates.tp_efficiency;
  for (int k = 1; k < layout.members(); k *= 2) efficiency *= rates.lockstep_efficiency;
  return layout.dp * lane / seconds * efficiency * tokens_per_output;
}

// Rows for which a step's arithmetic costs as much as reading its weights, experts all chosen; a
// step is one lane of the running sequences. Of multiplications and divisions alone, so that every
// rank has the same number.
int64_t break_even(const model::ModelConfig& config, const Plan& plan, const Hardware& hardware) {
  const Rates& rates = hardware.cuda ? kCuda : kCpu;
  const double weights = static_cast<double>(plan.memory.weights);
  const ExpertShare experts = expert_share(config, plan, 1.0);
  const double parameters = (weights - experts.bytes * (1.0 - experts.of_token)) /
                            static_cast<double>(size_of(config.dtype));
  const double reading = weights / rates.bytes;
  const double row = 2.0 * parameters / rates.flops;
  return static_cast<int64_t>(plan.layout.pp * reading / row);
}

bool given_sizes_hold(const comm::Layout& layout, const PlanRequest& request) {
  return (request.dp == 0 || request.dp == layout.dp) &&
         (request.pp == 0 || request.pp == layout.pp) &&
         (request.tp == 0 || request.tp == layout.tp);
}

// Experts cut by tp, unless asked for otherwise or only sharing them over replicas makes room.
std::vector<int> ep_choices(const model::ModelConfig& config, const comm::Layout& layout,
                            const PlanRequest& request) {
  const std::vector<int> valid = model::valid_ep(config, layout.dp, layout.tp);
  const int wanted = request.ep > 0           ? request.ep
                     : request.spread_experts ? layout.dp * layout.tp
                                              : 0;
  if (wanted == 0) return valid;
  return std::find(valid.begin(), valid.end(), wanted) != valid.end() ? std::vector<int>{wanted}
                                                                      : std::vector<int>{};
}

std::string name_of(const comm::Layout& layout) {
  return fmt::format("-dp {} -pp {} -tp {}{}", layout.dp, layout.pp, layout.tp,
                     layout.ep > 1 ? fmt::format(" --ep {}", layout.ep) : "");
}

std::string reason_for(const Plan& plan, const Hardware& hardware, const PlanRequest& request) {
  const comm::Layout& layout = plan.layout;
  if (request.dp > 0 && request.pp > 0 && request.tp > 0) return "as given";
  if (layout.world() == 1) return "one rank";
  if (layout.replica() == 1 && layout.members() == 1)
    return "the model fits one rank, and replicas share nothing while they generate";
  const bool sizes_given = request.dp > 0 || request.pp > 0 || request.tp > 0;
  std::string reason = sizes_given ? "best with the sizes given"
                                   : "one rank is too small for the model with KV for 64 rows";
  if (request.tp == 0 && layout.tp > 1 && hardware.nodes > 1) reason += "; tp stays inside a node";
  if (request.ep == 0 && layout.members() > 1) {
    reason += fmt::format("; experts spread over {} replicas in lockstep", layout.members());
  }
  if (!sizes_given && layout.pp > 1) reason += "; stages move less between ranks than tp";
  return reason;
}

// The first larger world that holds the model with the sizes asked for. GPUs come one at a time;
// hosts come whole, since more ranks on one host share the memory it has.
std::string larger_world(const model::ModelConfig& config, const Hardware& hardware,
                         const PlanRequest& request) {
  constexpr int kMostRanks = 1024;
  for (int times = 2; times <= kMostRanks; times = times < 16 ? times + 1 : times * 2) {
    Hardware larger = hardware;
    larger.world = hardware.cuda ? hardware.world + times - 1 : hardware.world * times;
    larger.nodes =
        hardware.cuda ? std::max(hardware.nodes, (larger.world + 7) / 8) : hardware.nodes * times;
    if (larger.world > kMostRanks) break;
    for (const Plan& plan : rank_layouts(config, larger, request)) {
      if (!plan.memory.fits) continue;
      return fmt::format("works: -n {}{} {} (KV {}k tokens a replica)", larger.world,
                         hardware.cuda ? "" : fmt::format(" on {} hosts", larger.nodes),
                         name_of(plan.layout), plan.memory.kv_tokens / 1000);
    }
  }
  return "";
}

// A command line that would hold the model: another layout of the same ranks, else more ranks;
// empty if there is none.
std::string what_would_work(const model::ModelConfig& config, const Hardware& hardware,
                            const PlanRequest& request) {
  PlanRequest open = request;
  open.dp = open.pp = open.tp = open.ep = 0;
  open.spread_experts = false;
  open.pp_layers.clear();
  for (const Plan& plan : rank_layouts(config, hardware, open)) {
    if (!plan.memory.fits) continue;
    return fmt::format("works: -n {} {} (KV {}k tokens a replica)", hardware.world,
                       name_of(plan.layout), plan.memory.kv_tokens / 1000);
  }
  const std::string as_asked = larger_world(config, hardware, request);
  return as_asked.empty() ? larger_world(config, hardware, open) : as_asked;
}

}  // namespace

std::vector<Plan> rank_layouts(const model::ModelConfig& config, const Hardware& hardware,
                               const PlanRequest& request) {
  std::vector<Plan> plans;
  const int per_node = std::max(1, hardware.world / std::max(1, hardware.nodes));
  for (const int tp : model::valid_tp(config, hardware.world)) {
    if (hardware.world % tp != 0) continue;
    for (int pp = 1; pp <= std::min(hardware.world / tp, config.num_layers()); ++pp) {
      if (hardware.world / tp % pp != 0) continue;
      const comm::Layout axes{hardware.world / tp / pp, pp, tp, 1};
      if (!given_sizes_hold(axes, request)) continue;
      if (request.tp == 0 && tp > per_node) continue;
      if (!request.pp_layers.empty() && static_cast<int>(request.pp_layers.size()) != pp) continue;
      for (const int ep : ep_choices(config, axes, request)) {
        Plan plan;
        plan.layout = axes;
        plan.layout.ep = ep;
        plan.stages =
            model::balance_stages(config, pp, request.pp_layers, drawn_share(request.lengths));
        plan.memory = plan_memory(config, plan.layout, plan.stages, hardware, request);
        plan.tokens_per_second =
            plan.memory.fits ? model_rate(config, plan, hardware, request) : 0.0;
        plan.break_even_seqs = break_even(config, plan, hardware);
        plan.reason = reason_for(plan, hardware, request);
        plans.push_back(std::move(plan));
      }
    }
  }
  const double typical = request.lengths.prompt + request.lengths.completion;
  const auto roomy = [&](const Plan& plan) {
    // KV for 64 typical rows, or for all that a replica gets.
    int64_t wanted = 64;
    if (request.num_rows > 0) {
      wanted = std::min(wanted, (request.num_rows + plan.layout.dp - 1) / plan.layout.dp);
    }
    return plan.memory.fits &&
           static_cast<double>(plan.memory.kv_tokens) >= static_cast<double>(wanted) * typical;
  };
  std::stable_sort(plans.begin(), plans.end(), [&](const Plan& a, const Plan& b) {
    if (a.memory.fits != b.memory.fits) return a.memory.fits;
    if (roomy(a) != roomy(b)) return roomy(a);
    // A model that fits one rank runs as replicas: they wait for nobody.
    // Lockstep is for models that have no room without it.
    const auto free = [](const Plan& plan) {
      return (plan.layout.members() == 1 ? 2 : 0) + (plan.layout.replica() == 1 ? 1 : 0);
    };
    if (roomy(a) && free(a) != free(b)) return free(a) > free(b);
    return a.tokens_per_second > b.tokens_per_second;
  });
  return plans;
}

Plan choose_plan(const model::ModelConfig& config, const Hardware& hardware,
                 const PlanRequest& request) {
  if (request.tp > 0) model::require_valid_tp(config, request.tp);
  if (request.ep > 1 && request.dp > 0 && request.tp > 0) {
    model::require_valid_ep(config, request.dp, request.tp, request.ep);
  }
  if (request.ep > 1 && !config.has_experts()) model::require_valid_ep(config, 1, 1, request.ep);
  std::vector<Plan> plans = rank_layouts(config, hardware, request);
  if (plans.empty()) {
    PlanRequest open = request;
    open.dp = open.pp = open.tp = open.ep = 0;
    open.spread_experts = false;
    open.pp_layers.clear();
    std::string works;
    for (const Plan& plan : rank_layouts(config, hardware, open)) {
      works += (works.empty() ? "" : "; ") + name_of(plan.layout);
    }
    const auto size = [](int value) {
      return value > 0 ? fmt::format("{}", value) : std::string("(any)");
    };
    throw Error(
        ExitCode::kUsage,
        fmt::format("--dp {} × --pp {} × --tp {}{} cannot be the world of {} rank{}{}; works: {}",
                    size(request.dp), size(request.pp), size(request.tp),
                    request.ep > 0 ? fmt::format(" with --ep {}", request.ep) : "", hardware.world,
                    hardware.world == 1 ? "" : "s",
                    request.pp_layers.empty()
                        ? ""
                        : fmt::format(" with {} entries in --pp-layers", request.pp_layers.size()),
                    works));
  }
  if (!plans.front().memory.fits) {
    const std::string works = what_would_work(config, hardware, request);
    throw Error(ExitCode::kModelRefused,
                fmt::format("{} does not fit at {}: {}{}", config.architecture,
                            name_of(plans.front().layout), plans.front().memory.sum,
                            works.empty() ? "" : "; " + works));
  }
  return plans.front();
}

}  // namespace mpinfer::planner
