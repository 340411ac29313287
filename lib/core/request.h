// Request: one validated input row, ready for the engine. Built by job/request_builder on the
// replica leader, carried to the replica's other ranks in the control record.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mpinfer {

// Ranges and meaning: INTERFACE §4; every value here is already checked.
struct SamplingParams {
  int32_t max_tokens = 0;  // already resolved: 1 … rest of the context
  int32_t min_tokens = 0;
  float temperature = 1.0F;  // < 1e-5: greedy
  float top_p = 1.0F;
  int32_t top_k = 0;  // 0 or -1: off
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
  float frequency_penalty = 0.0F;
  float presence_penalty = 0.0F;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool include_stop_str_in_output = false;
  std::vector<int32_t> stop_token_ids;  // the row's own
  bool ignore_eos = false;
  bool skip_special_tokens = true;

  bool greedy() const { return temperature < 1e-5F; }
  bool penalised() const {
    return repetition_penalty != 1.0F || frequency_penalty != 0.0F || presence_penalty != 0.0F;
  }
};

struct Request {
  int64_t index = 0;  // input row, counted over all files from 0
  std::vector<int32_t> prompt_token_ids;
  SamplingParams sampling;
};

}  // namespace mpinfer
