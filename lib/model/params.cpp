#include "lib/model/params.h"

#include <algorithm>

#include "lib/core/error.h"

namespace mpinfer::model {
namespace {

struct Sizes {  // of one TP rank
  Part q;       // heads
  Part kv;
  Part intermediate;
  Part vocab;
};

Sizes sizes_of(const ModelConfig& config, const ShardOf& shard) {
  return {.q = query_heads(config, shard.tp, shard.tp_rank),
          .kv = kv_heads(config, shard.tp, shard.tp_rank),
          .intermediate = ceil_part(config.intermediate_size, shard.tp, shard.tp_rank),
          .vocab = ceil_part(config.vocab_size, shard.tp, shard.tp_rank)};
}

void add_attention(const ModelConfig& config, int32_t layer, const std::string& prefix,
                   std::vector<Parameter>& table) {
  const int64_t hidden = config.hidden_size;
  const int64_t q = int64_t{config.num_attention_heads} * config.head_dim;
  const int64_t kv = int64_t{config.num_key_value_heads} * config.head_dim;
  const std::string at = prefix + "self_attn.";
  if (config.fused_qkv) {
    table.push_back(
        {at + "qkv_proj.weight", Slot::kQkv, ShardRule::kQkvRows, layer, q + 2 * kv, hidden});
  } else {
    table.push_back({at + "q_proj.weight", Slot::kQkv, ShardRule::kQRows, layer, q, hidden});
    table.push_back({at + "k_proj.weight", Slot::kQkv, ShardRule::kKRows, layer, kv, hidden});
    table.push_back({at + "v_proj.weight", Slot::kQkv, ShardRule::kVRows, layer, kv, hidden});
  }
  if (config.qkv_bias) {
    table.push_back({at + "q_proj.bias", Slot::kQkvBias, ShardRule::kQRows, layer, q, 0});
    table.push_back({at + "k_proj.bias", Slot::kQkvBias, ShardRule::kKRows, layer, kv, 0});
    table.push_back({at + "v_proj.bias", Slot::kQkvBias, ShardRule::kVRows, layer, kv, 0});
  }
  if (config.qk_norm) {
    const int64_t dim = config.head_dim;
    table.push_back({at + "q_norm.weight", Slot::kQNorm, ShardRule::kReplicated, layer, dim, 0});
    table.push_back({at + "k_norm.weight", Slot::kKNorm, ShardRule::kReplicated, layer, dim, 0});
  }
  table.push_back({at + "o_proj.weight", Slot::kO, ShardRule::kQCols, layer, hidden, q});
  if (config.o_bias) {
    table.push_back({at + "o_proj.bias", Slot::kOBias, ShardRule::kFirstRank, layer, hidden, 0});
  }
}

void add_mlp(const ModelConfig& config, int32_t layer, const std::string& prefix,
             std::vector<Parameter>& table) {
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const std::string at = prefix + "mlp.";
  if (config.fused_gate_up) {
    table.push_back({at + "gate_up_proj.weight", Slot::kGateUp, ShardRule::kGateUpRows, layer,
                     2 * inner, hidden});
  } else {
    table.push_back(
        {at + "gate_proj.weight", Slot::kGateUp, ShardRule::kGateRows, layer, inner, hidden});
    table.push_back(
        {at + "up_proj.weight", Slot::kGateUp, ShardRule::kUpRows, layer, inner, hidden});
  }
  table.push_back(
      {at + "down_proj.weight", Slot::kDown, ShardRule::kIntermediateCols, layer, hidden, inner});
  if (config.mlp_bias) {
    table.push_back(
        {at + "gate_proj.bias", Slot::kGateUpBias, ShardRule::kGateRows, layer, inner, 0});
    table.push_back({at + "up_proj.bias", Slot::kGateUpBias, ShardRule::kUpRows, layer, inner, 0});
    table.push_back(
        {at + "down_proj.bias", Slot::kDownBias, ShardRule::kFirstRank, layer, hidden, 0});
  }
}

void add_layer_targets(const ModelConfig& config, const Sizes& sizes, bool first_rank,
                       int32_t layer, std::vector<Target>& targets) {
  const int64_t hidden = config.hidden_size;
  const int64_t q = sizes.q.size * config.head_dim;
  const int64_t qkv = q + 2 * sizes.kv.size * config.head_dim;
  const int64_t inner = sizes.intermediate.size;
  targets.push_back({Slot::kInputNorm, layer, hidden, 0});
  targets.push_back({Slot::kQkv, layer, qkv, hidden});
  if (config.qkv_bias) targets.push_back({Slot::kQkvBias, layer, qkv, 0});
  if (config.qk_norm) {
    targets.push_back({Slot::kQNorm, layer, config.head_dim, 0});
    targets.push_back({Slot::kKNorm, layer, config.head_dim, 0});
  }
  targets.push_back({Slot::kO, layer, hidden, q});
  if (config.o_bias && first_rank) targets.push_back({Slot::kOBias, layer, hidden, 0});
  targets.push_back({Slot::kPostAttentionNorm, layer, hidden, 0});
  targets.push_back({Slot::kGateUp, layer, 2 * inner, hidden});
  if (config.mlp_bias) targets.push_back({Slot::kGateUpBias, layer, 2 * inner, 0});
  targets.push_back({Slot::kDown, layer, hidden, inner});
  if (config.mlp_bias && first_rank) targets.push_back({Slot::kDownBias, layer, hidden, 0});
}

}  // namespace

Part ceil_part(int64_t total, int parts, int rank) {
  const int64_t size = (total + parts - 1) / parts;
  const int64_t begin = std::min(total, size * rank);
  return {begin, std::min(size, total - begin)};
}

Part query_heads(const ModelConfig& config, int tp, int tp_rank) {
  const int64_t size = config.num_attention_heads / tp;
  return {size * tp_rank, size};
}

Part kv_heads(const ModelConfig& config, int tp, int tp_rank) {
  const int64_t heads = config.num_key_value_heads;
  if (tp <= heads) return {heads / tp * tp_rank, heads / tp};
  return {tp_rank / (tp / heads), 1};
}

std::vector<Parameter> parameter_table(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  std::vector<Parameter> table;
  table.push_back({"model.embed_tokens.weight", Slot::kEmbedding, ShardRule::kVocabRows, -1,
                   config.vocab_size, hidden});
  for (int32_t layer = 0; layer < config.num_layers(); ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    table.push_back({prefix + "input_layernorm.weight", Slot::kInputNorm, ShardRule::kReplicated,
                     layer, hidden, 0});
    add_attention(config, layer, prefix, table);
    table.push_back({prefix + "post_attention_layernorm.weight", Slot::kPostAttentionNorm,
                     ShardRule::kReplicated, layer, hidden, 0});
    add_mlp(config, layer, prefix, table);
  }
  table.push_back({"model.norm.weight", Slot::kFinalNorm, ShardRule::kReplicated, -1, hidden, 0});
  if (!config.tie_word_embeddings) {
    table.push_back(
        {"lm_head.weight", Slot::kLmHead, ShardRule::kVocabRows, -1, config.vocab_size, hidden});
  }
  return table;
}

std::vector<Target> shard_targets(const ModelConfig& config, const ShardOf& shard) {
  const Sizes sizes = sizes_of(config, shard);
  const bool first = shard.stage_index == 0;
  const bool last = shard.stage_index == shard.num_stages - 1;
  std::vector<Target> targets;
  if (first) targets.push_back({Slot::kEmbedding, -1, sizes.vocab.size, config.hidden_size});
  for (int32_t layer = shard.stage.begin; layer < shard.stage.end; ++layer) {
    add_layer_targets(config, sizes, shard.tp_rank == 0, layer, targets);
  }
  if (last) {
    targets.push_back({Slot::kFinalNorm, -1, config.hidden_size, 0});
    if (!config.tie_word_embeddings || !first) {
      targets.push_back({Slot::kLmHead, -1, sizes.vocab.size, config.hidden_size});
    }
  }
  return targets;
}

bool holds(const ShardOf& shard, const ModelConfig& config, const Parameter& parameter,
           Slot* slot) {
  const bool first = shard.stage_index == 0;
  const bool last = shard.stage_index == shard.num_stages - 1;
  *slot = parameter.slot;
  if (parameter.rule == ShardRule::kFirstRank && shard.tp_rank != 0) return false;
  if (parameter.layer >= 0) {
    return parameter.layer >= shard.stage.begin && parameter.layer < shard.stage.end;
  }
  if (parameter.slot != Slot::kEmbedding) return last;
  if (first) return true;
  *slot = Slot::kLmHead;
  return last && config.tie_word_embeddings;
}

std::vector<Piece> shard_pieces(const ModelConfig& config, const ShardOf& shard,
                                const Parameter& parameter) {
  const Sizes sizes = sizes_of(config, shard);
  const int64_t dim = config.head_dim;
  const int64_t cols = std::max<int64_t>(parameter.cols, 1);
  const int64_t q_rows = sizes.q.size * dim;
  const int64_t kv_rows = sizes.kv.size * dim;
  const int64_t all_q = config.num_attention_heads * dim;
  const int64_t all_kv = config.num_key_value_heads * dim;
  const auto rows = [&](int64_t source_row, int64_t count, int64_t first_row, int64_t step = 1) {
    return Piece{source_row, 0, count, cols, first_row, step};
  };
  switch (parameter.rule) {
    case ShardRule::kReplicated:
    case ShardRule::kFirstRank:
      return {rows(0, parameter.rows, 0)};
    case ShardRule::kVocabRows:
      return {rows(sizes.vocab.begin, sizes.vocab.size, 0)};
    case ShardRule::kQRows:
      return {rows(sizes.q.begin * dim, q_rows, 0)};
    case ShardRule::kKRows:
      return {rows(sizes.kv.begin * dim, kv_rows, q_rows)};
    case ShardRule::kVRows:
      return {rows(sizes.kv.begin * dim, kv_rows, q_rows + kv_rows)};
    case ShardRule::kQkvRows:
      return {rows(sizes.q.begin * dim, q_rows, 0),
              rows(all_q + sizes.kv.begin * dim, kv_rows, q_rows),
              rows(all_q + all_kv + sizes.kv.begin * dim, kv_rows, q_rows + kv_rows)};
    case ShardRule::kGateRows:
      return {rows(sizes.intermediate.begin, sizes.intermediate.size, 0, 2)};
    case ShardRule::kUpRows:
      return {rows(sizes.intermediate.begin, sizes.intermediate.size, 1, 2)};
    case ShardRule::kGateUpRows:
      return {
          rows(sizes.intermediate.begin, sizes.intermediate.size, 0, 2),
          rows(config.intermediate_size + sizes.intermediate.begin, sizes.intermediate.size, 1, 2)};
    case ShardRule::kQCols:
      return {Piece{0, sizes.q.begin * dim, parameter.rows, q_rows, 0, 1}};
    case ShardRule::kIntermediateCols:
      return {Piece{0, sizes.intermediate.begin, parameter.rows, sizes.intermediate.size, 0, 1}};
  }
  return {};
}

bool is_harmless_extra(const ModelConfig& config, const std::string& name) {
  return name.ends_with("rotary_emb.inv_freq") ||
         (config.tie_word_embeddings && name == "lm_head.weight");
}

int64_t weight_bytes(const ModelConfig& config, const ShardOf& shard, const PackedBytes& packed) {
  constexpr int64_t kAlign = 256;
  int64_t bytes = 0;
  for (const Target& target : shard_targets(config, shard)) {
    const int64_t size = target.cols == 0
                             ? target.rows * size_of(DType::kF32)
                             : (packed ? packed(target.rows, target.cols, config.dtype)
                                       : target.rows * target.cols * size_of(config.dtype));
    bytes += (size + kAlign - 1) / kAlign * kAlign;
  }
  return bytes;
}

}  // namespace mpinfer::model
