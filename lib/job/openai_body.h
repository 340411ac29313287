// Rows of the OpenAI batch form: method, url and body of /v1/chat/completions and /v1/completions.
// What the body asks for beyond this program is unsupported by name; a documented list of fields
// that change no answer is ignored (user, metadata, store, service_tier, parallel_tool_calls,
// stream_options).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "lib/core/result.h"
#include "lib/job/row_fields.h"
#include "lib/job/sampling_fields.h"

namespace mpinfer::job {

constexpr std::string_view kChatUrl = "/v1/chat/completions";
constexpr std::string_view kCompletionsUrl = "/v1/completions";

struct OpenAiBody {
  bool chat = false;
  std::string_view body;              // raw
  RowFields fields;                   // of the body
  bool with_tools = true;             // false: tool_choice is none
  std::string reasoning_effort = {};  // of the template
  SamplingFields sampling = {};
};

class OpenAiReader {
 public:
  // served_model_name: what body.model must be; empty: anything.
  OpenAiReader(int64_t vocab_size, std::string served_model_name);
  // line: valid JSON with custom_id and url.
  Expected<OpenAiBody> read(std::string_view line) const;

 private:
  int64_t vocab_size_;
  std::string served_model_name_;
  FieldPicker picker_;
};

}  // namespace mpinfer::job
