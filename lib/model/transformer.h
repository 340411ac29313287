// Transformer: the layers of one pipeline stage on one TP rank. forward() is config-driven: a flag
// switches an op on or chooses between two, never reorders. The residual stream is the only thing
// that crosses stages.
#pragma once

#include <memory>
#include <vector>

#include "lib/backend/backend.h"
#include "lib/backend/workspace.h"
#include "lib/comm/communicator.h"
#include "lib/model/batch_input.h"
#include "lib/model/config.h"
#include "lib/model/kv_cache.h"
#include "lib/model/loader.h"

namespace mpinfer::model {

class Transformer {
 public:
  // Everything is borrowed and must outlive this. The rope table reaches max_positions. ep: the
  // ranks of a lockstep group's stage, where experts cross replicas; then forward is collective
  // over it, and a member without rows calls it too.
  Transformer(backend::Backend& backend, comm::Communicator& tp, const ModelConfig& config,
              const StageWeights& weights, KvCache& cache, backend::Workspace& workspace,
              int64_t max_positions, comm::Communicator* ep = nullptr);
  ~Transformer();

  // residual: [num_rows, hidden_size], in and out, activation dtype. The first stage writes it from
  // batch.ids; the others read what the stage before left in it.
  void forward(backend::Stream stream, const BatchInput& batch, const backend::Matrix& residual);

  // Bytes of workspace that one forward of max_rows rows takes, by a dry run of the same code.
  // pieces: Communicator::may_sum_pieces where tp > 1.
  static int64_t workspace_bytes(const ModelConfig& config, int tp, int64_t max_rows,
                                 DType activation, int ep = 1, bool pieces = false);

  // Rows that chose each expert since the start, [layers of the stage, experts]; zeros in dense
  // layers, nothing for a dense model. Waits for the device.
  std::vector<int64_t> expert_counts() const;

 private:
  void serve_group(backend::Stream stream, const BatchInput& batch, const backend::Matrix& none);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mpinfer::model
