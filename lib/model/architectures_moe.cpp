// Architectures with experts: their routing rules as data. Defaults of absent fields are those of
// transformers' configuration classes (5.x).
#include <algorithm>

#include "lib/core/error.h"
#include "lib/model/architectures.h"

namespace mpinfer::model {
namespace {

constexpr Range kExperts = {1, 1024};
constexpr Range kChosen = {1, 32};
constexpr Range kInner = {1, 1 << 20};
constexpr Range kGroups = {1, 32};
constexpr Range kScale = {1e-6, 1e6};
constexpr size_t kMaxLayers = 1024;

void epsilon(const ConfigReader& reader, ModelConfig& config, float absent) {
  if (!reader.has("rms_norm_eps")) config.rms_norm_eps = absent;
}

// Qwen: every decoder_sparse_step-th layer has experts, but those of mlp_only_layers.
void sparse_layers(const ConfigReader& reader, ModelConfig& config) {
  const int64_t step = reader.integer("decoder_sparse_step", 1, {1, kMaxLayers});
  std::vector<int64_t> dense;
  if (reader.has("mlp_only_layers")) {
    dense = reader.integers("mlp_only_layers", kMaxLayers, {0, kMaxLayers});
  }
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const auto layer = static_cast<int64_t>(i);
    const bool listed = std::find(dense.begin(), dense.end(), layer) != dense.end();
    config.layers[i].moe = !listed && (layer + 1) % step == 0;
  }
}

void all_layers_sparse(ModelConfig& config) {
  for (LayerConfig& layer : config.layers) layer.moe = true;
}

}  // namespace

// Both names: transformers 5 writes num_local_experts where older files have the field given.
void read_experts(const ConfigReader& reader, ModelConfig& config, const char* count,
                  int64_t experts, int64_t chosen) {
  MoeConfig& moe = config.moe;
  const char* field = reader.has(count) ? count : "num_local_experts";
  moe.num_experts = static_cast<int32_t>(reader.integer(field, experts, kExperts));
  moe.top_k = static_cast<int32_t>(reader.integer("num_experts_per_tok", chosen, kChosen));
  if (moe.top_k > moe.num_experts) {
    reader.refuse("num_experts_per_tok",
                  fmt::format("is {}, more than {} experts", moe.top_k, moe.num_experts));
  }
  moe.activation = config.activation;
}

// DeepSeek-V3's rule, which GLM-4.5 shares: sigmoid scores, chosen with a correction bias among the
// best groups, a group by its best two.
void read_sigmoid_groups(const ConfigReader& reader, ModelConfig& config, int64_t groups,
                         int64_t top_groups, double scale) {
  MoeConfig& moe = config.moe;
  moe.score = backend::RouterScore::kSigmoid;
  moe.correction = true;
  moe.best_of_group = 2;
  moe.renormalise = reader.boolean("norm_topk_prob", true);
  read_groups(reader, config, groups, top_groups, scale);
}

void read_groups(const ConfigReader& reader, ModelConfig& config, int64_t groups,
                 int64_t top_groups, double scale) {
  MoeConfig& moe = config.moe;
  moe.scale = static_cast<float>(reader.number("routed_scaling_factor", scale, kScale));
  moe.num_groups = static_cast<int32_t>(reader.integer("n_group", groups, kGroups));
  moe.top_groups = static_cast<int32_t>(reader.integer("topk_group", top_groups, kGroups));
  if (moe.num_experts % moe.num_groups != 0) {
    reader.refuse("n_group", fmt::format("is {}, which does not divide {} experts", moe.num_groups,
                                         moe.num_experts));
  }
  if (moe.top_groups > moe.num_groups ||
      moe.top_k > moe.num_experts / moe.num_groups * moe.top_groups) {
    reader.refuse(
        "topk_group",
        fmt::format("is {}: {} experts are chosen from that many of {} groups of {}",
                    moe.top_groups, moe.top_k, moe.num_groups, moe.num_experts / moe.num_groups));
  }
}

void dense_prefix_and_shared(const ConfigReader& reader, ModelConfig& config, int64_t dense) {
  MoeConfig& moe = config.moe;
  moe.intermediate_size = reader.integer("moe_intermediate_size", kInner);
  const int64_t first = reader.integer("first_k_dense_replace", dense, {0, kMaxLayers});
  for (size_t i = 0; i < config.layers.size(); ++i) {
    config.layers[i].moe = static_cast<int64_t>(i) >= first;
  }
  const int64_t shared = reader.integer("n_shared_experts", 1, {0, 64});
  moe.shared_intermediate_size = shared * moe.intermediate_size;
  moe.shared_name = "shared_experts";
  config.num_extra_layers =
      static_cast<int32_t>(reader.integer("num_nextn_predict_layers", 0, {0, 16}));
}

void fill_mixtral(const ConfigReader& reader, ModelConfig& config) {
  epsilon(reader, config, 1e-5F);
  config.rope = read_rope(reader, config, 1'000'000.0);
  window_everywhere(reader, config, 0);
  read_experts(reader, config, "num_local_experts", 8, 2);
  config.moe.intermediate_size = config.intermediate_size;
  config.moe.renormalise = true;
  config.moe.names = ExpertNames::kMixtral;
  all_layers_sparse(config);
}

void fill_olmoe(const ConfigReader& reader, ModelConfig& config) {
  epsilon(reader, config, 1e-5F);
  config.qkv_bias = config.o_bias = reader.boolean("attention_bias", false);
  config.qk_norm = config.qk_norm_whole = true;
  if (reader.has("clip_qkv")) reader.refuse("clip_qkv", "is set; supported: null");
  config.rope = read_rope(reader, config, 10'000.0);
  read_experts(reader, config, "num_experts", 64, 8);
  config.moe.intermediate_size = config.intermediate_size;
  config.moe.renormalise = reader.boolean("norm_topk_prob", false);
  all_layers_sparse(config);
}

void fill_qwen2_moe(const ConfigReader& reader, ModelConfig& config) {
  config.qkv_bias = reader.boolean("qkv_bias", true);
  config.rope = read_rope(reader, config, 10'000.0);
  window_from_layer(reader, config);
  read_experts(reader, config, "num_experts", 60, 4);
  MoeConfig& moe = config.moe;
  moe.intermediate_size = reader.integer("moe_intermediate_size", 1408, kInner);
  moe.renormalise = reader.boolean("norm_topk_prob", false);
  moe.shared_intermediate_size = reader.integer("shared_expert_intermediate_size", 5632, kInner);
  moe.shared_name = "shared_expert";
  moe.shared_gate = true;
  sparse_layers(reader, config);
}

void fill_qwen3_moe(const ConfigReader& reader, ModelConfig& config) {
  config.qkv_bias = config.o_bias = reader.boolean("attention_bias", false);
  config.qk_norm = true;
  config.rope = read_rope(reader, config, 10'000.0);
  if (reader.boolean("use_sliding_window", false)) window_everywhere(reader, config, 4096);
  read_experts(reader, config, "num_experts", 128, 8);
  config.moe.intermediate_size = reader.integer("moe_intermediate_size", 768, kInner);
  config.moe.renormalise = reader.boolean("norm_topk_prob", false);
  sparse_layers(reader, config);
}

void fill_glm4_moe(const ConfigReader& reader, ModelConfig& config) {
  epsilon(reader, config, 1e-5F);
  config.qkv_bias = reader.boolean("attention_bias", false);
  config.qk_norm = reader.boolean("use_qk_norm", false);
  config.rope = read_rope(reader, config, 10'000.0);
  read_experts(reader, config, "n_routed_experts", 128, 8);
  read_sigmoid_groups(reader, config, 1, 1, 1.0);
  dense_prefix_and_shared(reader, config, 1);
}

// The router's softmax over the chosen logits is that over all, renormalised.
void fill_gpt_oss(const ConfigReader& reader, ModelConfig& config) {
  epsilon(reader, config, 1e-5F);
  config.qkv_bias = config.o_bias = reader.boolean("attention_bias", true);
  config.sinks = true;
  config.rope = read_rope(reader, config, 150'000.0);
  const int64_t window = reader.integer("sliding_window", 128, {1, 134'217'728});
  std::vector<bool> windowed;
  for (size_t i = 0; i < config.layers.size(); ++i) windowed.push_back(i % 2 == 0);
  set_window_layers(config, reader.has("layer_types") ? windowed_by_type(reader, config) : windowed,
                    static_cast<int32_t>(window));
  read_experts(reader, config, "num_local_experts", 128, 4);
  MoeConfig& moe = config.moe;
  moe.intermediate_size = config.intermediate_size;
  moe.renormalise = true;
  moe.router_bias = moe.expert_bias = true;
  moe.names = ExpertNames::kGptOss;
  moe.activation = backend::Activation::kClampedSwiglu;
  moe.swiglu_alpha = static_cast<float>(reader.number("swiglu_alpha", 1.702, {1e-3, 1e3}));
  moe.swiglu_limit = static_cast<float>(reader.number("swiglu_limit", 7.0, {1e-3, 1e6}));
  all_layers_sparse(config);
}

}  // namespace mpinfer::model
