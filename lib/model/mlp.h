// The gated MLP of a layer. Rows go through in chunks, so that its wide temporaries stay small
// whatever the token budget; rows do not see each other, so chunks change no bit.
#pragma once

#include <cstdint>

#include "lib/backend/backend.h"
#include "lib/model/config.h"
#include "lib/model/linear.h"
#include "lib/model/loader.h"

namespace mpinfer::model {

struct MlpBuffers {
  backend::Matrix gate_up;    // [chunk rows, 2 * local intermediate], gate and up interleaved
  backend::Matrix activated;  // [chunk rows, local intermediate]
};

// Rows of a chunk for a rank with this intermediate size.
int64_t mlp_chunk_rows(int64_t local_intermediate, DType activation);

// out [rows, hidden_size]; x likewise, normed already.
Partial mlp(backend::Backend& backend, backend::Stream stream, const backend::Matrix& out,
            const backend::Matrix& x, const ModelConfig& config, const LayerWeights& weights,
            const MlpBuffers& buffers);

}  // namespace mpinfer::model
