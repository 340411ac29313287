// The attention half of a layer: qkv, QK norm + rope + KV write, paged attention, output
// projection.
#pragma once

#include "lib/backend/backend.h"
#include "lib/model/batch_input.h"
#include "lib/model/config.h"
#include "lib/model/linear.h"
#include "lib/model/loader.h"

namespace mpinfer::model {

struct AttentionBuffers {
  backend::Matrix qkv;       // [num_rows, (q + 2 kv local heads) * head_dim]
  backend::Matrix attended;  // [num_rows, local q heads * head_dim]
  backend::Matrix partial;   // [num_rows, hidden_size]
};

struct AttentionLayer {
  backend::Backend& backend;
  const ModelConfig& config;
  const LayerConfig& layer;
  const LayerWeights& weights;
  const backend::KvView& kv;
  backend::RopeView rope;  // of the model; a NoPE layer does not use it
};

// x [num_rows, hidden_size] is normed already.
Partial attend(const AttentionLayer& layer, backend::Stream stream, const backend::Matrix& x,
               const BatchInput& batch, const AttentionBuffers& buffers);

}  // namespace mpinfer::model
