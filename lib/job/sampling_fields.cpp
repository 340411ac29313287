#include "lib/job/sampling_fields.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/index.h"

namespace mpinfer::job {
namespace {

constexpr size_t kMaxStopStrings = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr size_t kMaxBadWords = 1024;
constexpr int64_t kMaxSamples = 1024;
constexpr int64_t kMaxLogprobs = 20;
constexpr double kMaxBias = 100.0;
constexpr double kMaxPenalty = 1e6;  // of repetition: beyond it f32 logits overflow

using Check = std::optional<RowError>;
using Setter = std::function<Check(std::string_view, const FieldValue&, int64_t, SamplingFields*)>;

RowError invalid(std::string_view name, std::string message) {
  return {"invalid_param", std::move(message), std::string(name)};
}

RowError wrong_type(std::string_view name, const FieldValue& value, std::string_view wanted) {
  return invalid(name, fmt::format("{} is {}; it must be {}", name, type_name(value), wanted));
}

struct NumberRange {
  double low = 0.0;
  double high = 0.0;
  bool open_low = false;  // low itself is not allowed
};

Setter number(std::optional<double> SamplingFields::*field, NumberRange range) {
  return
      [=](std::string_view name, const FieldValue& value, int64_t, SamplingFields* out) -> Check {
        double number = 0.0;
        if (const auto* real = std::get_if<double>(&value)) {
          number = *real;
        } else if (const auto* integer = std::get_if<int64_t>(&value)) {
          number = static_cast<double>(*integer);
        } else {
          return wrong_type(name, value, "a number");
        }
        const bool low_enough = number <= range.high;
        const bool high_enough = range.open_low ? number > range.low : number >= range.low;
        if (!low_enough || !high_enough) {
          return invalid(name, fmt::format("{} {} is outside {}{}, {}]", name, number,
                                           range.open_low ? "(" : "[", range.low, range.high));
        }
        out->*field = number;
        return std::nullopt;
      };
}

Setter integer(std::optional<int64_t> SamplingFields::*field, int64_t low,
               int64_t high = std::numeric_limits<int32_t>::max()) {
  return
      [=](std::string_view name, const FieldValue& value, int64_t, SamplingFields* out) -> Check {
        const auto* given = std::get_if<int64_t>(&value);
        if (given == nullptr) return wrong_type(name, value, "an integer");
        if (*given < low || *given > high) {
          return invalid(name, fmt::format("{} {} is outside [{}, {}]", name, *given, low, high));
        }
        out->*field = *given;
        return std::nullopt;
      };
}

Setter boolean(std::optional<bool> SamplingFields::*field) {
  return
      [=](std::string_view name, const FieldValue& value, int64_t, SamplingFields* out) -> Check {
        const auto* given = std::get_if<bool>(&value);
        if (given == nullptr) return wrong_type(name, value, "true or false");
        out->*field = *given;
        return std::nullopt;
      };
}

Check set_seed(std::string_view name, const FieldValue& value, int64_t, SamplingFields* out) {
  if (const auto* given = std::get_if<int64_t>(&value)) {
    out->seed = static_cast<uint64_t>(*given);
  } else if (const auto* large = std::get_if<uint64_t>(&value)) {
    out->seed = *large;
  } else {
    return wrong_type(name, value, "an integer of 64 bits");
  }
  return std::nullopt;
}

Check set_stop(std::string_view name, const FieldValue& value, int64_t, SamplingFields* out) {
  std::vector<std::string> strings;
  if (const auto* one = std::get_if<std::string>(&value)) {
    strings.push_back(*one);
  } else if (const auto* array = std::get_if<ArrayValue>(&value)) {
    if (array->size != static_cast<int64_t>(array->strings.size())) {
      return invalid(name, "stop holds something that is no string");
    }
    strings = array->strings;
  } else {
    return wrong_type(name, value, "a string or a list of strings");
  }
  if (strings.size() > kMaxStopStrings) {
    return invalid(
        name, fmt::format("{} stop strings; the limit is {}", strings.size(), kMaxStopStrings));
  }
  for (const std::string& text : strings) {
    if (text.empty() || text.size() > kMaxStopBytes) {
      return invalid(name, fmt::format("a stop string of {} bytes; 1 to {} are allowed",
                                       text.size(), kMaxStopBytes));
    }
  }
  out->stop = std::move(strings);
  return std::nullopt;
}

Check set_stop_token_ids(std::string_view name, const FieldValue& value, int64_t vocab_size,
                         SamplingFields* out) {
  const auto* array = std::get_if<ArrayValue>(&value);
  if (array == nullptr) return wrong_type(name, value, "a list of token ids");
  if (array->size != static_cast<int64_t>(array->integers.size())) {
    return invalid(name, fmt::format("{} holds something that is no integer", name));
  }
  std::vector<int32_t> ids;
  for (const int64_t id : array->integers) {
    if (id < 0 || id >= vocab_size) {
      return invalid(name,
                     fmt::format("{} holds {}; the vocabulary is [0, {})", name, id, vocab_size));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  out->stop_token_ids = std::move(ids);
  return std::nullopt;
}

// true: the chosen token alone, unless top_logprobs says more.
Check set_logprobs(std::string_view name, const FieldValue& value, int64_t, SamplingFields* out) {
  if (const auto* flag = std::get_if<bool>(&value)) {
    if (*flag) out->logprobs = 0;
    return std::nullopt;
  }
  const auto* given = std::get_if<int64_t>(&value);
  if (given == nullptr) return wrong_type(name, value, "an integer, or true or false");
  if (*given < 0 || *given > kMaxLogprobs)
    return invalid(name, fmt::format("{} {} is outside [0, {}]", name, *given, kMaxLogprobs));
  out->logprobs = *given;
  return std::nullopt;
}

// Ids in a list or as the keys of an object, every one inside the vocabulary.
Check set_allowed_token_ids(std::string_view name, const FieldValue& value, int64_t vocab_size,
                            SamplingFields* out) {
  SamplingFields parsed;
  if (auto error = set_stop_token_ids(name, value, vocab_size, &parsed)) return error;
  std::vector<int32_t>& ids = *parsed.stop_token_ids;
  if (ids.empty()) return invalid(name, "allowed_token_ids is empty: nothing could be drawn");
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  out->allowed_token_ids = std::move(ids);
  return std::nullopt;
}

Check set_logit_bias(std::string_view name, const FieldValue& value, int64_t vocab_size,
                     SamplingFields* out) {
  const auto* object = std::get_if<ObjectValue>(&value);
  if (object == nullptr) return wrong_type(name, value, "an object of token ids and biases");
  if (object->size != static_cast<int64_t>(object->numbers.size()))
    return invalid(name, "logit_bias holds a bias that is no number");
  std::map<int32_t, float> biases;
  for (const auto& [key, bias] : object->numbers) {
    int64_t id = -1;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
    const bool number = parsed.ec == std::errc{} && parsed.ptr == key.data() + key.size();
    if (!number || id < 0 || id >= vocab_size) {
      return invalid(name, fmt::format("logit_bias names token {}; the vocabulary is [0, {})",
                                       printable(key.substr(0, 40)), vocab_size));
    }
    if (!(bias >= -kMaxBias && bias <= kMaxBias)) {
      return invalid(name, fmt::format("logit_bias {} of token {} is outside [{}, {}]", bias, id,
                                       -kMaxBias, kMaxBias));
    }
    biases[static_cast<int32_t>(id)] = static_cast<float>(bias);
  }
  out->logit_bias.emplace();
  for (const auto& [id, bias] : biases) out->logit_bias->push_back({id, bias});
  return std::nullopt;
}

Check set_bad_words(std::string_view name, const FieldValue& value, int64_t, SamplingFields* out) {
  const auto* array = std::get_if<ArrayValue>(&value);
  if (array == nullptr || array->size != static_cast<int64_t>(array->strings.size()))
    return wrong_type(name, value, "a list of strings");
  if (array->strings.size() > kMaxBadWords) {
    return invalid(
        name, fmt::format("{} bad words; the limit is {}", array->strings.size(), kMaxBadWords));
  }
  for (const std::string& word : array->strings) {
    if (word.empty() || word.size() > kMaxStopBytes) {
      return invalid(name, fmt::format("a bad word of {} bytes; 1 to {} are allowed", word.size(),
                                       kMaxStopBytes));
    }
  }
  out->bad_words = array->strings;
  return std::nullopt;
}

const std::map<std::string, Setter, std::less<>>& setters() {
  using F = SamplingFields;
  static const std::map<std::string, Setter, std::less<>> kSetters = {
      {"temperature", number(&F::temperature, {.low = 0, .high = 2})},
      {"top_p", number(&F::top_p, {.low = 0, .high = 1, .open_low = true})},
      {"min_p", number(&F::min_p, {.low = 0, .high = 1})},
      {"repetition_penalty",
       number(&F::repetition_penalty, {.low = 0, .high = kMaxPenalty, .open_low = true})},
      {"frequency_penalty", number(&F::frequency_penalty, {.low = -2, .high = 2})},
      {"presence_penalty", number(&F::presence_penalty, {.low = -2, .high = 2})},
      {"top_k", integer(&F::top_k, -1)},
      {"max_tokens", integer(&F::max_tokens, 0)},
      {"max_completion_tokens", integer(&F::max_tokens, 0)},
      {"min_tokens", integer(&F::min_tokens, 0)},
      {"seed", set_seed},
      {"stop", set_stop},
      {"stop_token_ids", set_stop_token_ids},
      {"ignore_eos", boolean(&F::ignore_eos)},
      {"include_stop_str_in_output", boolean(&F::include_stop_str_in_output)},
      {"skip_special_tokens", boolean(&F::skip_special_tokens)},
      {"n", integer(&F::n, 1, kMaxSamples)},
      {"logprobs", set_logprobs},
      {"top_logprobs", integer(&F::top_logprobs, 0, kMaxLogprobs)},
      {"prompt_logprobs", integer(&F::prompt_logprobs, 0, kMaxLogprobs)},
      {"logit_bias", set_logit_bias},
      {"allowed_token_ids", set_allowed_token_ids},
      {"bad_words", set_bad_words},
  };
  return kSetters;
}

constexpr std::string_view kIgnored[] = {
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "stream_options"};

FieldValue value_of_text(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX) return json.get<uint64_t>();
  if (json.is_number_integer()) return json.get<int64_t>();
  if (json.is_number()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  return text;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

template <class T>
void take_over(std::optional<T>* field, const std::optional<T>& above) {
  if (above) *field = above;
}

}  // namespace

const std::vector<std::string>& sampling_field_names() {
  static const std::vector<std::string> kNames = [] {
    std::vector<std::string> names;
    for (const auto& [name, setter] : setters()) names.push_back(name);
    return names;
  }();
  return kNames;
}

std::optional<RowError> set_field(std::string_view name, const FieldValue& value,
                                  int64_t vocab_size, SamplingFields* fields) {
  const auto setter = setters().find(name);
  if (setter != setters().end()) {
    if (std::holds_alternative<std::monostate>(value)) return std::nullopt;
    return setter->second(name, value, vocab_size, fields);
  }
  if (std::find(std::begin(kIgnored), std::end(kIgnored), name) != std::end(kIgnored))
    return std::nullopt;
  return RowError{"unsupported", fmt::format("sampling_params has no field {}", printable(name)),
                  printable(name)};
}

bool is_ignored_field(std::string_view name) {
  return std::find(std::begin(kIgnored), std::end(kIgnored), name) != std::end(kIgnored);
}

SamplingFields overlay(const SamplingFields& above, const SamplingFields& below) {
  SamplingFields out = below;
  take_over(&out.temperature, above.temperature);
  take_over(&out.top_p, above.top_p);
  take_over(&out.min_p, above.min_p);
  take_over(&out.repetition_penalty, above.repetition_penalty);
  take_over(&out.frequency_penalty, above.frequency_penalty);
  take_over(&out.presence_penalty, above.presence_penalty);
  take_over(&out.top_k, above.top_k);
  take_over(&out.max_tokens, above.max_tokens);
  take_over(&out.min_tokens, above.min_tokens);
  take_over(&out.seed, above.seed);
  take_over(&out.stop, above.stop);
  take_over(&out.stop_token_ids, above.stop_token_ids);
  take_over(&out.ignore_eos, above.ignore_eos);
  take_over(&out.include_stop_str_in_output, above.include_stop_str_in_output);
  take_over(&out.skip_special_tokens, above.skip_special_tokens);
  take_over(&out.n, above.n);
  take_over(&out.logprobs, above.logprobs);
  take_over(&out.top_logprobs, above.top_logprobs);
  take_over(&out.prompt_logprobs, above.prompt_logprobs);
  take_over(&out.logit_bias, above.logit_bias);
  take_over(&out.allowed_token_ids, above.allowed_token_ids);
  take_over(&out.bad_words, above.bad_words);
  take_over(&out.structured, above.structured);
  return out;
}

SamplingFields from_generation_config(const model::GenerationDefaults& defaults) {
  SamplingFields fields;
  if (!defaults.do_sample) fields.temperature = 0.0;
  if (defaults.do_sample && defaults.has_temperature) fields.temperature = defaults.temperature;
  if (defaults.has_top_p) fields.top_p = defaults.top_p;
  if (defaults.has_top_k) fields.top_k = defaults.top_k;
  if (defaults.has_repetition_penalty) fields.repetition_penalty = defaults.repetition_penalty;
  return fields;
}

std::vector<SamplingFields> parse_replica_sampling(const std::string& text, int num_replicas,
                                                   int64_t vocab_size) {
  std::vector<SamplingFields> replicas(static_cast<size_t>(num_replicas));
  const auto refuse = [&](const std::string& part, const std::string& why) {
    throw Error(ExitCode::kUsage,
                fmt::format("--replica-sampling: '{}': {}; write r:key=value,…;… with r below {}",
                            printable(part), why, num_replicas));
  };
  for (const std::string& part : split(text, ';')) {
    const size_t colon = part.find(':');
    int replica = -1;
    const char* end = part.data() + std::min(colon, part.size());
    const auto parsed = std::from_chars(part.data(), end, replica);
    if (colon == std::string::npos || parsed.ec != std::errc{} || parsed.ptr != end)
      refuse(part, "no replica number");
    if (replica < 0 || replica >= num_replicas)
      refuse(part, fmt::format("there is no replica {}", replica));
    for (const std::string& setting : split(part.substr(colon + 1), ',')) {
      const size_t equals = setting.find('=');
      if (equals == std::string::npos) refuse(setting, "no key=value");
      const auto error =
          set_field(setting.substr(0, equals), value_of_text(setting.substr(equals + 1)),
                    vocab_size, &replicas[static_cast<size_t>(replica)]);
      if (error) refuse(setting, error->message);
    }
  }
  return replicas;
}

void keep_prompt_only(SamplingParams* params) {
  params->prompt_only = true;
  params->grammar = {};
  params->max_tokens = 1;
  params->min_tokens = 0;
  params->num_logprobs = -1;
  params->ignore_eos = true;
  params->stop.clear();
  params->stop_token_ids.clear();
}

Expected<SamplingParams> resolve(const SamplingFields& fields, int64_t num_prompt_tokens,
                                 int64_t max_model_len) {
  const int64_t room = max_model_len - num_prompt_tokens;
  const int64_t asked = fields.max_tokens.value_or(room);
  const int64_t min_tokens = fields.min_tokens.value_or(0);
  if (min_tokens > asked) {
    return tl::unexpected(invalid(
        "min_tokens", fmt::format("min_tokens {} is above max_tokens {}", min_tokens, asked)));
  }
  if (asked == 0 && !fields.prompt_logprobs) {
    return tl::unexpected(invalid(
        "max_tokens", "max_tokens 0 needs prompt_logprobs: there would be nothing to answer"));
  }
  if (fields.top_logprobs && *fields.top_logprobs > 0 && !fields.logprobs) {
    return tl::unexpected(invalid("top_logprobs", "top_logprobs needs logprobs: true"));
  }
  SamplingParams params;
  params.max_tokens = checked_cast<int32_t>(std::min(asked, room));
  params.min_tokens = checked_cast<int32_t>(std::min<int64_t>(min_tokens, params.max_tokens));
  params.temperature = static_cast<float>(fields.temperature.value_or(1.0));
  params.top_p = static_cast<float>(fields.top_p.value_or(1.0));
  params.min_p = static_cast<float>(fields.min_p.value_or(0.0));
  params.top_k = checked_cast<int32_t>(fields.top_k.value_or(0));
  params.repetition_penalty = static_cast<float>(fields.repetition_penalty.value_or(1.0));
  params.frequency_penalty = static_cast<float>(fields.frequency_penalty.value_or(0.0));
  params.presence_penalty = static_cast<float>(fields.presence_penalty.value_or(0.0));
  params.seed = fields.seed;
  params.stop = fields.stop.value_or(std::vector<std::string>());
  params.stop_token_ids = fields.stop_token_ids.value_or(std::vector<int32_t>());
  params.ignore_eos = fields.ignore_eos.value_or(false);
  params.include_stop_str_in_output = fields.include_stop_str_in_output.value_or(false);
  params.skip_special_tokens = fields.skip_special_tokens.value_or(true);
  params.n = checked_cast<int32_t>(fields.n.value_or(1));
  if (params.n > 1 && params.greedy()) {
    return tl::unexpected(
        invalid("n", fmt::format("n {} with temperature {}: greedy samples are all alike; raise "
                                 "temperature or leave n at 1",
                                 params.n, params.temperature)));
  }
  if (fields.logprobs) {
    params.num_logprobs =
        checked_cast<int32_t>(std::max(*fields.logprobs, fields.top_logprobs.value_or(0)));
  }
  params.num_prompt_logprobs = checked_cast<int32_t>(fields.prompt_logprobs.value_or(-1));
  params.logit_bias = fields.logit_bias.value_or(std::vector<LogitBias>());
  params.allowed_token_ids = fields.allowed_token_ids.value_or(std::vector<int32_t>());
  if (fields.structured) {
    if (!params.allowed_token_ids.empty()) {
      return tl::unexpected(invalid(
          "allowed_token_ids", fmt::format("allowed_token_ids and {} are both given: one a row",
                                           fields.structured->param)));
    }
    params.grammar = fields.structured->grammar;
    params.ignore_eos = false;  // where nothing but the end is allowed, the row ends
  }
  if (asked == 0) keep_prompt_only(&params);
  return params;
}

uint64_t fingerprint(const SamplingFields& f) {
  std::string text;
  const auto add = [&](const auto& field) { text += field ? fmt::format("{};", *field) : "-;"; };
  add(f.temperature);
  add(f.top_p);
  add(f.min_p);
  add(f.repetition_penalty);
  add(f.frequency_penalty);
  add(f.presence_penalty);
  add(f.top_k);
  add(f.max_tokens);
  add(f.min_tokens);
  add(f.seed);
  add(f.ignore_eos);
  add(f.include_stop_str_in_output);
  add(f.skip_special_tokens);
  add(f.n);
  add(f.logprobs);
  add(f.top_logprobs);
  add(f.prompt_logprobs);
  for (const LogitBias& bias : f.logit_bias.value_or(std::vector<LogitBias>()))
    text += fmt::format("b{}:{}", bias.token_id, bias.bias);
  for (const int32_t id : f.allowed_token_ids.value_or(std::vector<int32_t>()))
    text += fmt::format("a{}", id);
  for (const std::string& word : f.bad_words.value_or(std::vector<std::string>()))
    text += fmt::format("w{}:{}", word.size(), word);
  for (const std::string& stop : f.stop.value_or(std::vector<std::string>()))
    text += fmt::format("{}:{}", stop.size(), stop);
  for (const int32_t id : f.stop_token_ids.value_or(std::vector<int32_t>()))
    text += fmt::format(",{}", id);
  return io::hash_of(text);
}

}  // namespace mpinfer::job
