// BatchBuilder: lays one plan out as device arrays, all in one packed upload. Host staging and
// device memory are rings, so that a plan's upload may still be under way while later ones are
// built.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/backend/backend.h"
#include "lib/engine/sequence.h"
#include "lib/model/batch_input.h"

namespace mpinfer::engine {

struct DeviceBatch {
  model::BatchInput input;
  int32_t* ids = nullptr;  // [num_rows]: prefill rows filled, decode rows from the slots
  const int32_t* row_slots =
      nullptr;  // [num_rows]: slot whose last token is the row's id, -1: ids as uploaded
  const int32_t* logit_rows =
      nullptr;  // [num_logit_rows]: rows that draw, in the order of logit_entries
  const int32_t* logprob_rows = nullptr;  // [num_logprob_rows]
  int32_t* logprob_ids = nullptr;         // [num_logprob_rows]: prompt rows filled
  const int32_t* logprob_draws =
      nullptr;                           // [num_logprob_rows]: draw whose id it is, -1: as uploaded
  const int32_t* logit_slots = nullptr;  // [num_logit_rows]: slot that takes the drawn id
};

struct BatchLimits {
  int64_t max_rows = 0;
  int64_t max_sequences = 0;
  int64_t max_blocks = 0;  // of one sequence
  size_t num_groups = 1;
  int32_t block_size = 16;
};

class BatchBuilder {
 public:
  BatchBuilder(backend::Backend& backend, const BatchLimits& limits, int32_t ring);

  // Uploads on stream. The result's host spans live until ring more batches have been built.
  DeviceBatch build(backend::Stream stream, const StepPlan& plan);

  static int64_t bytes(const BatchLimits& limits);

 private:
  struct Staging {
    backend::Buffer host;
    backend::Buffer device;
  };
  backend::Backend& backend_;
  BatchLimits limits_;
  std::vector<Staging> ring_;
};

}  // namespace mpinfer::engine
