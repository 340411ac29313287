// Lines as the OpenAI batch API writes them: id, index, custom_id, response with a chat.completion
// or text_completion body, error. A refused row has a null response. Ids derive from the run's id
// and the row's index, so that a resumed run writes the same ones.
#pragma once

#include <string>
#include <string_view>

#include "lib/job/result_format.h"

namespace mpinfer::job {

// input_line: valid JSON or empty; a row of another form gets its id, or row-<index>, as custom_id.
std::string format_openai_answer(std::string_view input_line, const Answer& answer,
                                 const FormatOptions& options);
std::string format_openai_refusal(std::string_view input_line, const Refusal& refusal,
                                  const FormatOptions& options);

}  // namespace mpinfer::job
