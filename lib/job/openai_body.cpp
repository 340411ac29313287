#include "lib/job/openai_body.h"

#include <fmt/core.h>

#include <algorithm>

#include "lib/core/log.h"
#include "lib/io/field_scanner.h"
#include "lib/job/raw_members.h"

namespace mpinfer::job {
namespace {

constexpr std::string_view kCommon[] = {"model", "stream", "prompt_token_ids",
                                        "add_special_tokens"};
constexpr std::string_view kChatOnly[] = {"messages",
                                          "tools",
                                          "tool_choice",
                                          "documents",
                                          "chat_template_kwargs",
                                          "add_generation_prompt",
                                          "continue_final_message",
                                          "reasoning_effort",
                                          "modalities"};
constexpr std::string_view kCompletionsOnly[] = {"prompt", "echo", "suffix", "best_of"};

template <size_t size>
bool in(std::string_view name, const std::string_view (&names)[size]) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

std::vector<std::string> picked_names() {
  std::vector<std::string> names = sampling_field_names();
  for (const std::string_view name : kCommon) names.emplace_back(name);
  for (const std::string_view name : kChatOnly) names.emplace_back(name);
  for (const std::string_view name : kCompletionsOnly) names.emplace_back(name);
  return names;
}

tl::unexpected<RowError> refuse(const char* code, std::string message, std::string_view param) {
  return tl::unexpected(RowError{code, std::move(message), std::string(param)});
}

RowError unsupported(std::string_view name, std::string_view why) {
  return {"unsupported", fmt::format("body.{} {}", name, why), std::string(name)};
}

bool is_true(const FieldValue* value) {
  return value != nullptr && std::holds_alternative<bool>(*value) && std::get<bool>(*value);
}

bool is_text(const FieldValue* value, std::string_view text) {
  const auto* string = value == nullptr ? nullptr : std::get_if<std::string>(value);
  return string != nullptr && *string == text;
}

std::optional<RowError> check_known(std::string_view body, bool chat) {
  io::MemberScanner scanner(body);
  io::Member member;
  const std::vector<std::string>& sampling = sampling_field_names();
  while (scanner.next(&member)) {
    const std::string name = member.decoded_key();
    if (is_ignored_field(name) || is_structured_field(name) || in(name, kCommon)) continue;
    if (std::find(sampling.begin(), sampling.end(), name) != sampling.end()) continue;
    if (chat ? in(name, kChatOnly) : in(name, kCompletionsOnly)) continue;
    if (member.value == "null") continue;
    return RowError{"unsupported", fmt::format("body has no field {} here", printable(name)),
                    printable(name)};
  }
  return std::nullopt;
}

// Fields that only their neutral value may have.
std::optional<RowError> check_neutral(const OpenAiBody& row) {
  const RowFields& fields = row.fields;
  if (is_true(fields.find("stream"))) return unsupported("stream", "must be false in a batch");
  if (is_true(fields.find("echo"))) return unsupported("echo", "is not supported");
  if (is_true(fields.find("continue_final_message")))
    return unsupported("continue_final_message", "is not supported");
  if (fields.find("suffix") != nullptr) return unsupported("suffix", "is not supported");
  if (const FieldValue* best_of = fields.find("best_of")) {
    const auto* count = std::get_if<int64_t>(best_of);
    if (count == nullptr || *count != row.sampling.n.value_or(1))
      return unsupported("best_of", "must equal n");
  }
  if (const FieldValue* modalities = fields.find("modalities")) {
    const auto* list = std::get_if<ArrayValue>(modalities);
    if (list == nullptr || list->strings != std::vector<std::string>{"text"})
      return unsupported("modalities", "must be [\"text\"]");
  }
  if (const FieldValue* choice = fields.find("tool_choice")) {
    if (!is_text(choice, "auto") && !is_text(choice, "none"))
      return unsupported("tool_choice", "must be auto or none: calls cannot be forced");
  }
  return std::nullopt;
}

}  // namespace

OpenAiReader::OpenAiReader(int64_t vocab_size, std::string served_model_name)
    : vocab_size_(vocab_size),
      served_model_name_(std::move(served_model_name)),
      picker_("prompt", picked_names()) {}

Expected<OpenAiBody> OpenAiReader::read(std::string_view line) const {
  constexpr size_t kMaxIdBytes = 512;
  OpenAiBody row;
  if (raw_member(line, "custom_id").size() > kMaxIdBytes)
    return refuse("invalid_param", fmt::format("custom_id is longer than {} bytes", kMaxIdBytes),
                  "custom_id");
  const std::string method = text_member(line, "method", "POST");
  if (method != "POST") {
    return refuse("unsupported", fmt::format("method {}; only POST is served", printable(method)),
                  "method");
  }
  const std::string url = text_member(line, "url");
  row.chat = url == kChatUrl;
  if (!row.chat && url != kCompletionsUrl) {
    return refuse("unsupported",
                  fmt::format("url {}; served are {} and {}", printable(url.substr(0, 80)),
                              kChatUrl, kCompletionsUrl),
                  "url");
  }
  row.body = raw_member(line, "body");
  if (!row.body.starts_with('{'))
    return refuse("invalid_param", "body is missing or no object", "body");
  auto fields = picker_.pick(row.body);
  if (!fields) return tl::unexpected(std::move(fields.error()));
  row.fields = std::move(*fields);
  if (auto error = check_known(row.body, row.chat)) return tl::unexpected(std::move(*error));
  const FieldValue* model = row.fields.find("model");
  if (!served_model_name_.empty() && !is_text(model, served_model_name_)) {
    return refuse("model_mismatch",
                  fmt::format("body.model is {}; this run serves {}",
                              printable(text_member(row.body, "model", "missing").substr(0, 200)),
                              printable(served_model_name_)),
                  "model");
  }
  for (const std::string& name : sampling_field_names()) {
    const FieldValue* value = row.fields.find(name);
    if (value == nullptr) continue;
    if (auto error = set_field(name, *value, vocab_size_, &row.sampling))
      return tl::unexpected(std::move(*error));
  }
  if (auto error = check_neutral(row)) return tl::unexpected(std::move(*error));
  auto structured = read_structured_fields(row.body);
  if (!structured) return tl::unexpected(std::move(structured.error()));
  row.sampling.structured = std::move(*structured);
  row.with_tools = !is_text(row.fields.find("tool_choice"), "none");
  row.reasoning_effort = text_member(row.body, "reasoning_effort");
  return row;
}

}  // namespace mpinfer::job
