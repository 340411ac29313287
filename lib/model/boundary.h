// The boundary between a row-parallel linear and the residual stream: the one place inside the
// layers where ranks of TP meet. Where the communicator offers them as one pass (GPUs that see each
// other's memory), between the boundaries of a stage the residual of a row is kept by one rank
// alone.
#pragma once

#include "lib/backend/backend.h"
#include "lib/comm/communicator.h"
#include "lib/model/linear.h"

namespace mpinfer::model {

struct Boundary {
  backend::Backend& backend;
  comm::Communicator& tp;
  float residual_scale = 1.0F;  // residual += residual_scale * sum
  float norm_eps = 0.0F;
};

// residual += scale * sum over TP of partial; out = rms_norm(residual) * norm_weight.
// partial's memory is used up: it holds the sum afterwards. out may be partial's memory.
void reduce_add_norm(const Boundary& boundary, backend::Stream stream, const backend::Matrix& out,
                     const Partial& partial, const backend::Matrix& residual,
                     const void* norm_weight);

// The same without a norm: the last sum of a stage.
void reduce_add(const Boundary& boundary, backend::Stream stream, const Partial& partial,
                const backend::Matrix& residual);

}  // namespace mpinfer::model
