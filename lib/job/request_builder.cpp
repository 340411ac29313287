#include "lib/job/request_builder.h"

#include <algorithm>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/index.h"
#include "lib/io/jsonl.h"
#include "lib/job/json_text.h"
#include "lib/job/raw_members.h"

namespace mpinfer::job {
namespace {

constexpr int64_t kReservedForAnswer = 256;  // of a truncated row without max_tokens

std::vector<std::string> picked_names() {
  std::vector<std::string> names = sampling_field_names();
  for (const char* name :
       {"prompt_token_ids", "messages", "custom_id", "url", "sampling_params", "add_special_tokens",
        "tools", "documents", "chat_template_kwargs", "continuations"}) {
    names.emplace_back(name);
  }
  return names;
}

tl::unexpected<RowError> refuse(const char* code, std::string message,
                                std::string_view param = "") {
  return tl::unexpected(RowError{code, std::move(message), std::string(param)});
}

Expected<bool> add_special_tokens(const RowFields& fields, bool otherwise) {
  const FieldValue* given = fields.find("add_special_tokens");
  if (given == nullptr) return otherwise;
  if (const auto* flag = std::get_if<bool>(given)) return *flag;
  return refuse(
      "invalid_param",
      fmt::format("add_special_tokens is {}; it must be true or false", type_name(*given)),
      "add_special_tokens");
}

}  // namespace

uint64_t fingerprint(const BuilderOptions& options) {
  std::string text = fmt::format("{:016x} {} {} {} {}", fingerprint(options.defaults),
                                 options.field, static_cast<int>(options.row_params),
                                 static_cast<int>(options.too_long), options.max_model_len);
  if (options.chat_template != nullptr)
    text += fmt::format(" {:016x}", options.chat_template->fingerprint());
  if (options.prompt_template != nullptr)
    text += fmt::format(" p{:016x}", options.prompt_template->fingerprint());
  text += fmt::format(" {} {} {}", options.apply_chat_template, options.system.size(),
                      options.system + options.served_model_name);
  return io::hash_of(text);
}

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
    : options_(options),
      tokenizer_(tokenizer),
      picker_(options.field, picked_names()),
      openai_(options.vocab_size, options.served_model_name) {}

RowError RequestBuilder::line_too_long() {
  return {"line_too_long", fmt::format("the line is longer than {} MiB", io::kMaxLineBytes >> 20),
          ""};
}

Expected<SamplingFields> RequestBuilder::sampling_of(const RowFields& fields,
                                                     std::string_view line) const {
  SamplingFields row;
  if (options_.row_params == RowParams::kNone) return options_.defaults;
  if (options_.row_params == RowParams::kAuto) {
    for (const std::string& name : sampling_field_names()) {
      const FieldValue* value = fields.find(name);
      if (value == nullptr) continue;
      if (auto error = set_field(name, *value, options_.vocab_size, &row))
        return tl::unexpected(std::move(*error));
    }
    auto structured = read_structured_fields(line);
    if (!structured) return tl::unexpected(std::move(structured.error()));
    row.structured = std::move(*structured);
  }
  if (const FieldValue* nested = fields.find("sampling_params")) {
    if (!std::holds_alternative<ObjectValue>(*nested)) {
      return refuse("invalid_param",
                    fmt::format("sampling_params is {}; it must be an object", type_name(*nested)),
                    "sampling_params");
    }
    for (const auto& [name, value] : fields.nested) {
      if (is_structured_field(name)) continue;
      if (auto error = set_field(name, value, options_.vocab_size, &row))
        return tl::unexpected(std::move(*error));
    }
    auto structured = read_structured_fields(raw_member(line, "sampling_params"));
    if (!structured) return tl::unexpected(std::move(structured.error()));
    if (*structured) row.structured = std::move(*structured);
  }
  return overlay(row, options_.defaults);
}

Expected<std::vector<int32_t>> RequestBuilder::encode(const Prompt& prompt) const {
  if (!prompt.text) return prompt.ids;
  if (tokenizer_ == nullptr) {
    return refuse("unsupported",
                  "the model has no tokenizer.json: only rows with prompt_token_ids run",
                  prompt.param);
  }
  if (prompt.text->empty())
    return refuse("empty_prompt", fmt::format("{} is empty", prompt.param), prompt.param);
  auto ids = tokenizer_->encode(*prompt.text, prompt.add_special_tokens);
  if (!ids) return ids;
  for (const int32_t id : *ids) {
    if (id < 0 || id >= options_.vocab_size) {
      return refuse("tokenizer_error",
                    fmt::format("the tokenizer gives id {}; the model's vocabulary is [0, {})", id,
                                options_.vocab_size));
    }
  }
  if (ids->empty())
    return refuse("empty_prompt", fmt::format("{} has no tokens", prompt.param), prompt.param);
  return ids;
}

Expected<RequestBuilder::Prompt> RequestBuilder::given_ids(const FieldValue& value,
                                                           std::string_view name) const {
  const auto* array = std::get_if<ArrayValue>(&value);
  if (array == nullptr || array->size != static_cast<int64_t>(array->integers.size()))
    return refuse("invalid_param", fmt::format("{} must be a list of integers", name), name);
  if (array->size == 0) return refuse("empty_prompt", fmt::format("{} is empty", name), name);
  Prompt prompt;
  prompt.param = name;
  prompt.ids.reserve(array->integers.size());
  for (const int64_t id : array->integers) {
    if (id < 0 || id >= options_.vocab_size) {
      return refuse(
          "invalid_param",
          fmt::format("{} holds {}; the vocabulary is [0, {})", name, id, options_.vocab_size),
          name);
    }
    prompt.ids.push_back(static_cast<int32_t>(id));
  }
  return prompt;
}

Expected<RequestBuilder::Prompt> RequestBuilder::chat(const text::ChatRow& row,
                                                      const RowFields& fields) const {
  static const text::ChatTemplate
      kNone;  // says what is wrong with the row, then that it is missing
  text::ChatRow with_system = row;
  with_system.system = options_.system;
  auto text =
      (options_.chat_template == nullptr ? kNone : *options_.chat_template).render(with_system);
  if (!text) return tl::unexpected(std::move(text.error()));
  const auto add = add_special_tokens(fields, /*otherwise=*/false);
  if (!add) return tl::unexpected(add.error());
  return Prompt{.text = std::move(*text),
                .ids = {},
                .add_special_tokens = *add,
                .param = "messages",
                .templated = true};
}

// The text at --field, or of --prompt-template over the whole row; a chat's where that is asked
// for.
Expected<RequestBuilder::Prompt> RequestBuilder::given_text(const RowFields& fields,
                                                            std::string_view line) const {
  std::string text;
  if (options_.prompt_template != nullptr) {
    auto rendered = options_.prompt_template->render(line);
    if (!rendered) return tl::unexpected(std::move(rendered.error()));
    text = std::move(*rendered);
  } else if (!fields.prompt) {
    return refuse("invalid_param",
                  fmt::format("the row has neither {} nor messages nor prompt_token_ids; --field "
                              "names the prompt's field",
                              options_.field),
                  options_.field);
  } else if (const auto* given = std::get_if<std::string>(&*fields.prompt)) {
    text = *given;
  } else {
    return refuse(
        "invalid_param",
        fmt::format("{} is {}; it must be a string", options_.field, type_name(*fields.prompt)),
        options_.field);
  }
  if (text.empty())
    return refuse("empty_prompt", fmt::format("{} is empty", options_.field), options_.field);
  if (options_.apply_chat_template) {
    std::string messages = R"([{"role": "user", "content": )";
    append_json_string(&messages, text);
    messages += "}]";
    return chat({.messages = messages, .kwargs = raw_member(line, "chat_template_kwargs")}, fields);
  }
  const auto add = add_special_tokens(fields, /*otherwise=*/true);
  if (!add) return tl::unexpected(add.error());
  return Prompt{.text = std::move(text),
                .ids = {},
                .add_special_tokens = *add,
                .param = options_.field,
                .templated = options_.prompt_template != nullptr};
}

Expected<RequestBuilder::Prompt> RequestBuilder::prompt_of(const RowFields& fields,
                                                           std::string_view line) const {
  if (const FieldValue* ids = fields.find("prompt_token_ids"))
    return given_ids(*ids, "prompt_token_ids");
  if (fields.find("messages") == nullptr) return given_text(fields, line);
  return chat({.messages = raw_member(line, "messages"),
               .tools = raw_member(line, "tools"),
               .documents = raw_member(line, "documents"),
               .kwargs = raw_member(line, "chat_template_kwargs")},
              fields);
}

Expected<RequestBuilder::Prompt> RequestBuilder::prompt_of(const OpenAiBody& row) const {
  if (const FieldValue* ids = row.fields.find("prompt_token_ids"))
    return given_ids(*ids, "prompt_token_ids");
  if (row.chat) {
    if (row.fields.find("messages") == nullptr)
      return refuse("invalid_param", "body.messages is missing", "messages");
    std::string kwargs(raw_member(row.body, "chat_template_kwargs"));
    const std::string_view add = raw_member(row.body, "add_generation_prompt");
    if (!add.empty()) {
      if (kwargs.empty()) kwargs = "{}";
      const size_t end = kwargs.find_last_of('}');
      const bool object = kwargs.front() == '{' && end != std::string::npos;
      const bool bare = object && kwargs.find('"') == std::string::npos;
      if (object)
        kwargs.insert(end, fmt::format("{}\"add_generation_prompt\": {}", bare ? "" : ", ", add));
    }
    return chat({.messages = raw_member(row.body, "messages"),
                 .tools = row.with_tools ? raw_member(row.body, "tools") : std::string_view(),
                 .documents = raw_member(row.body, "documents"),
                 .kwargs = kwargs,
                 .reasoning_effort = row.reasoning_effort,
                 .parse_arguments = true},
                row.fields);
  }
  const FieldValue* prompt = row.fields.find("prompt");
  if (prompt == nullptr) return refuse("invalid_param", "body.prompt is missing", "prompt");
  Prompt out;
  out.param = "prompt";
  if (const auto* text = std::get_if<std::string>(prompt)) {
    out.text = *text;
  } else if (const auto* list = std::get_if<ArrayValue>(prompt)) {
    if (list->size != 1 || list->strings.size() != 1) {
      const bool several = !list->strings.empty();
      if (several || (list->size > 0 && list->integers.empty())) {
        return refuse("unsupported", "body.prompt holds several prompts; one a row is served",
                      "prompt");
      }
      return given_ids(*prompt, "prompt");
    }
    out.text = list->strings.front();
  } else {
    return refuse("invalid_param",
                  fmt::format("body.prompt is {}; it must be a string or a list of token ids",
                              type_name(*prompt)),
                  "prompt");
  }
  const auto add = add_special_tokens(row.fields, /*otherwise=*/true);
  if (!add) return tl::unexpected(add.error());
  out.add_special_tokens = *add;
  return out;
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

Expected<Request> RequestBuilder::finish(int64_t index, const Prompt& prompt,
                                         const SamplingFields& sampling,
                                         std::string* rendered) const {
  auto ids = encode(prompt);
  if (!ids) return tl::unexpected(std::move(ids.error()));
  if (sampling.stop && !sampling.stop->empty() && tokenizer_ == nullptr) {
    return refuse("unsupported",
                  "the model has no tokenizer.json: stop strings cannot be looked for", "stop");
  }
  if (auto error = fit(&*ids, sampling)) return tl::unexpected(std::move(*error));
  auto params = resolve(sampling, static_cast<int64_t>(ids->size()), options_.max_model_len);
  if (!params) return tl::unexpected(std::move(params.error()));
  if (params->constrained()) {
    if (auto checked = check_grammar(*sampling.structured); !checked)
      return tl::unexpected(std::move(checked.error()));
  }
  if (sampling.bad_words && !sampling.bad_words->empty()) {
    auto words = bad_words_of(*sampling.bad_words);
    if (!words) return tl::unexpected(std::move(words.error()));
    params->bad_words = std::move(*words);
  }
  if (rendered != nullptr) *rendered = prompt.templated ? prompt.text.value_or("") : std::string();
  return Request{
      .index = index, .prompt_token_ids = std::move(*ids), .sampling = std::move(*params)};
}

Expected<void> RequestBuilder::check_grammar(const StructuredField& field) const {
  if (tokenizer_ == nullptr) {
    return refuse(
        "unsupported",
        fmt::format("the model has no tokenizer.json: {} cannot be held to its text", field.param),
        field.param);
  }
  if (options_.grammars != nullptr) return options_.grammars->check(field.grammar, field.param);
  const auto read = text::grammar::compile(field.grammar, field.param);
  if (!read) return tl::unexpected(read.error());
  return {};
}

// As vLLM does: a word is banned as it stands, and behind a space where that gives other tokens of
// the same number.
Expected<std::vector<std::vector<int32_t>>> RequestBuilder::bad_words_of(
    const std::vector<std::string>& words) const {
  if (tokenizer_ == nullptr) {
    return refuse("unsupported", "the model has no tokenizer.json: bad words cannot be tokenised",
                  "bad_words");
  }
  std::vector<std::vector<int32_t>> out;
  for (const std::string& word : words) {
    const size_t begin = std::min(word.find_first_not_of(" \t\n\r"), word.size());
    const std::string bare = word.substr(begin);
    auto plain = tokenizer_->encode(bare, /*add_special_tokens=*/false);
    if (!plain) return tl::unexpected(std::move(plain.error()));
    auto spaced = tokenizer_->encode(" " + bare, /*add_special_tokens=*/false);
    if (!spaced) return tl::unexpected(std::move(spaced.error()));
    const bool differs =
        !spaced->empty() && plain->size() == spaced->size() && plain->front() != spaced->front();
    if (!plain->empty()) out.push_back(std::move(*plain));
    if (differs) out.push_back(std::move(*spaced));
  }
  return out;
}

// {"prompt", "continuations": [...]}: each continuation's tokens are those that the whole text has
// behind the prompt's.
Expected<Request> RequestBuilder::score(int64_t index, const Prompt& prompt,
                                        const FieldValue& given, const RowFields& fields,
                                        std::string_view line) const {
  constexpr size_t kMaxContinuations = 1024;
  const auto* list = std::get_if<ArrayValue>(&given);
  if (list == nullptr || list->size != static_cast<int64_t>(list->strings.size()) ||
      list->strings.empty() || list->strings.size() > kMaxContinuations) {
    return refuse("invalid_param",
                  fmt::format("continuations must be a list of 1 to {} strings", kMaxContinuations),
                  "continuations");
  }
  if (!prompt.text) {
    return refuse("unsupported", "continuations need a prompt that is text, not token ids",
                  "continuations");
  }
  const auto ids = encode(prompt);
  if (!ids) return tl::unexpected(ids.error());
  const auto sampling = sampling_of(fields, line);
  if (!sampling) return tl::unexpected(sampling.error());
  Request request{.index = index, .prompt_token_ids = *ids, .sampling = {}};
  request.sampling.n = static_cast<int32_t>(list->strings.size());
  request.sampling.num_prompt_logprobs = 0;
  request.sampling.prompt_logprobs_from = static_cast<int32_t>(ids->size());
  request.sampling.temperature = 0.0F;
  keep_prompt_only(&request.sampling);
  for (const std::string& text : list->strings) {
    Prompt whole = prompt;
    whole.text = *prompt.text + text;
    auto all = encode(whole);
    if (!all) return tl::unexpected(std::move(all.error()));
    if (all->size() <= ids->size()) {
      return refuse("invalid_param", "a continuation has no tokens of its own behind the prompt",
                    "continuations");
    }
    if (static_cast<int64_t>(all->size()) > options_.max_model_len) {
      return refuse("prompt_too_long",
                    fmt::format("prompt and continuation have {} tokens; the context holds {}",
                                all->size(), options_.max_model_len),
                    "continuations");
    }
    request.continuations.emplace_back(all->begin() + static_cast<std::ptrdiff_t>(ids->size()),
                                       all->end());
  }
  return request;
}

Expected<Request> RequestBuilder::build(int64_t index, std::string_view line,
                                        std::string* rendered) const {
  const Expected<RowFields> fields = picker_.pick(line);
  if (!fields) return tl::unexpected(fields.error());
  if (fields->find("custom_id") != nullptr && fields->find("url") != nullptr) {
    const Expected<OpenAiBody> body = openai_.read(line);
    if (!body) return tl::unexpected(body.error());
    const auto prompt = prompt_of(*body);
    if (!prompt) return tl::unexpected(prompt.error());
    return finish(index, *prompt, overlay(body->sampling, options_.defaults), rendered);
  }
  const auto prompt = prompt_of(*fields, line);
  if (!prompt) return tl::unexpected(prompt.error());
  if (const FieldValue* continuations = fields->find("continuations"))
    return score(index, *prompt, *continuations, *fields, line);
  const auto sampling = sampling_of(*fields, line);
  if (!sampling) return tl::unexpected(sampling.error());
  return finish(index, *prompt, *sampling, rendered);
}

}  // namespace mpinfer::job
