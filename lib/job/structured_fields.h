// The fields that say what a completion has to look like: response_format (OpenAI),
// structured_outputs and guided_json, guided_regex, guided_choice (vLLM). One of them a row.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "lib/core/request.h"
#include "lib/core/result.h"

namespace mpinfer::job {

struct StructuredField {
  GrammarSpec grammar;
  std::string param;  // the field that said it
};

bool is_structured_field(std::string_view name);

// object: valid JSON. Nothing: none of the fields is there, or it asks for plain text. What a
// schema or a pattern holds is not looked at here.
Expected<std::optional<StructuredField>> read_structured_fields(std::string_view object);

}  // namespace mpinfer::job
