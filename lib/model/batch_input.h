// BatchInput: one step as the model sees it. All pointers are device pointers into the step's one
// packed upload.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lib/backend/backend.h"

namespace mpinfer::model {

struct GroupInput {                       // one per cache group
  const int32_t* slot_mapping = nullptr;  // [num_rows], -1 = padding
  backend::AttentionBatch attention;
};

struct BatchInput {
  int64_t num_rows = 0;                // token rows: decode rows first, then prefill chunks
  const int32_t* ids = nullptr;        // [num_rows] (stage 0 only)
  const int32_t* positions = nullptr;  // [num_rows]
  std::vector<GroupInput> groups = {};
  // Rows of every member of a lockstep group, this one's included; empty without one.
  std::span<const int64_t> group_rows = {};
};

}  // namespace mpinfer::model
