// The attention half of a layer with multi-head latent attention (DeepSeek-V2, arXiv 2405.04434),
// in the absorbed form for decode and prefill alike: a head's queries are multiplied by the weights
// of its keys, so that all heads attend to the cached rows themselves, and what they gather by the
// weights of its values. No key or value of a head is ever made.
#pragma once

#include "lib/backend/backend.h"
#include "lib/backend/workspace.h"
#include "lib/model/attention.h"
#include "lib/model/batch_input.h"
#include "lib/model/config.h"
#include "lib/model/linear.h"

namespace mpinfer::model {

struct LatentBuffers {
  backend::Matrix q_a;              // [num_rows, q_rank], none where q_rank is 0
  backend::Matrix q;                // [num_rows, local heads * q_head_dim]
  backend::Matrix latent_kv;        // [num_rows, kv_rank + rope_dim]
  backend::Matrix q_latent;         // [num_rows, local heads * (kv_rank + rope_dim)]
  backend::Matrix attended_latent;  // [num_rows, local heads * kv_rank]
  backend::Matrix attended;         // [num_rows, local heads * value_dim]
  backend::Matrix partial;          // [num_rows, hidden_size]
};

// partial is taken already.
LatentBuffers take_latent_buffers(backend::Workspace& workspace, const ModelConfig& config,
                                  int64_t num_heads, const backend::Matrix& partial);

// x [num_rows, hidden_size] is normed already.
Partial attend_latent(const AttentionLayer& layer, backend::Stream stream, const backend::Matrix& x,
                      const BatchInput& batch, const LatentBuffers& buffers);

}  // namespace mpinfer::model
