// The attention half of a layer: qkv, QK norm + rope + KV write, paged attention, output
// projection. The first and the last go row by row, in pieces of a step's rows.
#pragma once

#include "lib/backend/backend.h"
#include "lib/model/batch_input.h"
#include "lib/model/config.h"
#include "lib/model/linear.h"
#include "lib/model/loader.h"
#include "lib/model/row_pieces.h"

namespace mpinfer::model {

struct AttentionBuffers {
  backend::Matrix qkv;  // [num_rows, (q + 2 kv local heads) * head_dim]
  // With a norm over all heads and tp > 1: [num_rows, (all q + all kv + local kv heads) *
  // head_dim], of which the rank's columns go to qkv. Every rank computes it all, so that none asks
  // another for a sum.
  backend::Matrix all_qkv;
  backend::Matrix attended;  // [num_rows, local q heads * head_dim]
};

struct AttentionLayer {
  backend::Backend& backend;
  const ModelConfig& config;
  const LayerConfig& layer;
  const LayerWeights& weights;
  const backend::KvView& kv;
  backend::RopeView rope;    // of the model; a NoPE layer does not use it
  int64_t first_q_head = 0;  // the rank's
  int64_t first_kv_head = 0;
};

// qkv of these rows, whose x [piece rows, hidden_size] is normed already.
void project_qkv(const AttentionLayer& layer, backend::Stream stream, const backend::Matrix& x,
                 const RowPiece& piece, const AttentionBuffers& buffers);
// attended of all rows, from their qkv.
void attend(const AttentionLayer& layer, backend::Stream stream, const BatchInput& batch,
            const AttentionBuffers& buffers);
// out [piece rows, hidden_size], from attended.
Partial project_out(const AttentionLayer& layer, backend::Stream stream, const backend::Matrix& out,
                    const RowPiece& piece, const AttentionBuffers& buffers);

}  // namespace mpinfer::model
