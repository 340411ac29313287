#include "lib/model/params_latent.h"

namespace mpinfer::model {

void add_latent_attention(const ModelConfig& config, int32_t layer, const std::string& at,
                          std::vector<Parameter>& table) {
  const LatentConfig& latent = config.latent;
  const int64_t hidden = config.hidden_size;
  const int64_t heads = config.num_attention_heads;
  const int64_t up = heads * (latent.nope_dim + latent.value_dim);
  const auto add = [&](const char* name, Slot slot, ShardRule rule, int64_t rows, int64_t cols) {
    table.push_back({at + name + ".weight", slot, rule, layer, rows, cols});
  };
  if (latent.q_rank > 0) {
    add("q_a_proj", Slot::kLatentQA, ShardRule::kReplicated, latent.q_rank, hidden);
    add("q_a_layernorm", Slot::kLatentQANorm, ShardRule::kReplicated, latent.q_rank, 0);
  }
  add(latent.q_rank > 0 ? "q_b_proj" : "q_proj", Slot::kLatentQB, ShardRule::kLatentQRows,
      heads * latent.q_head_dim(), latent.q_rank > 0 ? latent.q_rank : hidden);
  add("kv_a_proj_with_mqa", Slot::kLatentKvA, ShardRule::kReplicated, config.head_dim, hidden);
  add("kv_a_layernorm", Slot::kLatentKvANorm, ShardRule::kReplicated, latent.kv_rank, 0);
  // One tensor, two places.
  add("kv_b_proj", Slot::kLatentKeyUp, ShardRule::kLatentKeyUp, up, latent.kv_rank);
  add("kv_b_proj", Slot::kLatentValueUp, ShardRule::kLatentValueUp, up, latent.kv_rank);
  add("o_proj", Slot::kO, ShardRule::kLatentOCols, hidden, heads * latent.value_dim);
}

void add_latent_targets(const ModelConfig& config, int64_t num_heads, int32_t layer,
                        std::vector<Target>& targets) {
  const LatentConfig& latent = config.latent;
  const int64_t hidden = config.hidden_size;
  if (latent.q_rank > 0) {
    targets.push_back({Slot::kLatentQA, layer, latent.q_rank, hidden});
    targets.push_back({Slot::kLatentQANorm, layer, latent.q_rank, 0});
  }
  targets.push_back({Slot::kLatentQB, layer, num_heads * latent.q_head_dim(),
                     latent.q_rank > 0 ? latent.q_rank : hidden});
  targets.push_back({Slot::kLatentKvA, layer, config.head_dim, hidden});
  targets.push_back({Slot::kLatentKvANorm, layer, latent.kv_rank, 0});
  targets.push_back({.slot = Slot::kLatentKeyUp,
                     .layer = layer,
                     .rows = latent.kv_rank,
                     .cols = latent.nope_dim,
                     .heads = num_heads});
  targets.push_back({.slot = Slot::kLatentValueUp,
                     .layer = layer,
                     .rows = latent.value_dim,
                     .cols = latent.kv_rank,
                     .heads = num_heads});
  targets.push_back({Slot::kO, layer, hidden, num_heads * latent.value_dim});
}

std::vector<Piece> latent_pieces(const ModelConfig& config, const Part& heads,
                                 const Parameter& parameter) {
  const LatentConfig& latent = config.latent;
  if (parameter.rule == ShardRule::kLatentQRows) {
    const int64_t dim = latent.q_head_dim();
    return {{heads.begin * dim, 0, heads.size * dim, parameter.cols}};
  }
  if (parameter.rule == ShardRule::kLatentOCols) {
    const int64_t dim = latent.value_dim;
    return {{0, heads.begin * dim, parameter.rows, heads.size * dim}};
  }
  const bool keys = parameter.rule == ShardRule::kLatentKeyUp;
  std::vector<Piece> pieces;
  for (int64_t i = 0; i < heads.size; ++i) {
    const int64_t row = (heads.begin + i) * (latent.nope_dim + latent.value_dim);
    pieces.push_back(
        keys ? Piece{row, 0, latent.kv_rank, latent.nope_dim, 0, 1, i, true}
             : Piece{row + latent.nope_dim, 0, latent.value_dim, latent.kv_rank, 0, 1, i, false});
  }
  return pieces;
}

}  // namespace mpinfer::model
