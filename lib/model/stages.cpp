// Layers per pipeline stage. A stage's tick costs its layers and, on the last, the LM head; the
// embedding is a gather and costs memory alone, so it only breaks ties.
#include <algorithm>
#include <numeric>

#include "lib/core/error.h"
#include "lib/model/loader.h"

namespace mpinfer::model {
namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ExitCode::kUsage, what);
}

double latent_elements(const ModelConfig& config) {
  const LatentConfig& latent = config.latent;
  const double hidden = static_cast<double>(config.hidden_size);
  const double heads = config.num_attention_heads;
  const double queries = heads * latent.q_head_dim();
  return (latent.q_rank > 0 ? latent.q_rank * (hidden + queries) : hidden * queries) +
         hidden * config.head_dim + heads * latent.kv_rank * (latent.nope_dim + latent.value_dim) +
         hidden * heads * latent.value_dim;
}

// Weight elements that a decode step streams.
double layer_cost(const ModelConfig& config) {
  const double hidden = static_cast<double>(config.hidden_size);
  const double heads = config.num_attention_heads * 2.0 + config.num_key_value_heads * 2.0;
  const double attention =
      config.is_latent() ? latent_elements(config) : hidden * heads * config.head_dim;
  return attention + hidden * 3.0 * static_cast<double>(config.intermediate_size);
}

std::vector<StageLayers> ranges(const std::vector<int32_t>& counts) {
  std::vector<StageLayers> out;
  int32_t begin = 0;
  for (const int32_t count : counts) {
    out.push_back({begin, begin + count});
    begin += count;
  }
  return out;
}

}  // namespace

std::vector<StageLayers> balance_stages(const ModelConfig& config, int num_stages,
                                        const std::vector<int32_t>& layers_per_stage,
                                        double drawn_share) {
  const int32_t layers = config.num_layers();
  if (num_stages < 1 || num_stages > layers) {
    refuse(fmt::format("--pp {} does not fit {} layers: a stage needs at least one; works: 1 to {}",
                       num_stages, layers, layers));
  }
  if (!layers_per_stage.empty()) {
    const int64_t sum =
        std::accumulate(layers_per_stage.begin(), layers_per_stage.end(), int64_t{0});
    const bool positive = std::all_of(layers_per_stage.begin(), layers_per_stage.end(),
                                      [](int32_t count) { return count >= 1; });
    if (std::ssize(layers_per_stage) != num_stages || sum != layers || !positive) {
      refuse(
          fmt::format("--pp-layers gives {} stages and {} layers; --pp {} and a model of {} "
                      "layers need {} positive numbers that sum to {}",
                      layers_per_stage.size(), sum, num_stages, layers, num_stages, layers));
    }
    return ranges(layers_per_stage);
  }
  if (num_stages == 1) return {{0, layers}};
  const double head = drawn_share * static_cast<double>(config.vocab_size) *
                      static_cast<double>(config.hidden_size) / layer_cost(config);
  const int32_t others = num_stages - 1;
  int32_t best_last = 1;
  double best = 0;
  for (int32_t last = 1; last <= layers - others; ++last) {
    const int32_t most = (layers - last + others - 1) / others;
    const double tick = std::max(static_cast<double>(most), last + head);
    if (last == 1 || tick <= best) {
      best = tick;
      best_last = last;
    }
  }
  // The remainder goes to the stages after the first, which also holds the embedding.
  std::vector<int32_t> counts(static_cast<size_t>(others), (layers - best_last) / others);
  const int32_t remainder = (layers - best_last) % others;
  for (int32_t i = 0; i < remainder; ++i) ++counts[static_cast<size_t>(others - 1 - i)];
  counts.push_back(best_last);
  return ranges(counts);
}

}  // namespace mpinfer::model
