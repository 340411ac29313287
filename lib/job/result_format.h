// Output lines (INTERFACE §3). flat: the input object's own members, byte for byte and in their
// order, without those named like ours; then ours, always all of them. A line that is no valid
// object gives ours alone. openai (openai_format.h): the lines of the OpenAI batch API. What comes
// back is a journal payload: one line, or one a sample with kLineSeparator between them; an error
// row that goes to a file of its own begins with kSeparateError.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/core/request.h"
#include "lib/core/result.h"

namespace mpinfer::job {

inline constexpr char kLineSeparator = '\x1e';  // raw control bytes stand in no JSON
inline constexpr char kSeparateError = '\x15';

enum class OutputFormat : uint8_t { kAuto, kFlat, kOpenAi };  // auto: as the row's own form
// Throws Error(kUsage) for another name.
OutputFormat output_format(std::string_view name);

struct FormatOptions {
  OutputFormat format = OutputFormat::kAuto;
  std::string output_field = "output";
  bool token_ids = false;        // output_token_ids of every row
  bool line_a_sample = false;    // --samples rows, flat only
  bool separate_errors = false;  // --errors separate
  std::string model_name = {};   // of openai rows whose body names none
  int64_t created = 0;           // of openai rows, seconds since 1970
  uint64_t run_id = 0;           // what their ids derive from
};

// Hash of what the lines depend on beside the answers; the start of the run is no part of it.
uint64_t fingerprint(const FormatOptions& options);

struct SampleAnswer {
  const Completion* completion = nullptr;
  std::optional<std::string> text = {};  // none: no tokenizer
};

struct Answer {
  int64_t index = 0;
  std::vector<SampleAnswer> samples;  // n of them, in order
  const SamplingParams* sampling = nullptr;
  int64_t num_prompt_tokens = 0;
  std::function<std::string(int32_t)> token_text = {};  // of one token; empty: no tokenizer
};

std::string format_answer(std::string_view input_line, const Answer& answer,
                          const FormatOptions& options);

struct Refusal {
  int64_t index = 0;
  const RowError* error = nullptr;
  std::string_view file;
  int64_t line = 0;
};

std::string format_refusal(std::string_view input_line, const Refusal& refusal,
                           const FormatOptions& options);

// The error object of a row.
std::string error_object(const Refusal& refusal);
// These lines are not known to be valid JSON: nothing of them is passed on.
bool is_unreadable(const RowError& error);
// JSON of a log-probability: what is below -9999, infinity included, is -9999.
std::string json_of_logprob(double logprob);

}  // namespace mpinfer::job
