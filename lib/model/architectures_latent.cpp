// DeepSeek-V2 and V3: latent attention and their routing rules. Defaults of absent fields are those
// of transformers' configuration classes (5.x).
#include <algorithm>
#include <cmath>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/model/architectures.h"

namespace mpinfer::model {
namespace {

constexpr Range kRank = {1, 1 << 16};
constexpr Range kHeadPart = {1, 1024};
constexpr int64_t kMostWidth = 1024;       // of a cached row
constexpr int64_t kMostQueries = 1 << 20;  // elements of a row's queries

int32_t part(const ConfigReader& reader, const char* field, int64_t absent, const Range& range) {
  return static_cast<int32_t>(reader.integer(field, absent, range));
}

void require(const ConfigReader& reader, const char* field, const std::string& supported) {
  const std::string value = reader.string(field, supported);
  if (value == supported) return;
  reader.refuse(field, fmt::format("is \"{}\"; {} has \"{}\"", printable(value, 80),
                                   reader.strings("architectures", 16).front(), supported));
}

void require_false(const ConfigReader& reader, const char* field) {
  if (reader.boolean(field, false)) reader.refuse(field, "is true; supported: false");
}

void fill_latent(const ConfigReader& reader, ModelConfig& config) {
  require_false(reader, "attention_bias");
  LatentConfig& latent = config.latent;
  latent.kv_rank = part(reader, "kv_lora_rank", 512, kRank);
  // null: queries come of one product.
  if (!reader.is_null("q_lora_rank")) latent.q_rank = part(reader, "q_lora_rank", 1536, kRank);
  latent.nope_dim = part(reader, "qk_nope_head_dim", 128, kHeadPart);
  latent.rope_dim = part(reader, "qk_rope_head_dim", 64, kHeadPart);
  latent.value_dim = part(reader, "v_head_dim", 128, kHeadPart);
  const int64_t width = int64_t{latent.kv_rank} + latent.rope_dim;
  if (width > kMostWidth) {
    reader.refuse("kv_lora_rank", fmt::format("is {}, with qk_rope_head_dim {} a row of {}; the "
                                              "limit is {}",
                                              latent.kv_rank, latent.rope_dim, width, kMostWidth));
  }
  const int64_t widest = std::max<int64_t>({width, latent.q_head_dim(), latent.value_dim});
  if (widest * config.num_attention_heads > kMostQueries) {
    reader.refuse("num_attention_heads",
                  fmt::format("is {}, times {} more than the limit of {}",
                              config.num_attention_heads, widest, kMostQueries));
  }
  config.head_dim = latent.rope_dim;  // the part that the rope is of
  config.rope = read_rope(reader, config, 10'000.0);
  if (config.rope.rotary_dim != latent.rope_dim) {
    reader.refuse("partial_rotary_factor", "is not 1, though qk_rope_head_dim turns whole");
  }
  config.head_dim = static_cast<int32_t>(width);
  config.num_key_value_heads = 1;
  config.cache_groups = {{.window = 0, .latent = true}};
  double scale = 1.0 / std::sqrt(static_cast<double>(latent.q_head_dim()));
  if (config.rope.mscale_all_dim > 0.0) {
    scale *= std::pow(yarn_scale(config.rope.factor, config.rope.mscale_all_dim), 2);
  }
  config.attention_scale = static_cast<float>(scale);
  if (reader.integer("moe_layer_freq", 1, {1, 1024}) != 1) {
    reader.refuse("moe_layer_freq", "is not 1: experts in every layer behind the dense ones");
  }
}

}  // namespace

void fill_deepseek_v2(const ConfigReader& reader, ModelConfig& config) {
  fill_latent(reader, config);
  require_false(reader, "mlp_bias");
  require_false(reader, "norm_topk_prob");
  require(reader, "scoring_func", "softmax");
  if (!reader.has("num_experts_per_tok")) reader.refuse("num_experts_per_tok", "is missing");
  read_experts(reader, config, "n_routed_experts", 64, 1);
  const std::string method = reader.string("topk_method", "greedy");
  if (method != "greedy" && method != "group_limited_greedy") {
    reader.refuse("topk_method", fmt::format("is \"{}\"; supported: greedy, group_limited_greedy",
                                             printable(method, 80)));
  }
  read_groups(reader, config, 1, 1, 1.0);
  if (method == "greedy") config.moe.num_groups = config.moe.top_groups = 1;
  dense_prefix_and_shared(reader, config, 0);
}

void fill_deepseek_v3(const ConfigReader& reader, ModelConfig& config) {
  fill_latent(reader, config);
  config.latent.interleaved = reader.boolean("rope_interleave", true);
  require(reader, "scoring_func", "sigmoid");
  require(reader, "topk_method", "noaux_tc");
  read_experts(reader, config, "n_routed_experts", 256, 8);
  read_sigmoid_groups(reader, config, 8, 4, 2.5);
  dense_prefix_and_shared(reader, config, 3);
}

}  // namespace mpinfer::model
