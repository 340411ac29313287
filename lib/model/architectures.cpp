// Defaults of absent fields are those of transformers' configuration classes (5.x), file by file:
// src/transformers/models/<name>/configuration_<name>.py.
#include "lib/model/architectures.h"

#include <fmt/ranges.h>

#include <array>
#include <cmath>

#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::model {
namespace {

constexpr Range kWindow = {1, 134'217'728};
constexpr Range kMultiplier = {1e-6, 1e6};
constexpr size_t kMaxLayers = 1024;

float multiplier(const ConfigReader& reader, const char* field, double absent) {
  return static_cast<float>(reader.number(field, absent, kMultiplier));
}

}  // namespace

void window_everywhere(const ConfigReader& reader, ModelConfig& config, int64_t absent) {
  if (reader.is_null("sliding_window")) return;  // full attention
  const int64_t window = reader.integer("sliding_window", absent, kWindow);
  if (window > 0) {
    set_window_layers(config, std::vector<bool>(config.layers.size(), true),
                      static_cast<int32_t>(window));
  }
}

std::vector<bool> windowed_by_type(const ConfigReader& reader, const ModelConfig& config) {
  const std::vector<std::string> types = reader.strings("layer_types", kMaxLayers);
  if (types.size() != config.layers.size()) {
    reader.refuse("layer_types",
                  fmt::format("has {} items for {} layers", types.size(), config.layers.size()));
  }
  std::vector<bool> windowed;
  for (const std::string& type : types) {
    if (type != "full_attention" && type != "sliding_attention") {
      reader.refuse("layer_types",
                    fmt::format("holds \"{}\"; known are full_attention, sliding_attention",
                                printable(type, 80)));
    }
    windowed.push_back(type == "sliding_attention");
  }
  return windowed;
}

namespace {

// Qwen2, Qwen3 and SmolLM3: the window counts only with use_sliding_window; which layers have it is
// said by layer_types, else by by_default.
void window_by_layer(const ConfigReader& reader, ModelConfig& config, int64_t absent_window,
                     const std::vector<bool>& by_default) {
  if (!reader.boolean("use_sliding_window", false)) {
    if (!reader.has("layer_types")) return;
    for (const bool windowed : windowed_by_type(reader, config)) {
      if (windowed) {
        reader.refuse("layer_types", "holds sliding_attention but use_sliding_window is false");
      }
    }
    return;
  }
  const int64_t window = reader.integer("sliding_window", absent_window, kWindow);
  if (window <= 0) return;
  set_window_layers(config,
                    reader.has("layer_types") ? windowed_by_type(reader, config) : by_default,
                    static_cast<int32_t>(window));
}

}  // namespace

void window_from_layer(const ConfigReader& reader, ModelConfig& config) {
  const int64_t from = reader.integer("max_window_layers", 28, {0, kMaxLayers});
  std::vector<bool> windowed;
  for (int32_t i = 0; i < config.num_layers(); ++i) windowed.push_back(i >= from);
  window_by_layer(reader, config, 4096, windowed);
}

namespace {

void fill_llama(const ConfigReader& reader, ModelConfig& config) {
  config.qkv_bias = config.o_bias = reader.boolean("attention_bias", false);
  config.mlp_bias = reader.boolean("mlp_bias", false);
  config.rope = read_rope(reader, config, 10'000.0);
}

void fill_mistral(const ConfigReader& reader, ModelConfig& config) {
  config.rope = read_rope(reader, config, 10'000.0);
  window_everywhere(reader, config, 4096);
}

void fill_qwen2(const ConfigReader& reader, ModelConfig& config) {
  config.qkv_bias = true;
  config.rope = read_rope(reader, config, 10'000.0);
  window_from_layer(reader, config);
}

void fill_qwen3(const ConfigReader& reader, ModelConfig& config) {
  config.qkv_bias = config.o_bias = reader.boolean("attention_bias", false);
  config.qk_norm = true;
  config.rope = read_rope(reader, config, 10'000.0);
  window_from_layer(reader, config);
}

// no_rope_layers holds 1 where a layer HAS rope; else every no_rope_layer_interval-th layer has
// none.
void fill_smollm3(const ConfigReader& reader, ModelConfig& config) {
  config.qkv_bias = config.o_bias = reader.boolean("attention_bias", false);
  config.mlp_bias = reader.boolean("mlp_bias", false);
  config.rope = read_rope(reader, config, 2'000'000.0);
  if (reader.has("no_rope_layers")) {
    const std::vector<int64_t> has_rope = reader.integers("no_rope_layers", kMaxLayers, {0, 1});
    if (has_rope.size() < config.layers.size()) {
      reader.refuse("no_rope_layers", fmt::format("has {} items for {} layers", has_rope.size(),
                                                  config.layers.size()));
    }
    for (size_t i = 0; i < config.layers.size(); ++i) config.layers[i].rope = has_rope[i] != 0;
  } else {
    const int64_t interval = reader.integer("no_rope_layer_interval", 4, {1, kMaxLayers});
    for (size_t i = 0; i < config.layers.size(); ++i) {
      config.layers[i].rope = (static_cast<int64_t>(i) + 1) % interval != 0;
    }
  }
  std::vector<bool> without_rope;
  for (const LayerConfig& layer : config.layers) without_rope.push_back(!layer.rope);
  window_by_layer(reader, config, 0, without_rope);
}

void fill_granite(const ConfigReader& reader, ModelConfig& config) {
  fill_llama(reader, config);
  config.embedding_multiplier = multiplier(reader, "embedding_multiplier", 1.0);
  config.residual_multiplier = multiplier(reader, "residual_multiplier", 1.0);
  config.attention_scale = multiplier(reader, "attention_multiplier", 1.0);
  config.logits_scale = 1.0F / multiplier(reader, "logits_scaling", 1.0);
}

void fill_phi3(const ConfigReader& reader, ModelConfig& config) {
  config.fused_qkv = true;
  config.fused_gate_up = true;
  config.rope = read_rope(reader, config, 10'000.0);
  window_everywhere(reader, config, 0);
}

struct Architecture {
  std::string_view name;
  void (*fill)(const ConfigReader&, ModelConfig&);
  bool tied_by_default;
};

constexpr std::array<Architecture, 15> kArchitectures = {{
    {"LlamaForCausalLM", fill_llama, false},
    {"MistralForCausalLM", fill_mistral, false},
    {"Qwen2ForCausalLM", fill_qwen2, false},
    {"Qwen3ForCausalLM", fill_qwen3, false},
    {"SmolLM3ForCausalLM", fill_smollm3, true},
    {"GraniteForCausalLM", fill_granite, false},
    {"Phi3ForCausalLM", fill_phi3, false},
    {"MixtralForCausalLM", fill_mixtral, false},
    {"OlmoeForCausalLM", fill_olmoe, false},
    {"Qwen2MoeForCausalLM", fill_qwen2_moe, false},
    {"Qwen3MoeForCausalLM", fill_qwen3_moe, false},
    {"Glm4MoeForCausalLM", fill_glm4_moe, false},
    {"GptOssForCausalLM", fill_gpt_oss, false},
    {"DeepseekV2ForCausalLM", fill_deepseek_v2, false},
    {"DeepseekV3ForCausalLM", fill_deepseek_v3, false},
}};

}  // namespace

std::string known_architectures() {
  std::vector<std::string_view> names;
  for (const Architecture& architecture : kArchitectures) names.push_back(architecture.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

void set_window_layers(ModelConfig& config, const std::vector<bool>& windowed, int32_t window) {
  // Positions never reach max_position_embeddings, so such a window hides nothing.
  if (window >= config.max_position_embeddings) return;
  bool some_full = false;
  for (const bool w : windowed) some_full = some_full || !w;
  config.cache_groups.clear();
  if (some_full) config.cache_groups.push_back({.window = 0});
  const auto window_group = static_cast<int32_t>(config.cache_groups.size());
  bool some_windowed = false;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    config.layers[i].cache_group = windowed[i] ? window_group : 0;
    some_windowed = some_windowed || windowed[i];
  }
  if (some_windowed) config.cache_groups.push_back({.window = window});
}

void fill_architecture(const ConfigReader& reader, ModelConfig& config) {
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name != config.architecture) continue;
    config.tie_word_embeddings =
        reader.boolean("tie_word_embeddings", architecture.tied_by_default);
    architecture.fill(reader, config);
    return;
  }
  reader.refuse("architectures",
                fmt::format("is \"{}\"; supported: {}", printable(config.architecture, 80),
                            known_architectures()));
}

}  // namespace mpinfer::model
