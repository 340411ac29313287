#include "lib/model/placement.h"

#include <algorithm>

#include "lib/core/error.h"

namespace mpinfer::model {
namespace {

constexpr int64_t kAlignment = 256;

int64_t align_up(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

void set_latent_slot(LatentWeights& into, const Placed& placed) {
  switch (placed.target.slot) {
    case Slot::kLatentQA:
      into.q_a = placed.weight.first;
      break;
    case Slot::kLatentQANorm:
      into.q_a_norm = placed.device;
      break;
    case Slot::kLatentQB:
      into.q_b = placed.weight.first;
      break;
    case Slot::kLatentKvA:
      into.kv_a = placed.weight.first;
      break;
    case Slot::kLatentKvANorm:
      into.kv_a_norm = placed.device;
      break;
    case Slot::kLatentKeyUp:
      into.key_up = placed.weight;
      break;
    case Slot::kLatentValueUp:
      into.value_up = placed.weight;
      break;
    default:
      MPINFER_CHECK(false, "slot {} has no member", static_cast<int>(placed.target.slot));
  }
}

void set_expert_slot(LayerWeights& into, const Placed& placed) {
  switch (placed.target.slot) {
    case Slot::kSinks:
      into.sinks = placed.device;
      break;
    case Slot::kRouter:
      into.router = placed.weight.first;
      break;
    case Slot::kRouterBias:
      into.router_bias = placed.device;
      break;
    case Slot::kRouterCorrection:
      into.router_correction = placed.device;
      break;
    case Slot::kExpertGateUp:
      into.expert_gate_up = placed.weight;
      break;
    case Slot::kExpertGateUpBias:
      into.expert_gate_up_bias = placed.device;
      break;
    case Slot::kExpertDown:
      into.expert_down = placed.weight;
      break;
    case Slot::kExpertDownBias:
      into.expert_down_bias = placed.device;
      break;
    case Slot::kSharedGateUp:
      into.shared_gate_up = placed.weight.first;
      break;
    case Slot::kSharedDown:
      into.shared_down = placed.weight.first;
      break;
    case Slot::kSharedGate:
      into.shared_gate = placed.weight.first;
      break;
    default:
      set_latent_slot(into.latent, placed);
  }
}

}  // namespace

std::vector<Placed> place_weights(backend::Backend& backend, const ModelConfig& config,
                                  const ShardOf& shard, StageWeights& out) {
  const auto packed = [&](int64_t rows, int64_t cols, DType dtype, bool expert) {
    return expert ? backend.packed_expert_bytes(rows, cols, dtype)
                  : backend.packed_bytes(rows, cols, dtype);
  };
  out.bytes = weight_bytes(config, shard, packed);
  out.memory.push_back(backend.allocate(out.bytes));
  char* at = static_cast<char*>(out.memory.back().data());
  std::vector<Placed> all;
  for (const Target& target : shard_targets(config, shard)) {
    Placed placed{.target = target, .device = at};
    if (target.cols == 0) {
      placed.vector.assign(static_cast<size_t>(target.rows), 0.0F);
      at += align_up(target.rows * size_of(DType::kF32));
    } else {
      const bool expert = target.experts > 0;
      placed.weight.stride_bytes = align_up(packed(target.rows, target.cols, config.dtype, expert));
      const int64_t count = std::max<int64_t>({1, target.experts, target.heads});
      for (int64_t i = 0; i < count; ++i) {  // each has a padding of its own to clear
        const backend::Weight one =
            expert ? backend.make_expert_weight(at, target.rows, target.cols, config.dtype)
                   : backend.make_weight(at, target.rows, target.cols, config.dtype);
        if (i == 0) placed.weight.first = one;
        at += placed.weight.stride_bytes;
      }
    }
    all.push_back(std::move(placed));
  }
  return all;
}

void set_slot(StageWeights& out, const Placed& placed) {
  const int32_t layer = placed.target.layer;
  LayerWeights none;
  LayerWeights& into = layer < 0 ? none : out.layers[static_cast<size_t>(layer - out.stage.begin)];
  const backend::Weight& weight = placed.weight.first;
  switch (placed.target.slot) {
    case Slot::kEmbedding:
      out.embedding = weight;
      break;
    case Slot::kFinalNorm:
      out.final_norm = placed.device;
      break;
    case Slot::kLmHead:
      out.lm_head = weight;
      break;
    case Slot::kInputNorm:
      into.input_norm = placed.device;
      break;
    case Slot::kQkv:
      into.qkv = weight;
      break;
    case Slot::kQkvBias:
      into.qkv_bias = placed.device;
      break;
    case Slot::kQNorm:
      into.q_norm = placed.device;
      break;
    case Slot::kKNorm:
      into.k_norm = placed.device;
      break;
    case Slot::kO:
      into.o = weight;
      break;
    case Slot::kOBias:
      into.o_bias = placed.device;
      break;
    case Slot::kPostAttentionNorm:
      into.post_attention_norm = placed.device;
      break;
    case Slot::kGateUp:
      into.gate_up = weight;
      break;
    case Slot::kGateUpBias:
      into.gate_up_bias = placed.device;
      break;
    case Slot::kDown:
      into.down = weight;
      break;
    case Slot::kDownBias:
      into.down_bias = placed.device;
      break;
    default:
      set_expert_slot(into, placed);
  }
}

}  // namespace mpinfer::model
