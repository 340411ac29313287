// LmHead: from residual rows of the last stage to token ids, vocab-parallel over tp. Equal ids on
// every TP rank.
#pragma once

#include <cstdint>
#include <memory>

#include "lib/backend/backend.h"
#include "lib/backend/workspace.h"
#include "lib/comm/communicator.h"
#include "lib/model/config.h"
#include "lib/model/loader.h"

namespace mpinfer::model {

// Rows that draw with more than an argmax. Offsets and adjustments cover all num_rows rows.
struct SamplingInput {
  const backend::SampleRow* rows = nullptr;               // [num_rows] device
  const int32_t* adjustment_offsets = nullptr;            // [num_rows + 1] device, or null
  const backend::LogitAdjustment* adjustments = nullptr;  // device
  const int32_t* row_masks = nullptr;                     // [num_rows] device, or null: no masks
  const uint32_t* masks = nullptr;                        // device
};

class LmHead {
 public:
  LmHead(backend::Backend& backend, comm::Communicator& tp, const ModelConfig& config,
         const StageWeights& weights, backend::Workspace& workspace, int64_t max_logit_rows);
  ~LmHead();

  // hidden[num_rows, hidden_size] = final norm of residual rows row_index[0 … num_rows) (device
  // indices).
  void gather(backend::Stream stream, const backend::Matrix& hidden,
              const backend::Matrix& residual, const int32_t* row_index);
  // ids [hidden.rows] device; -1: NaN. Any number of rows.
  void greedy(backend::Stream stream, int32_t* ids, const backend::Matrix& hidden);
  // Stochastic or adjusted rows, in chunks of max_logit_rows; rows of a chunk are dealt over tp.
  void sample(backend::Stream stream, int32_t* ids, const backend::Matrix& hidden,
              const SamplingInput& input);
  // out [hidden.rows, 1 + num_top] device, of the raw logits, in chunks of max_logit_rows likewise.
  void logprobs(backend::Stream stream, backend::LogprobEntry* out, const backend::Matrix& hidden,
                const int32_t* ids, int32_t num_top);
  // f32 logits [hidden.rows, vocab_size] gathered on every TP rank: goldens and tests.
  void logits(backend::Stream stream, const backend::Matrix& out, const backend::Matrix& hidden);

  static int64_t workspace_bytes(const ModelConfig& config, int tp, int64_t max_logit_rows,
                                 DType activation);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mpinfer::model
