#include "lib/model/params.h"

#include <algorithm>

#include "lib/core/error.h"
#include "lib/model/params_latent.h"

namespace mpinfer::model {
namespace {

struct Sizes {  // of one TP rank
  Part q;       // heads
  Part kv;
  Part intermediate;
  Part vocab;
  Part shared;   // of the shared expert's intermediate size
  Part experts;  // whole experts, or
  Part inner;    // a part of each
  // Heads whose q and k the rank computes: its own, or all where a norm goes over all of them.
  Part computed_q;
  Part computed_k;
};

Sizes sizes_of(const ModelConfig& config, const ShardOf& shard) {
  const bool all = config.qk_norm_whole;
  const Part q = query_heads(config, shard.tp, shard.tp_rank);
  const Part kv = kv_heads(config, shard.tp, shard.tp_rank);
  return {.q = q,
          .kv = kv,
          .intermediate = ceil_part(config.intermediate_size, shard.tp, shard.tp_rank),
          .vocab = ceil_part(config.vocab_size, shard.tp, shard.tp_rank),
          .shared = ceil_part(config.moe.shared_intermediate_size, shard.tp, shard.tp_rank),
          .experts = expert_part(config, shard.ep, shard.ep_rank),
          .inner = expert_intermediate(config, shard),
          .computed_q = all ? Part{0, config.num_attention_heads} : q,
          .computed_k = all ? Part{0, config.num_key_value_heads} : kv};
}

void add_attention(const ModelConfig& config, int32_t layer, const std::string& prefix,
                   std::vector<Parameter>& table) {
  const int64_t hidden = config.hidden_size;
  const int64_t q = int64_t{config.num_attention_heads} * config.head_dim;
  const int64_t kv = int64_t{config.num_key_value_heads} * config.head_dim;
  const std::string at = prefix + "self_attn.";
  if (config.is_latent()) return add_latent_attention(config, layer, at, table);
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
    table.push_back({at + "q_norm.weight", Slot::kQNorm, ShardRule::kReplicated, layer,
                     config.qk_norm_whole ? q : dim, 0});
    table.push_back({at + "k_norm.weight", Slot::kKNorm, ShardRule::kReplicated, layer,
                     config.qk_norm_whole ? kv : dim, 0});
  }
  if (config.sinks) {
    table.push_back(
        {at + "sinks", Slot::kSinks, ShardRule::kQHeads, layer, config.num_attention_heads, 0});
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

struct ExpertTensors {  // names after "experts.E."
  const char* block;
  const char* router;
  const char* gate;
  const char* up;
  const char* down;
};

ExpertTensors expert_tensors(ExpertNames names) {
  if (names == ExpertNames::kMixtral) return {"block_sparse_moe.", "gate", "w1", "w3", "w2"};
  if (names == ExpertNames::kGptOss) return {"mlp.", "router", "", "gate_up_proj", "down_proj"};
  return {"mlp.", "gate", "gate_proj", "up_proj", "down_proj"};
}

void add_experts(const ModelConfig& config, int32_t layer, const std::string& at,
                 std::vector<Parameter>& table) {
  const MoeConfig& moe = config.moe;
  const int64_t hidden = config.hidden_size;
  const int64_t inner = moe.intermediate_size;
  const ExpertTensors names = expert_tensors(moe.names);
  if (moe.names == ExpertNames::kGptOss) {
    const std::string prefix = at + "experts.";
    const auto add = [&](const std::string& name, Slot slot, ShardRule rule, int64_t rows,
                         int64_t cols) {
      table.push_back({prefix + name, slot, rule, layer, rows, cols, -1, moe.num_experts});
    };
    add("gate_up_proj", Slot::kExpertGateUp, ShardRule::kExpertGateUpTransposed, hidden, 2 * inner);
    add("gate_up_proj_bias", Slot::kExpertGateUpBias, ShardRule::kExpertGateUpBiases, 2 * inner, 0);
    add("down_proj", Slot::kExpertDown, ShardRule::kExpertDownTransposed, inner, hidden);
    add("down_proj_bias", Slot::kExpertDownBias, ShardRule::kExpertDownBiases, hidden, 0);
    return;
  }
  for (int32_t e = 0; e < moe.num_experts; ++e) {
    const std::string prefix = fmt::format("{}experts.{}.", at, e);
    const auto add = [&](const char* name, Slot slot, ShardRule rule, int64_t rows, int64_t cols) {
      table.push_back({prefix + name + ".weight", slot, rule, layer, rows, cols, e});
    };
    add(names.gate, Slot::kExpertGateUp, ShardRule::kExpertGateRows, inner, hidden);
    add(names.up, Slot::kExpertGateUp, ShardRule::kExpertUpRows, inner, hidden);
    add(names.down, Slot::kExpertDown, ShardRule::kExpertCols, hidden, inner);
  }
}

void add_moe(const ModelConfig& config, int32_t layer, const std::string& prefix,
             std::vector<Parameter>& table) {
  const MoeConfig& moe = config.moe;
  const int64_t hidden = config.hidden_size;
  const ExpertTensors names = expert_tensors(moe.names);
  const std::string at = prefix + names.block;
  const std::string router = at + names.router;
  table.push_back(
      {router + ".weight", Slot::kRouter, ShardRule::kRouterRows, layer, moe.num_experts, hidden});
  if (moe.router_bias) {
    table.push_back(
        {router + ".bias", Slot::kRouterBias, ShardRule::kRouterRows, layer, moe.num_experts, 0});
  }
  if (moe.correction) {
    table.push_back({router + ".e_score_correction_bias", Slot::kRouterCorrection,
                     ShardRule::kRouterRows, layer, moe.num_experts, 0});
  }
  add_experts(config, layer, at, table);
  const int64_t shared = moe.shared_intermediate_size;
  if (shared == 0) return;
  const std::string name = fmt::format("{}{}.", at, moe.shared_name);
  table.push_back({name + "gate_proj.weight", Slot::kSharedGateUp, ShardRule::kSharedGateRows,
                   layer, shared, hidden});
  table.push_back({name + "up_proj.weight", Slot::kSharedGateUp, ShardRule::kSharedUpRows, layer,
                   shared, hidden});
  table.push_back({name + "down_proj.weight", Slot::kSharedDown, ShardRule::kSharedCols, layer,
                   hidden, shared});
  if (moe.shared_gate) {
    table.push_back({at + "shared_expert_gate.weight", Slot::kSharedGate, ShardRule::kReplicated,
                     layer, 1, hidden});
  }
}

void add_moe_targets(const ModelConfig& config, const Sizes& sizes, bool first_rank, bool cut,
                     int32_t layer, std::vector<Target>& targets) {
  const MoeConfig& moe = config.moe;
  const int64_t hidden = config.hidden_size;
  const int64_t inner = sizes.inner.size;
  const int64_t experts = sizes.experts.size;
  targets.push_back({Slot::kRouter, layer, moe.num_experts, hidden});
  if (moe.router_bias) targets.push_back({Slot::kRouterBias, layer, moe.num_experts, 0});
  if (moe.correction) targets.push_back({Slot::kRouterCorrection, layer, moe.num_experts, 0});
  targets.push_back({Slot::kExpertGateUp, layer, 2 * inner, hidden, experts});
  targets.push_back({Slot::kExpertDown, layer, hidden, inner, experts});
  if (moe.expert_bias) {
    targets.push_back({Slot::kExpertGateUpBias, layer, experts * 2 * inner, 0});
    if (!cut || first_rank) targets.push_back({Slot::kExpertDownBias, layer, experts * hidden, 0});
  }
  if (moe.shared_intermediate_size == 0) return;
  targets.push_back({Slot::kSharedGateUp, layer, 2 * sizes.shared.size, hidden});
  targets.push_back({Slot::kSharedDown, layer, hidden, sizes.shared.size});
  if (moe.shared_gate) targets.push_back({Slot::kSharedGate, layer, 1, hidden});
}

void add_attention_targets(const ModelConfig& config, const Sizes& sizes, bool first_rank,
                           int32_t layer, std::vector<Target>& targets) {
  const int64_t dim = config.head_dim;
  const int64_t q = sizes.computed_q.size * dim;
  const int64_t k = sizes.computed_k.size * dim;
  const int64_t qkv = q + k + sizes.kv.size * dim;
  targets.push_back({Slot::kQkv, layer, qkv, config.hidden_size});
  if (config.qkv_bias) targets.push_back({Slot::kQkvBias, layer, qkv, 0});
  if (config.qk_norm) {
    targets.push_back({Slot::kQNorm, layer, config.qk_norm_whole ? q : dim, 0});
    targets.push_back({Slot::kKNorm, layer, config.qk_norm_whole ? k : dim, 0});
  }
  if (config.sinks) targets.push_back({Slot::kSinks, layer, sizes.q.size, 0});
  targets.push_back({Slot::kO, layer, config.hidden_size, sizes.q.size * dim});
  if (config.o_bias && first_rank) targets.push_back({Slot::kOBias, layer, config.hidden_size, 0});
}

void add_layer_targets(const ModelConfig& config, const Sizes& sizes, const ShardOf& shard,
                       int32_t layer, std::vector<Target>& targets) {
  const bool first_rank = shard.tp_rank == 0;
  const int64_t hidden = config.hidden_size;
  const int64_t inner = sizes.intermediate.size;
  targets.push_back({Slot::kInputNorm, layer, hidden, 0});
  if (config.is_latent()) {
    add_latent_targets(config, sizes.q.size, layer, targets);
  } else {
    add_attention_targets(config, sizes, first_rank, layer, targets);
  }
  targets.push_back({Slot::kPostAttentionNorm, layer, hidden, 0});
  if (config.layers[static_cast<size_t>(layer)].moe) {
    return add_moe_targets(config, sizes, first_rank, shard.ep == 1 && shard.tp > 1, layer,
                           targets);
  }
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

Part expert_part(const ModelConfig& config, int ep, int ep_rank) {
  const int64_t each = config.moe.num_experts / ep;
  const int64_t longer = config.moe.num_experts % ep;
  return {each * ep_rank + std::min<int64_t>(ep_rank, longer), each + (ep_rank < longer ? 1 : 0)};
}

Part expert_intermediate(const ModelConfig& config, const ShardOf& shard) {
  if (shard.ep > 1) return {0, config.moe.intermediate_size};
  return ceil_part(config.moe.intermediate_size, shard.tp, shard.tp_rank);
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
    if (config.layers[static_cast<size_t>(layer)].moe) {
      add_moe(config, layer, prefix, table);
    } else {
      add_mlp(config, layer, prefix, table);
    }
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
    add_layer_targets(config, sizes, shard, layer, targets);
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
  if (parameter.rule == ShardRule::kExpertDownBiases && shard.ep == 1 && shard.tp_rank != 0) {
    return false;
  }
  if (parameter.expert >= 0) {
    const Part experts = expert_part(config, shard.ep, shard.ep_rank);
    const int64_t place = config.moe.place_of(parameter.layer, parameter.expert);
    if (place < experts.begin || place >= experts.begin + experts.size) return false;
  }
  if (parameter.layer >= 0) {
    return parameter.layer >= shard.stage.begin && parameter.layer < shard.stage.end;
  }
  if (parameter.slot != Slot::kEmbedding) return last;
  if (first) return true;
  *slot = Slot::kLmHead;
  return last && config.tie_word_embeddings;
}

namespace {

// The pieces of a stacked tensor: one an expert of the rank.
std::vector<Piece> stacked_pieces(const ModelConfig& config, const Sizes& sizes,
                                  const Parameter& parameter) {
  const int64_t hidden = config.hidden_size;
  const Part& inner = sizes.inner;
  std::vector<Piece> pieces;
  for (int32_t e = 0; e < config.moe.num_experts; ++e) {
    const int64_t i = config.moe.place_of(parameter.layer, e) - sizes.experts.begin;
    if (i < 0 || i >= sizes.experts.size) continue;
    const int64_t row = e * parameter.rows;
    switch (parameter.rule) {
      case ShardRule::kExpertGateUpTransposed:
        pieces.push_back({row, 2 * inner.begin, 2 * inner.size, hidden, 0, 1, i, true});
        break;
      case ShardRule::kExpertDownTransposed:
        pieces.push_back({row + inner.begin, 0, hidden, inner.size, 0, 1, i, true});
        break;
      case ShardRule::kExpertGateUpBiases:
        pieces.push_back(
            {row + 2 * inner.begin, 0, 2 * inner.size, 1, i * 2 * inner.size, 1, i, false});
        break;
      default:
        pieces.push_back({row, 0, hidden, 1, i * hidden, 1, i, false});
    }
  }
  return pieces;
}

}  // namespace

std::vector<Piece> shard_pieces(const ModelConfig& config, const ShardOf& shard,
                                const Parameter& parameter) {
  const Sizes sizes = sizes_of(config, shard);
  const int64_t dim = config.head_dim;
  const int64_t cols = std::max<int64_t>(parameter.cols, 1);
  const int64_t q_rows = sizes.computed_q.size * dim;
  const int64_t k_rows = sizes.computed_k.size * dim;
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
      return {rows(sizes.computed_q.begin * dim, q_rows, 0)};
    case ShardRule::kKRows:
      return {rows(sizes.computed_k.begin * dim, k_rows, q_rows)};
    case ShardRule::kVRows:
      return {rows(sizes.kv.begin * dim, kv_rows, q_rows + k_rows)};
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
      return {Piece{0, sizes.q.begin * dim, parameter.rows, sizes.q.size * dim, 0, 1}};
    case ShardRule::kIntermediateCols:
      return {Piece{0, sizes.intermediate.begin, parameter.rows, sizes.intermediate.size, 0, 1}};
    case ShardRule::kRouterRows: {
      std::vector<Piece> pieces;
      for (int32_t e = 0; e < config.moe.num_experts; ++e) {
        pieces.push_back(rows(e, 1, config.moe.place_of(parameter.layer, e)));
      }
      return pieces;
    }
    case ShardRule::kQHeads:
      return {rows(sizes.q.begin, sizes.q.size, 0)};
    case ShardRule::kSharedGateRows:
      return {rows(sizes.shared.begin, sizes.shared.size, 0, 2)};
    case ShardRule::kSharedUpRows:
      return {rows(sizes.shared.begin, sizes.shared.size, 1, 2)};
    case ShardRule::kSharedCols:
      return {Piece{0, sizes.shared.begin, parameter.rows, sizes.shared.size, 0, 1}};
    case ShardRule::kExpertGateRows:
    case ShardRule::kExpertUpRows: {
      Piece piece = rows(sizes.inner.begin, sizes.inner.size,
                         parameter.rule == ShardRule::kExpertUpRows ? 1 : 0, 2);
      piece.expert = config.moe.place_of(parameter.layer, parameter.expert) - sizes.experts.begin;
      return {piece};
    }
    case ShardRule::kExpertCols:
      return {Piece{0, sizes.inner.begin, parameter.rows, sizes.inner.size, 0, 1,
                    config.moe.place_of(parameter.layer, parameter.expert) - sizes.experts.begin}};
    case ShardRule::kExpertGateUpTransposed:
    case ShardRule::kExpertDownTransposed:
    case ShardRule::kExpertGateUpBiases:
    case ShardRule::kExpertDownBiases:
      return stacked_pieces(config, sizes, parameter);
    case ShardRule::kLatentQRows:
    case ShardRule::kLatentKeyUp:
    case ShardRule::kLatentValueUp:
    case ShardRule::kLatentOCols:
      return latent_pieces(config, sizes.q, parameter);
  }
  return {};
}

bool is_harmless_extra(const ModelConfig& config, const std::string& name) {
  for (int32_t i = 0; i < config.num_extra_layers; ++i) {
    if (name.starts_with(fmt::format("model.layers.{}.", config.num_layers() + i))) return true;
  }
  return name.ends_with("rotary_emb.inv_freq") ||
         (config.tie_word_embeddings && name == "lm_head.weight");
}

int64_t weight_bytes(const ModelConfig& config, const ShardOf& shard, const PackedBytes& packed) {
  constexpr int64_t kAlign = 256;
  int64_t bytes = 0;
  for (const Target& target : shard_targets(config, shard)) {
    const bool expert = target.experts > 0;
    const int64_t size = target.cols == 0 ? target.rows * size_of(DType::kF32)
                         : packed         ? packed(target.rows, target.cols, config.dtype, expert)
                                          : target.rows * target.cols * size_of(config.dtype);
    bytes += (size + kAlign - 1) / kAlign * kAlign *
             std::max<int64_t>({1, target.experts, target.heads});
  }
  return bytes;
}

}  // namespace mpinfer::model
