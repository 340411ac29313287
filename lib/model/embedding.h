// Token embedding, vocab-parallel: a rank adds zero for ids that another rank holds, and the sum
// over TP is exact because one summand is not zero.
#pragma once

#include "lib/backend/backend.h"
#include "lib/comm/communicator.h"
#include "lib/model/config.h"
#include "lib/model/loader.h"

namespace mpinfer::model {

// residual [num_rows, hidden_size] (contiguous) = embedding_multiplier * table[ids]; ids
// [num_rows].
void embed(backend::Backend& backend, comm::Communicator& tp, backend::Stream stream,
           const backend::Matrix& residual, const ModelConfig& config, const StageWeights& weights,
           const int32_t* ids);

}  // namespace mpinfer::model
