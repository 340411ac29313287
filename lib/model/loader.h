// Loader: reads the byte ranges that one rank needs (pread, bounded staging, several threads) and
// packs them into the backend's layout. Every tensor of the checkpoint must be consumed exactly
// once over the parameter table.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lib/backend/backend.h"
#include "lib/model/config.h"
#include "lib/model/kv_cache.h"

namespace mpinfer::model {

// Of latent attention. Keys and values of a head are products of the latent row; the product of the
// keys goes into the queries instead, that of the values behind attention.
struct LatentWeights {
  backend::Weight q_a;                 // [q_rank, hidden], none where q_rank is 0
  const void* q_a_norm = nullptr;      // f32 [q_rank]
  backend::Weight q_b;                 // [local q heads * q_head_dim, q_rank or hidden]
  backend::Weight kv_a;                // [kv_rank + rope_dim, hidden]
  const void* kv_a_norm = nullptr;     // f32 [kv_rank]
  backend::WeightStack key_up = {};    // a local q head each [kv_rank, nope_dim]
  backend::WeightStack value_up = {};  // a local q head each [value_dim, kv_rank]
};

struct LayerWeights {
  const void* input_norm = nullptr;  // f32 [hidden_size]
  backend::Weight qkv;               // [(q + 2 kv local heads) * head_dim, hidden]
  const void* qkv_bias = nullptr;    // f32 or null
  const void* q_norm = nullptr;      // f32 [head_dim] or null
  const void* k_norm = nullptr;
  backend::Weight o;                          // [hidden, local q heads * head_dim]
  const void* o_bias = nullptr;               // only on tp rank 0, so that the sum has it once
  const void* post_attention_norm = nullptr;  // f32
  backend::Weight gate_up;                    // [2 * local intermediate, hidden], interleaved
  const void* gate_up_bias = nullptr;
  backend::Weight down;             // [hidden, local intermediate]
  const void* down_bias = nullptr;  // only on tp rank 0
  const void* sinks = nullptr;      // f32 [local q heads] or null
  LatentWeights latent = {};        // instead of qkv; o is [hidden, local q heads * value_dim]
  // Of a layer with experts, instead of gate_up and down:
  backend::Weight router;                     // [experts, hidden]
  const void* router_bias = nullptr;          // f32 [experts] or null
  const void* router_correction = nullptr;    // likewise
  backend::WeightStack expert_gate_up;        // each [2 * local intermediate, hidden], interleaved
  backend::WeightStack expert_down;           // each [hidden, local intermediate]
  const void* expert_gate_up_bias = nullptr;  // f32 [local experts, 2 * local intermediate] or null
  const void* expert_down_bias = nullptr;     // f32 [local experts, hidden] or null
  backend::Weight shared_gate_up;             // [2 * local intermediate, hidden], interleaved
  backend::Weight shared_down;                // [hidden, local intermediate]
  backend::Weight shared_gate;                // [1, hidden]
};

struct StageWeights {
  StageLayers stage;
  bool first = false;  // has the embedding
  bool last = false;   // has final norm and LM head
  int tp = 1;
  int tp_rank = 0;
  int ep = 1;
  int ep_rank = 0;
  int32_t first_expert = 0;  // the rank's: [first_expert, first_expert + num_experts)
  int32_t num_experts = 0;
  backend::Weight embedding;  // local vocabulary rows [vocab_begin, vocab_begin + out_features)
  int64_t vocab_begin = 0;
  const void* final_norm = nullptr;
  backend::Weight lm_head;              // = embedding when tied
  std::vector<LayerWeights> layers;     // stage.end - stage.begin
  std::vector<backend::Buffer> memory;  // owns all of the above
  int64_t bytes = 0;
};

struct ShardOf {  // which part of the model this rank holds
  StageLayers stage;
  int num_stages = 1;
  int stage_index = 0;
  int tp = 1;
  int tp_rank = 0;
  int ep = 1;       // 1: every expert is cut by TP; else whole experts, dealt to ep ranks
  int ep_rank = 0;  // member of the lockstep group * tp + tp_rank
};

enum class LoadFormat : uint8_t { kAuto, kDummy };

// Checks headers of all safetensors files of directory against the parameter table. Returns a hash
// of config, headers (names, shapes, offsets, file sizes) and at most 64 pieces of 4 KiB of
// weights: the model's identity. It tells apart fine-tunes of one model, not files in which a byte
// was damaged. Throws Error(kModelRefused) naming file, tensor and rule.
uint64_t check_checkpoint(const std::string& directory, const ModelConfig& config);

// threads: reading threads. kDummy: weights N(0, 0.02) by (seed, parameter name, position),
// norms 1.
StageWeights load_weights(backend::Backend& backend, const std::string& directory,
                          const ModelConfig& config, const ShardOf& shard, LoadFormat format,
                          uint64_t seed, int threads);

// Bytes of a packed weight by (out_features, in_features, dtype, of an expert):
// Backend::packed_bytes, packed_expert_bytes.
using PackedBytes = std::function<int64_t(int64_t, int64_t, DType, bool)>;

// Bytes of weights on this rank, from the parameter table alone; without packed the plain sizes.
int64_t weight_bytes(const ModelConfig& config, const ShardOf& shard,
                     const PackedBytes& packed = nullptr);

// Layers per stage: balanced, the LM head counted for the share of the tokens that draw (a prompt's
// last and every completion token but the last); or as given (sum checked, Error(kUsage)).
std::vector<StageLayers> balance_stages(const ModelConfig& config, int num_stages,
                                        const std::vector<int32_t>& layers_per_stage,
                                        double drawn_share = 1.0);

}  // namespace mpinfer::model
