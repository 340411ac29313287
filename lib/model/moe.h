// The experts of a layer: router, choice, the rank's experts, the shared expert. Under TP a rank
// has a part of every expert (ep 1) or whole experts of its own (ep = tp); either way it leaves a
// Partial like any row-parallel linear. Rows go through in chunks that bound the temporaries.
#pragma once

#include <cstdint>
#include <span>

#include "lib/backend/backend.h"
#include "lib/backend/workspace.h"
#include "lib/comm/communicator.h"
#include "lib/model/config.h"
#include "lib/model/linear.h"
#include "lib/model/loader.h"

namespace mpinfer::model {

struct MoeSizes {  // of one rank
  int64_t hidden = 0;
  int64_t intermediate = 0;  // its part of an expert's
  int64_t experts = 0;       // its own
  int64_t shared = 0;        // its part of the shared expert's intermediate size
  int64_t members = 1;       // replicas whose rows meet
};

struct MoeBuffers {
  int64_t chunk_rows = 0;  // of one replica
  backend::Matrix logits;  // f32 [chunk rows, all experts]
  int32_t* experts = nullptr;
  float* weights = nullptr;  // both [chunk rows, top_k]
  void* scratch = nullptr;
  int64_t scratch_bytes = 0;
  backend::Matrix shared_gate_up;    // [chunk rows, 2 * local intermediate]
  backend::Matrix shared_activated;  // [chunk rows, local intermediate]
  backend::Matrix shared;            // [chunk rows, hidden]
  backend::Matrix shared_gate;       // f32 [chunk rows, 1]
  backend::Matrix partial;           // [num_rows, hidden]
  // Of all members, where experts cross replicas:
  backend::Matrix group_x;     // [members * chunk rows, hidden]
  backend::Matrix group_sums;  // likewise
  int32_t* group_experts = nullptr;
  float* group_weights = nullptr;  // both [members * chunk rows, top_k]
};

MoeSizes moe_sizes(const ModelConfig& config, const ShardOf& shard);

// partial: for the rows of this replica; max_rows: the most that one of the members brings.
MoeBuffers take_moe_buffers(backend::Workspace& workspace, const ModelConfig& config,
                            const MoeSizes& sizes, const backend::Matrix& partial,
                            int64_t max_rows);

struct MoeLayer {
  backend::Backend& backend;
  const ModelConfig& config;
  const StageWeights& stage;
  const LayerWeights& weights;
  comm::Communicator* ep = nullptr;     // ranks of a lockstep group, or null
  std::span<const int64_t> group_rows;  // rows of its members
  int64_t* counts = nullptr;            // [experts] += rows that chose it, or null
};

// x [num_rows, hidden_size] is normed already. then: of the result, whose own rows are not to be
// used then; may write to x.
Partial moe(const MoeLayer& layer, backend::Stream stream, const backend::Matrix& x,
            const MoeBuffers& buffers, const std::optional<backend::AddNorm>& then);

}  // namespace mpinfer::model
