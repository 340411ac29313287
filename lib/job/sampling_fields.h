// Sampling fields by name: types and ranges of INTERFACE §4, the same for rows, flags and
// --replica-sampling. A value that is not allowed is a RowError naming the field, the value and the
// limit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/core/request.h"
#include "lib/core/result.h"
#include "lib/job/row_fields.h"
#include "lib/job/structured_fields.h"
#include "lib/model/config.h"

namespace mpinfer::job {

// What was said about sampling, by a row or as a default; empty: nothing.
struct SamplingFields {
  std::optional<double> temperature, top_p, min_p;
  std::optional<double> repetition_penalty, frequency_penalty, presence_penalty;
  std::optional<int64_t> top_k, max_tokens, min_tokens;
  std::optional<uint64_t> seed;
  std::optional<std::vector<std::string>> stop;
  std::optional<std::vector<int32_t>> stop_token_ids;
  std::optional<int64_t> n, logprobs, top_logprobs, prompt_logprobs;
  std::optional<std::vector<LogitBias>> logit_bias;       // by ascending token, one each
  std::optional<std::vector<int32_t>> allowed_token_ids;  // ascending
  std::optional<std::vector<std::string>> bad_words;
  std::optional<StructuredField> structured;
  std::optional<bool> ignore_eos, include_stop_str_in_output, skip_special_tokens;
};

// Every name that is a sampling field.
const std::vector<std::string>& sampling_field_names();

// Fields of a body or of sampling_params that change no answer: user, metadata, store, …
bool is_ignored_field(std::string_view name);

// Sets one field; null leaves it unset. unsupported: a name that is not known.
std::optional<RowError> set_field(std::string_view name, const FieldValue& value,
                                  int64_t vocab_size, SamplingFields* fields);

// Fields of above win over those of below.
SamplingFields overlay(const SamplingFields& above, const SamplingFields& below);

// do_sample: false in a generation_config means greedy unless somebody says otherwise.
SamplingFields from_generation_config(const model::GenerationDefaults& defaults);

// "0:temperature=0.5,seed=3;2:top_p=0.9" → one entry a replica. Throws Error(kUsage).
std::vector<SamplingFields> parse_replica_sampling(const std::string& text, int num_replicas,
                                                   int64_t vocab_size);

// max_tokens is cut to the room that the prompt leaves. bad_words are the tokenizer's to fill in.
Expected<SamplingParams> resolve(const SamplingFields& fields, int64_t num_prompt_tokens,
                                 int64_t max_model_len);

// The prompt is looked at and nothing is generated.
void keep_prompt_only(SamplingParams* params);

// Hash of every value: part of a journal key.
uint64_t fingerprint(const SamplingFields& fields);

}  // namespace mpinfer::job
