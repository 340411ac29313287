// Output lines of the flat format (INTERFACE §3): the input object's own members, byte for byte and
// in their order, without those named like ours; then ours, always all of them. A line that is no
// valid object gives ours alone.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lib/core/result.h"

namespace mpinfer::job {

struct Answer {
  int64_t index = 0;
  const std::string* output = nullptr;  // null: no tokenizer
  FinishReason finish_reason = FinishReason::kLength;
  StopReason stop_reason;
  int64_t num_prompt_tokens = 0;
  const std::vector<int32_t>* token_ids = nullptr;
  bool write_token_ids = false;
};

std::string format_answer(std::string_view input_line, const Answer& answer);

struct Refusal {
  int64_t index = 0;
  const RowError* error = nullptr;
  std::string_view file;
  int64_t line = 0;
  bool write_token_ids = false;
};

std::string format_refusal(std::string_view input_line, const Refusal& refusal);

}  // namespace mpinfer::job
