#include "lib/model/embedding.h"

#include "lib/core/error.h"

namespace mpinfer::model {

void embed(backend::Backend& backend, comm::Communicator& tp, backend::Stream stream,
           const backend::Matrix& residual, const ModelConfig& config, const StageWeights& weights,
           const int32_t* ids) {
  MPINFER_CHECK(residual.stride == residual.cols, "residual of {} columns with stride {}",
                residual.cols, residual.stride);
  backend.embedding(stream, residual, weights.embedding, ids,
                    checked_cast<int32_t>(weights.vocab_begin), config.embedding_multiplier);
  tp.all_reduce_sum(stream, residual.data, residual.dtype, residual.rows * residual.cols);
}

}  // namespace mpinfer::model
