#include "lib/job/result_format.h"

#include <fmt/core.h>

#include <algorithm>

#include "lib/io/field_scanner.h"
#include "lib/job/json_text.h"

namespace mpinfer::job {
namespace {

constexpr std::string_view kOurs[] = {"index",       "output",          "finish_reason",
                                      "stop_reason", "prompt_tokens",   "completion_tokens",
                                      "error",       "output_token_ids"};

bool is_ours(const io::Member& member) {
  const auto equals = [](std::string_view key) {
    return std::find(std::begin(kOurs), std::end(kOurs), key) != std::end(kOurs);
  };
  if (member.key.find('\\') == std::string_view::npos) return equals(member.key);
  return equals(member.decoded_key());
}

// "{" and the input's members, each followed by ", ". line must be valid JSON or empty.
std::string begin_line(std::string_view line) {
  std::string out = "{";
  out.reserve(line.size() + 256);
  io::MemberScanner scanner(line);
  io::Member member;
  while (scanner.next(&member)) {
    if (is_ours(member)) continue;
    out += member.text;
    out += ", ";
  }
  return out;
}

// These lines are not known to be valid JSON: nothing of them is passed on.
bool is_unreadable(const RowError& error) {
  return error.code == "invalid_json" || error.code == "invalid_utf8" ||
         error.code == "line_too_long";
}

void append_stop_reason(std::string* out, const StopReason& reason) {
  if (const auto* id = std::get_if<int32_t>(&reason)) {
    *out += std::to_string(*id);
  } else if (const auto* text = std::get_if<std::string>(&reason)) {
    append_json_string(out, *text);
  } else {
    *out += "null";
  }
}

void append_ids(std::string* out, const std::vector<int32_t>& ids) {
  *out += '[';
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) *out += ", ";
    *out += std::to_string(ids[i]);
  }
  *out += ']';
}

}  // namespace

std::string format_answer(std::string_view input_line, const Answer& answer) {
  std::string out = begin_line(input_line);
  out += fmt::format("\"index\": {}, \"output\": ", answer.index);
  if (answer.output != nullptr) {
    append_json_string(&out, *answer.output);
  } else {
    out += "null";
  }
  out += fmt::format(", \"finish_reason\": \"{}\", \"stop_reason\": ",
                     answer.finish_reason == FinishReason::kStop ? "stop" : "length");
  append_stop_reason(&out, answer.stop_reason);
  out += fmt::format(", \"prompt_tokens\": {}, \"completion_tokens\": {}, \"error\": null",
                     answer.num_prompt_tokens, answer.token_ids->size());
  if (answer.write_token_ids) {
    out += ", \"output_token_ids\": ";
    append_ids(&out, *answer.token_ids);
  }
  out += '}';
  return out;
}

std::string format_refusal(std::string_view input_line, const Refusal& refusal) {
  const RowError& error = *refusal.error;
  std::string out = begin_line(is_unreadable(error) ? std::string_view() : input_line);
  out += fmt::format(
      "\"index\": {}, \"output\": null, \"finish_reason\": null, \"stop_reason\": null, "
      "\"prompt_tokens\": null, \"completion_tokens\": null, \"error\": {{\"code\": \"{}\", "
      "\"message\": ",
      refusal.index, error.code);
  append_json_string(&out, error.message);
  out += ", \"param\": ";
  if (error.param.empty()) {
    out += "null";
  } else {
    append_json_string(&out, error.param);
  }
  out += ", \"file\": ";
  append_json_string(&out, refusal.file);
  out += fmt::format(", \"line\": {}}}", refusal.line);
  if (refusal.write_token_ids) out += ", \"output_token_ids\": null";
  out += '}';
  return out;
}

}  // namespace mpinfer::job
