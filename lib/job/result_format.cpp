#include "lib/job/result_format.h"

#include <fmt/core.h>

#include <algorithm>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/field_scanner.h"
#include "lib/io/index.h"
#include "lib/job/json_text.h"
#include "lib/job/openai_format.h"
#include "lib/job/raw_members.h"

namespace mpinfer::job {
namespace {

constexpr std::string_view kOurs[] = {
    "index", "finish_reason",    "stop_reason", "prompt_tokens", "completion_tokens",
    "error", "output_token_ids", "sample"};

// Names that an input row may have used for its own settings: dropped where ours stand.
struct Ours {
  std::string_view output_field;
  bool logprobs = false;
  bool prompt_logprobs = false;
  bool scores = false;

  bool holds(std::string_view key) const {
    if (std::find(std::begin(kOurs), std::end(kOurs), key) != std::end(kOurs)) return true;
    return key == output_field ||
           (logprobs && (key == "logprobs" || key == "cumulative_logprob")) ||
           (prompt_logprobs && key == "prompt_logprobs") || (scores && key == "scores");
  }
};

// "{" and the input's members, each followed by ", ". line must be valid JSON or empty.
std::string begin_line(std::string_view line, const Ours& ours) {
  std::string out = "{";
  out.reserve(line.size() + 256);
  io::MemberScanner scanner(line);
  io::Member member;
  while (scanner.next(&member)) {
    const bool plain = member.key.find('\\') == std::string_view::npos;
    if (plain ? ours.holds(member.key) : ours.holds(member.decoded_key())) continue;
    out += member.text;
    out += ", ";
  }
  return out;
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

// [a, b, …] of what append_one writes.
template <class Values, class AppendOne>
void append_list(std::string* out, const Values& values, AppendOne append_one) {
  *out += '[';
  bool first = true;
  for (const auto& value : values) {
    if (!first) *out += ", ";
    first = false;
    append_one(value);
  }
  *out += ']';
}

void append_ids(std::string* out, const std::vector<int32_t>& ids) {
  append_list(out, ids, [out](int32_t id) { *out += std::to_string(id); });
}

void append_logprob(std::string* out, const TokenLogprob& token, const Answer& answer) {
  *out += fmt::format("{{\"token_id\": {}, \"token\": ", token.token_id);
  if (answer.token_text) {
    append_json_string(out, answer.token_text(token.token_id));
  } else {
    *out += "null";
  }
  *out += fmt::format(", \"logprob\": {}, \"rank\": {}, \"top\": ", json_of_logprob(token.logprob),
                      token.rank);
  append_list(out, token.top, [out](const auto& top) {
    *out += fmt::format("[{}, {}]", top.first, json_of_logprob(top.second));
  });
  *out += '}';
}

void append_logprobs(std::string* out, const std::vector<TokenLogprob>& tokens,
                     const Answer& answer) {
  append_list(out, tokens, [&](const TokenLogprob& token) { append_logprob(out, token, answer); });
}

void append_prompt_logprobs(std::string* out, const Answer& answer) {
  *out += "[null";
  for (const TokenLogprob& token : answer.samples.front().completion->prompt_logprobs) {
    *out += ", ";
    append_logprob(out, token, answer);
  }
  *out += ']';
}

bool is_scoring(const Answer& answer) {
  return answer.sampling->prompt_only && answer.sampling->prompt_logprobs_from > 1;
}

void append_scores(std::string* out, const Answer& answer) {
  append_list(out, answer.samples, [out](const SampleAnswer& sample) {
    const std::vector<TokenLogprob>& tokens = sample.completion->prompt_logprobs;
    double sum = 0.0;
    for (const TokenLogprob& token : tokens) sum += static_cast<double>(token.logprob);
    const bool greedy = std::all_of(tokens.begin(), tokens.end(),
                                    [](const TokenLogprob& token) { return token.rank == 1; });
    *out += fmt::format("{{\"logprob\": {}, \"num_tokens\": {}, \"is_greedy\": {}}}",
                        json_of_logprob(sum), tokens.size(), greedy);
  });
}

// Writes the members of ours for some samples of the row: one, or a list where as_list.
class OurMembers {
 public:
  OurMembers(const Answer& answer, const FormatOptions& options, bool as_list)
      : answer_(answer), options_(options), as_list_(as_list) {}

  void append(std::string* out, const std::vector<SampleAnswer>& samples) const {
    *out += fmt::format("\"index\": {}, ", answer_.index);
    append_json_string(out, options_.output_field);
    *out += ": ";
    each(out, samples, [out](const SampleAnswer& sample) {
      if (sample.text) {
        append_json_string(out, *sample.text);
      } else {
        *out += "null";
      }
    });
    *out += ", \"finish_reason\": ";
    each(out, samples, [out](const SampleAnswer& sample) {
      const bool stop = sample.completion->finish_reason == FinishReason::kStop;
      *out += stop ? "\"stop\"" : "\"length\"";
    });
    *out += ", \"stop_reason\": ";
    each(out, samples, [out](const SampleAnswer& sample) {
      append_stop_reason(out, sample.completion->stop_reason);
    });
    size_t tokens = 0;
    for (const SampleAnswer& sample : samples) tokens += sample.completion->token_ids.size();
    *out += fmt::format(", \"prompt_tokens\": {}, \"completion_tokens\": {}, \"error\": null",
                        answer_.num_prompt_tokens, tokens);
    append_asked_for(out, samples);
  }

 private:
  template <class AppendOne>
  void each(std::string* out, const std::vector<SampleAnswer>& samples, AppendOne one) const {
    if (as_list_) {
      append_list(out, samples, one);
    } else {
      one(samples.front());
    }
  }

  void append_asked_for(std::string* out, const std::vector<SampleAnswer>& samples) const {
    if (options_.token_ids || !samples.front().text) {
      *out += ", \"output_token_ids\": ";
      each(out, samples,
           [out](const SampleAnswer& sample) { append_ids(out, sample.completion->token_ids); });
    }
    if (answer_.sampling->num_logprobs >= 0) {
      *out += ", \"cumulative_logprob\": ";
      each(out, samples, [out](const SampleAnswer& sample) {
        double sum = 0.0;
        for (const auto& token : sample.completion->logprobs)
          sum += static_cast<double>(token.logprob);
        *out += json_of_logprob(sum);
      });
      *out += ", \"logprobs\": ";
      each(out, samples, [&](const SampleAnswer& sample) {
        append_logprobs(out, sample.completion->logprobs, answer_);
      });
    }
    if (answer_.sampling->num_prompt_logprobs >= 0) {
      *out += ", \"prompt_logprobs\": ";
      append_prompt_logprobs(out, answer_);
    }
  }

  const Answer& answer_;
  const FormatOptions& options_;
  bool as_list_;
};

std::string format_scores(std::string_view input_line, const Answer& answer,
                          const FormatOptions& options) {
  std::string out = begin_line(input_line, {.output_field = options.output_field, .scores = true});
  out += fmt::format("\"index\": {}, ", answer.index);
  append_json_string(&out, options.output_field);
  out += fmt::format(
      ": null, \"finish_reason\": null, \"stop_reason\": null, \"prompt_tokens\": {}, "
      "\"completion_tokens\": 0, \"error\": null, \"scores\": ",
      answer.num_prompt_tokens);
  append_scores(&out, answer);
  return out + '}';
}

bool wants_openai(std::string_view line, OutputFormat format) {
  return format == OutputFormat::kOpenAi || (format == OutputFormat::kAuto && is_openai_row(line));
}

}  // namespace

OutputFormat output_format(std::string_view name) {
  if (name == "auto") return OutputFormat::kAuto;
  if (name == "flat") return OutputFormat::kFlat;
  if (name == "openai") return OutputFormat::kOpenAi;
  throw Error(ExitCode::kUsage,
              fmt::format("--output-format {}: give auto, flat or openai", printable(name)));
}

uint64_t fingerprint(const FormatOptions& options) {
  return io::hash_of(fmt::format("{} {} {} {} {} {}", static_cast<int>(options.format),
                                 options.output_field, options.token_ids, options.line_a_sample,
                                 options.separate_errors, options.model_name));
}

std::string json_of_logprob(double logprob) {
  constexpr double kLowest = -9999.0;
  return fmt::format("{:.6g}", logprob > kLowest ? logprob : kLowest);
}

bool is_unreadable(const RowError& error) {
  return error.code == "invalid_json" || error.code == "invalid_utf8" ||
         error.code == "line_too_long";
}

std::string error_object(const Refusal& refusal) {
  const RowError& error = *refusal.error;
  std::string out = fmt::format("{{\"code\": \"{}\", \"message\": ", error.code);
  append_json_string(&out, error.message);
  out += ", \"param\": ";
  if (error.param.empty()) {
    out += "null";
  } else {
    append_json_string(&out, error.param);
  }
  out += ", \"file\": ";
  append_json_string(&out, refusal.file);
  return out + fmt::format(", \"line\": {}}}", refusal.line);
}

std::string format_answer(std::string_view input_line, const Answer& answer,
                          const FormatOptions& options) {
  if (is_scoring(answer)) return format_scores(input_line, answer, options);
  if (wants_openai(input_line, options.format))
    return format_openai_answer(input_line, answer, options);
  const bool many = answer.samples.size() > 1;
  const Ours ours{.output_field = options.output_field,
                  .logprobs = answer.sampling->num_logprobs >= 0,
                  .prompt_logprobs = answer.sampling->num_prompt_logprobs >= 0};
  const std::string begin = begin_line(input_line, ours);
  const OurMembers members(answer, options, /*as_list=*/many && !options.line_a_sample);
  if (!options.line_a_sample) {
    std::string out = begin;
    members.append(&out, answer.samples);
    return out + '}';
  }
  std::string lines;
  for (const SampleAnswer& sample : answer.samples) {
    if (!lines.empty()) lines += kLineSeparator;
    lines += begin;
    members.append(&lines, {sample});
    lines += fmt::format(", \"sample\": {}}}", sample.completion->sample);
  }
  return lines;
}

std::string format_refusal(std::string_view input_line, const Refusal& refusal,
                           const FormatOptions& options) {
  const std::string mark = options.separate_errors ? std::string(1, kSeparateError) : std::string();
  const std::string_view line = is_unreadable(*refusal.error) ? std::string_view() : input_line;
  if (wants_openai(line, options.format))
    return mark + format_openai_refusal(line, refusal, options);
  std::string out = mark + begin_line(line, {.output_field = options.output_field});
  out += fmt::format("\"index\": {}, ", refusal.index);
  append_json_string(&out, options.output_field);
  out +=
      ": null, \"finish_reason\": null, \"stop_reason\": null, \"prompt_tokens\": null, "
      "\"completion_tokens\": null, \"error\": ";
  out += error_object(refusal);
  if (options.token_ids) out += ", \"output_token_ids\": null";
  if (options.line_a_sample) out += ", \"sample\": null";
  return out + '}';
}

}  // namespace mpinfer::job
