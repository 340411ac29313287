// ModelConfig: what a checkpoint is, as data. One short function per architectures[0] string fills
// it from config.json; nothing after that asks for an architecture's name. Every number is
// range-checked while it is read: a lie in config.json is Error(kModelRefused) naming the field,
// the value and the limit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lib/backend/backend.h"
#include "lib/core/dtype.h"

namespace mpinfer::model {

enum class RopeKind : uint8_t { kDefault, kLinear, kLlama3, kYarn, kLongrope };

struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000.0;
  int32_t rotary_dim = 0;
  double factor = 1.0;
  double low_freq_factor = 1.0;   // llama3
  double high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0;        // yarn
  double beta_slow = 1.0;         // yarn
  bool truncate = true;           // yarn: correction range rounded to whole dimensions
  double attention_factor = 1.0;  // multiplies cos and sin
  double mscale_all_dim = 0.0;    // yarn: what latent attention's logits are scaled by comes of it
  int64_t original_max_positions = 0;
  std::vector<float> short_factor = {};  // longrope, [rotary_dim / 2]: contexts up to the original
  std::vector<float> long_factor = {};   // longrope: longer ones
};

// Layers whose KV lives in one pool with one block table: full attention, a sliding window, or
// latent rows.
struct CacheGroup {
  int32_t window = 0;   // 0: full
  bool latent = false;  // one row of head_dim elements a token for all heads, not K and V
};

// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the keys and values of all heads are
// products of one latent row a token, which is cached beside one rotated key that the heads share.
struct LatentConfig {
  int32_t kv_rank = 0;   // of the latent row; 0: the model has ordinary attention
  int32_t q_rank = 0;    // of the queries' own latent; 0: one product makes them
  int32_t nope_dim = 0;  // of a head's query and key: the part that does not turn,
  int32_t rope_dim = 0;  // and the one that does
  int32_t value_dim = 0;
  float norm_eps = 1e-6F;   // of both latents
  bool interleaved = true;  // rope pairs (2i, 2i + 1)

  int32_t q_head_dim() const { return nope_dim + rope_dim; }
};

struct LayerConfig {
  int32_t cache_group = 0;
  bool rope = true;
  bool moe = false;  // experts instead of the dense MLP
};

// How a checkpoint spells its experts.
enum class ExpertNames : uint8_t {
  kProj,     // mlp.experts.E.{gate,up,down}_proj.weight, mlp.gate
  kMixtral,  // block_sparse_moe.experts.E.{w1,w3,w2}.weight, block_sparse_moe.gate
  kGptOss,   // mlp.experts.{gate_up,down}_proj [experts, in, out] with biases, mlp.router
};

// By layer, the place of each expert; an empty list: place e is expert e (expert_placement.h).
using ExpertPlacement = std::vector<std::vector<int32_t>>;

// The routing rule (backend::RouteOptions says what the fields mean) and the experts' shapes.
struct MoeConfig {
  int32_t num_experts = 0;  // 0: a dense model
  int32_t top_k = 0;
  int64_t intermediate_size = 0;  // of one expert
  backend::RouterScore score = backend::RouterScore::kSoftmax;
  bool renormalise = false;
  float scale = 1.0F;
  int32_t num_groups = 1;
  int32_t top_groups = 1;
  int32_t best_of_group = 1;
  bool router_bias = false;
  bool correction = false;               // e_score_correction_bias
  bool expert_bias = false;              // of both products
  int64_t shared_intermediate_size = 0;  // 0: no shared expert
  const char* shared_name = "";          // mlp.<name>.{gate,up,down}_proj
  bool shared_gate = false;              // its result is multiplied by sigmoid(x · gate)
  ExpertNames names = ExpertNames::kProj;
  backend::Activation activation = backend::Activation::kSilu;
  float swiglu_alpha = 1.702F;
  float swiglu_limit = 7.0F;
  // Of this run, not of the checkpoint: weights are loaded, routers included, in this order, and
  // ids on the device are places.
  ExpertPlacement placement = {};

  int32_t place_of(int32_t layer, int32_t expert) const {
    const auto at = static_cast<size_t>(layer);
    if (at >= placement.size() || placement[at].empty()) return expert;
    return placement[at][static_cast<size_t>(expert)];
  }
};

struct ModelConfig {
  std::string architecture;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int32_t num_attention_heads = 0;
  int32_t num_key_value_heads = 0;
  int32_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  float rms_norm_eps = 1e-6F;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;  // per head, before rope
  bool qk_norm_whole =
      false;               // over all heads together (OLMoE): every tp rank computes all of q, k
  bool sinks = false;      // a logit per query head for an extra, empty key
  bool fused_qkv = false;  // checkpoint has qkv_proj (Phi-3)
  bool fused_gate_up = false;  // checkpoint has gate_up_proj (Phi-3)
  backend::Activation activation = backend::Activation::kSilu;
  float embedding_multiplier = 1.0F;
  float residual_multiplier = 1.0F;
  float attention_scale = 0.0F;  // already 1/sqrt(head_dim) where the config is silent
  float logits_scale = 1.0F;     // logits are multiplied by it
  RopeConfig rope;
  LatentConfig
      latent;  // with it, KV heads and head_dim are those of the cache: 1, and a row's width
  MoeConfig moe;
  int32_t num_extra_layers = 0;  // of the checkpoint, behind the model's own; not read
  std::vector<LayerConfig> layers;
  std::vector<CacheGroup> cache_groups;
  DType dtype = DType::kBF16;          // of the checkpoint
  std::vector<int32_t> eos_token_ids;  // generation_config's list, else config's
  int32_t bos_token_id = -1;

  int32_t num_layers() const { return static_cast<int32_t>(layers.size()); }
  bool has_experts() const { return moe.num_experts > 0; }
  bool is_latent() const { return latent.kv_rank > 0; }
};

// generation_config.json's sampling defaults, as far as they are given; -1 or NaN free: has_* says
// so.
struct GenerationDefaults {
  bool has_temperature = false, has_top_p = false, has_top_k = false,
       has_repetition_penalty = false;
  bool do_sample = true;
  float temperature = 1.0F, top_p = 1.0F, repetition_penalty = 1.0F;
  int32_t top_k = 0;
};

// directory/config.json (≤ 4 MiB) and, if there, generation_config.json.
ModelConfig load_model_config(const std::string& directory);
GenerationDefaults load_generation_defaults(const std::string& path);

// Throws Error(kUsage) listing the valid tp when tp does not divide the query heads, or neither of
// tp and the KV heads divides the other.
void require_valid_tp(const ModelConfig& config, int tp);
std::vector<int> valid_tp(const ModelConfig& config, int limit);

// ep is 1, tp or tp times a divisor of dp, at most the number of experts, and 1 for a dense model.
// Throws Error(kUsage) naming what would be valid.
void require_valid_ep(const ModelConfig& config, int dp, int tp, int ep);
std::vector<int> valid_ep(const ModelConfig& config, int dp, int tp);

}  // namespace mpinfer::model
