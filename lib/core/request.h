// Request: one validated input row, ready for the engine. Built by job/request_builder on the
// replica leader, carried to the replica's other ranks in the control record.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mpinfer {

struct LogitBias {
  int32_t token_id = 0;
  float bias = 0.0F;
};

// What a row's completion has to look like, by its text; none: anything.
struct GrammarSpec {
  enum class Kind : uint8_t { kNone, kJsonObject, kJsonSchema, kRegex, kChoice };
  Kind kind = Kind::kNone;
  std::string text = {};  // the schema, the pattern, the choices as a JSON list
  bool operator==(const GrammarSpec&) const = default;
};

// Ranges and meaning: INTERFACE §4; every value here is already checked.
struct SamplingParams {
  int32_t max_tokens = 0;  // already resolved: 1 … rest of the context
  int32_t min_tokens = 0;
  float temperature = 1.0F;  // < 1e-5: greedy
  float top_p = 1.0F;
  int32_t top_k = 0;  // 0 or -1: off
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
  float frequency_penalty = 0.0F;
  float presence_penalty = 0.0F;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool include_stop_str_in_output = false;
  std::vector<int32_t> stop_token_ids;  // the row's own
  bool ignore_eos = false;
  bool skip_special_tokens = true;
  int32_t n = 1;  // samples of the row, each a sequence of its own
  // Most likely tokens named beside the chosen one; 0: the chosen one alone, -1: nothing.
  int32_t num_logprobs = -1;
  int32_t num_prompt_logprobs = -1;
  int32_t prompt_logprobs_from = 1;             // first prompt position they are wanted of
  bool prompt_only = false;                     // the one token that is drawn is thrown away
  std::vector<LogitBias> logit_bias;            // by ascending token, one each
  std::vector<int32_t> allowed_token_ids;       // ascending; empty: all
  std::vector<std::vector<int32_t>> bad_words;  // token by token, none empty
  GrammarSpec grammar;

  bool greedy() const { return temperature < 1e-5F; }
  bool penalised() const {
    return repetition_penalty != 1.0F || frequency_penalty != 0.0F || presence_penalty != 0.0F;
  }
  bool constrained() const { return grammar.kind != GrammarSpec::Kind::kNone; }
  bool changes_logits() const {
    return penalised() || !logit_bias.empty() || !allowed_token_ids.empty() || !bad_words.empty() ||
           constrained();
  }
};

struct Request {
  int64_t index = 0;   // input row, counted over all files from 0
  int32_t sample = 0;  // of the row's n
  std::vector<int32_t> prompt_token_ids;
  // Ends of the prompt, one a sample (n of them): what is to be scored. Empty: all samples alike.
  std::vector<std::vector<int32_t>> continuations = {};
  SamplingParams sampling;
  // Completion tokens that an earlier attempt drew: the sequence goes on behind them (n = 1).
  std::vector<int32_t> begun_token_ids = {};
};

}  // namespace mpinfer
