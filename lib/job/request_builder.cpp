#include "lib/job/request_builder.h"

#include <algorithm>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/jsonl.h"

namespace mpinfer::job {
namespace {

constexpr int64_t kReservedForAnswer = 256;  // of a truncated row without max_tokens

std::vector<std::string> picked_names() {
  std::vector<std::string> names = sampling_field_names();
  for (const char* name : {"prompt_token_ids", "messages", "custom_id", "url", "sampling_params",
                           "add_special_tokens"}) {
    names.emplace_back(name);
  }
  return names;
}

tl::unexpected<RowError> refuse(const char* code, std::string message,
                                std::string_view param = "") {
  return tl::unexpected(RowError{code, std::move(message), std::string(param)});
}

const FieldValue* find(const RowFields& fields, std::string_view name) {
  const auto found = fields.top.find(name);
  if (found == fields.top.end() || std::holds_alternative<std::monostate>(found->second))
    return nullptr;
  return &found->second;
}

}  // namespace

RowParams row_params(std::string_view name) {
  if (name == "auto") return RowParams::kAuto;
  if (name == "nested") return RowParams::kNested;
  if (name == "none") return RowParams::kNone;
  throw Error(ExitCode::kUsage,
              fmt::format("--row-params {}: use auto, nested or none", printable(name)));
}

TooLong too_long(std::string_view name) {
  if (name == "error") return TooLong::kError;
  if (name == "truncate-left") return TooLong::kTruncateLeft;
  if (name == "truncate-right") return TooLong::kTruncateRight;
  throw Error(
      ExitCode::kUsage,
      fmt::format("--too-long {}: use error, truncate-left or truncate-right", printable(name)));
}

const std::vector<NearMiss>& near_misses() {
  static const std::vector<NearMiss> kNearMisses = {{"max_new_tokens", "max_tokens"},
                                                    {"max_token", "max_tokens"},
                                                    {"max-tokens", "max_tokens"},
                                                    {"maxTokens", "max_tokens"},
                                                    {"max_length", "max_tokens"},
                                                    {"min_new_tokens", "min_tokens"},
                                                    {"top-p", "top_p"},
                                                    {"topP", "top_p"},
                                                    {"topp", "top_p"},
                                                    {"top-k", "top_k"},
                                                    {"topK", "top_k"},
                                                    {"min-p", "min_p"},
                                                    {"temp", "temperature"},
                                                    {"temparature", "temperature"},
                                                    {"stop_sequences", "stop"},
                                                    {"stop_words", "stop"},
                                                    {"stop_tokens", "stop_token_ids"},
                                                    {"random_seed", "seed"},
                                                    {"input_ids", "prompt_token_ids"}};
  return kNearMisses;
}

RequestBuilder::RequestBuilder(const BuilderOptions& options, const text::Tokenizer* tokenizer)
    : options_(options), tokenizer_(tokenizer), picker_(options.field, picked_names()) {}

RowError RequestBuilder::line_too_long() {
  return {"line_too_long", fmt::format("the line is longer than {} MiB", io::kMaxLineBytes >> 20),
          ""};
}

Expected<SamplingFields> RequestBuilder::sampling_of(const RowFields& fields) const {
  SamplingFields row;
  if (options_.row_params == RowParams::kNone) return options_.defaults;
  if (options_.row_params == RowParams::kAuto) {
    for (const std::string& name : sampling_field_names()) {
      const FieldValue* value = find(fields, name);
      if (value == nullptr) continue;
      if (auto error = set_field(name, *value, options_.vocab_size, &row))
        return tl::unexpected(std::move(*error));
    }
  }
  if (const FieldValue* nested = find(fields, "sampling_params")) {
    if (!std::holds_alternative<ObjectValue>(*nested)) {
      return refuse("invalid_param",
                    fmt::format("sampling_params is {}; it must be an object", type_name(*nested)),
                    "sampling_params");
    }
    for (const auto& [name, value] : fields.nested) {
      if (auto error = set_field(name, value, options_.vocab_size, &row))
        return tl::unexpected(std::move(*error));
    }
  }
  return overlay(row, options_.defaults);
}

Expected<std::vector<int32_t>> RequestBuilder::encode(const FieldValue& prompt,
                                                      const RowFields& fields) const {
  const auto* text = std::get_if<std::string>(&prompt);
  if (text == nullptr) {
    return refuse("invalid_param",
                  fmt::format("{} is {}; it must be a string", options_.field, type_name(prompt)),
                  options_.field);
  }
  if (text->empty())
    return refuse("empty_prompt", fmt::format("{} is empty", options_.field), options_.field);
  bool add_special_tokens = true;
  if (const FieldValue* given = find(fields, "add_special_tokens")) {
    const auto* flag = std::get_if<bool>(given);
    if (flag == nullptr) {
      return refuse(
          "invalid_param",
          fmt::format("add_special_tokens is {}; it must be true or false", type_name(*given)),
          "add_special_tokens");
    }
    add_special_tokens = *flag;
  }
  if (tokenizer_ == nullptr) {
    return refuse("unsupported",
                  "the model has no tokenizer.json: only rows with prompt_token_ids run",
                  options_.field);
  }
  auto ids = tokenizer_->encode(*text, add_special_tokens);
  if (!ids) return ids;
  for (const int32_t id : *ids) {
    if (id < 0 || id >= options_.vocab_size) {
      return refuse("tokenizer_error",
                    fmt::format("the tokenizer gives id {}; the model's vocabulary is [0, {})", id,
                                options_.vocab_size));
    }
  }
  if (ids->empty())
    return refuse("empty_prompt", fmt::format("{} has no tokens", options_.field), options_.field);
  return ids;
}

Expected<std::vector<int32_t>> RequestBuilder::prompt_of(const RowFields& fields) const {
  if (find(fields, "custom_id") != nullptr && find(fields, "url") != nullptr) {
    return refuse(
        "unsupported",
        "rows in the OpenAI batch form (custom_id and url) are not served by this version", "url");
  }
  if (const FieldValue* given = find(fields, "prompt_token_ids")) {
    const auto* array = std::get_if<ArrayValue>(given);
    if (array == nullptr || array->size != static_cast<int64_t>(array->integers.size())) {
      return refuse("invalid_param", "prompt_token_ids must be a list of integers",
                    "prompt_token_ids");
    }
    if (array->size == 0)
      return refuse("empty_prompt", "prompt_token_ids is empty", "prompt_token_ids");
    std::vector<int32_t> ids;
    ids.reserve(array->integers.size());
    for (const int64_t id : array->integers) {
      if (id < 0 || id >= options_.vocab_size) {
        return refuse("invalid_param",
                      fmt::format("prompt_token_ids holds {}; the vocabulary is [0, {})", id,
                                  options_.vocab_size),
                      "prompt_token_ids");
      }
      ids.push_back(static_cast<int32_t>(id));
    }
    return ids;
  }
  if (find(fields, "messages") != nullptr) {
    return refuse("unsupported",
                  "rows with messages are not served by this version; render them to prompt",
                  "messages");
  }
  if (!fields.prompt) {
    return refuse(
        "invalid_param",
        fmt::format("the row has neither {} nor prompt_token_ids; --field names the prompt's field",
                    options_.field),
        options_.field);
  }
  return encode(*fields.prompt, fields);
}

std::optional<RowError> RequestBuilder::fit(std::vector<int32_t>* ids,
                                            const SamplingFields& sampling) const {
  const auto length = static_cast<int64_t>(ids->size());
  if (length < options_.max_model_len) return std::nullopt;
  if (options_.too_long == TooLong::kError) {
    return RowError{
        "prompt_too_long",
        fmt::format(
            "the prompt has {} tokens; max-model-len {} leaves room for {} (--too-long truncates)",
            length, options_.max_model_len, options_.max_model_len - 1),
        ""};
  }
  const int64_t reserved = std::clamp<int64_t>(sampling.max_tokens.value_or(kReservedForAnswer), 1,
                                               std::max<int64_t>(1, options_.max_model_len / 2));
  const int64_t keep = std::max<int64_t>(1, options_.max_model_len - reserved);
  if (options_.too_long == TooLong::kTruncateRight) {
    ids->resize(static_cast<size_t>(keep));
    return std::nullopt;
  }
  // A leading special token (beginning of text) stays.
  const bool keep_first = tokenizer_ != nullptr && keep > 1 && tokenizer_->is_special(ids->front());
  ids->erase(ids->begin() + (keep_first ? 1 : 0), ids->end() - keep + (keep_first ? 1 : 0));
  return std::nullopt;
}

Expected<Request> RequestBuilder::build(int64_t index, std::string_view line) const {
  const Expected<RowFields> fields = picker_.pick(line);
  if (!fields) return tl::unexpected(fields.error());
  auto ids = prompt_of(*fields);
  if (!ids) return tl::unexpected(std::move(ids.error()));
  const auto sampling = sampling_of(*fields);
  if (!sampling) return tl::unexpected(sampling.error());
  if (sampling->stop && !sampling->stop->empty() && tokenizer_ == nullptr) {
    return refuse("unsupported",
                  "the model has no tokenizer.json: stop strings cannot be looked for", "stop");
  }
  if (auto error = fit(&*ids, *sampling)) return tl::unexpected(std::move(*error));
  auto params = resolve(*sampling, static_cast<int64_t>(ids->size()), options_.max_model_len);
  if (!params) return tl::unexpected(std::move(params.error()));
  return Request{
      .index = index, .prompt_token_ids = std::move(*ids), .sampling = std::move(*params)};
}

}  // namespace mpinfer::job
