#include "lib/model/mlp.h"

#include <algorithm>

namespace mpinfer::model {

// Rows that fill whole waves of a GPU's tiles (1,560 instead of 2,048 would leave a fifth of it
// idle in the second product of Llama-3.1-8B on two ranks): twice as many where the temporaries are
// still below 64 MiB.
int64_t mlp_chunk_rows(int64_t local_intermediate, DType activation) {
  constexpr int64_t kBytes = int64_t{64} << 20;
  constexpr int64_t kRows = 2048;
  const int64_t row_bytes = 3 * local_intermediate * size_of(activation);
  return kRows * row_bytes < kBytes ? 2 * kRows : kRows;
}

Partial mlp(backend::Backend& backend, backend::Stream stream, const backend::Matrix& out,
            const backend::Matrix& x, const ModelConfig& config, const LayerWeights& weights,
            const MlpBuffers& buffers) {
  const int64_t at_once = buffers.gate_up.rows;
  for (int64_t begin = 0; begin < x.rows; begin += at_once) {
    const int64_t rows = std::min(at_once, x.rows - begin);
    const backend::Matrix gate_up = buffers.gate_up.slice_rows(0, rows);
    const backend::Matrix activated = buffers.activated.slice_rows(0, rows);
    backend.gemm_gated(stream, activated, gate_up, x.slice_rows(begin, rows), weights.gate_up,
                       weights.gate_up_bias, config.activation);
    row_parallel(backend, stream, out.slice_rows(begin, rows), activated, weights.down,
                 weights.down_bias);
  }
  return {out};
}

}  // namespace mpinfer::model
