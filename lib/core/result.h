// Result: what became of one input row; RowError: why a row has no answer. Both are values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tl/expected.hpp>
#include <utility>
#include <variant>
#include <vector>

namespace mpinfer {

// code is one of INTERFACE §3: invalid_json, invalid_utf8, line_too_long, invalid_param,
// unsupported, model_mismatch, empty_prompt, prompt_too_long, template_error, tokenizer_error,
// kv_oom, nan_logits.
struct RowError {
  std::string code;
  std::string message;
  std::string param;  // the field, or empty
};

template <class T>
using Expected = tl::expected<T, RowError>;

enum class FinishReason : uint8_t { kStop, kLength };

// null, the matched stop token id, or the matched stop string.
using StopReason = std::variant<std::monostate, int32_t, std::string>;

// Of the raw model: before temperature, penalties and masks.
struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0.0F;
  int32_t rank = 0;                              // from 1
  std::vector<std::pair<int32_t, float>> top{};  // the most likely tokens, best first
};

// What the engine hands over for a finished sequence. token_ids holds every generated id that
// counts (a matched stop id included; ids generated after a stop string's verdict are already cut
// off).
struct Completion {
  int64_t index = 0;
  int32_t sample = 0;
  std::vector<int32_t> token_ids;
  FinishReason finish_reason = FinishReason::kLength;
  StopReason stop_reason;
  std::optional<RowError> error;              // kv_oom, nan_logits
  std::vector<TokenLogprob> logprobs;         // of token_ids, where asked for
  std::vector<TokenLogprob> prompt_logprobs;  // from prompt_logprobs_from on, where asked for
  int32_t num_cached_tokens = 0;              // of the prompt, whose KV another row had computed
};

}  // namespace mpinfer
