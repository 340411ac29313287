#include "lib/model/mlp.h"

#include <algorithm>

namespace mpinfer::model {

// 64 MiB of temporaries, but never fewer rows than keep a GEMM bound by arithmetic.
int64_t mlp_chunk_rows(int64_t local_intermediate, DType activation) {
  constexpr int64_t kBytes = int64_t{64} << 20;
  constexpr int64_t kLeastRows = 1024;
  return std::max(kLeastRows, kBytes / (3 * local_intermediate * size_of(activation)));
}

Partial mlp(backend::Backend& backend, backend::Stream stream, const backend::Matrix& x,
            const ModelConfig& config, const LayerWeights& weights, const MlpBuffers& buffers) {
  const int64_t at_once = buffers.gate_up.rows;
  for (int64_t begin = 0; begin < x.rows; begin += at_once) {
    const int64_t rows = std::min(at_once, x.rows - begin);
    const backend::Matrix gate_up = buffers.gate_up.slice_rows(0, rows);
    const backend::Matrix activated = buffers.activated.slice_rows(0, rows);
    column_parallel(backend, stream, gate_up, x.slice_rows(begin, rows), weights.gate_up,
                    weights.gate_up_bias);
    backend.gated_activation(stream, activated, gate_up, config.activation);
    row_parallel(backend, stream, buffers.partial.slice_rows(begin, rows), activated, weights.down,
                 weights.down_bias);
  }
  return {buffers.partial};
}

}  // namespace mpinfer::model
