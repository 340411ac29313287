#include "apps/commands/run_identity.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace mpinfer::apps {
namespace {

// Options that leave every answer as it is, or that a value below stands for.
const std::vector<std::string>& without_effect() {
  static const std::vector<std::string> names = {"model",
                                                 "tokenizer",
                                                 "input",
                                                 "output",
                                                 "run-dir",
                                                 "config",
                                                 "overwrite",
                                                 "resume",
                                                 "retry-errors",
                                                 "prompt",
                                                 "tp",
                                                 "pp",
                                                 "dp",
                                                 "pp-layers",
                                                 "partition",
                                                 "backend",
                                                 "dtype",
                                                 "ep",
                                                 "expert-placement",
                                                 "max-model-len",
                                                 "max-num-seqs",
                                                 "max-num-batched-tokens",
                                                 "block-size",
                                                 "gpu-memory-utilization",
                                                 "kv-cache-memory-bytes",
                                                 "threads",
                                                 "simd",
                                                 "step-timeout",
                                                 "stop-before",
                                                 "shard",
                                                 "seed",
                                                 "limit",
                                                 "max-errors",
                                                 "errors-ok",
                                                 "temperature",
                                                 "top-p",
                                                 "top-k",
                                                 "min-p",
                                                 "max-tokens",
                                                 "min-tokens",
                                                 "stop",
                                                 "stop-token-ids",
                                                 "ignore-eos",
                                                 "repetition-penalty",
                                                 "frequency-penalty",
                                                 "presence-penalty",
                                                 "generation-config",
                                                 "enable-prefix-caching",
                                                 "progress",
                                                 "log-level",
                                                 "log-format",
                                                 "report"};
  return names;
}

template <class T>
void add(std::map<std::string, std::string>* identity, const char* name,
         const std::optional<T>& value) {
  if (!value) return;
  if constexpr (std::is_same_v<T, std::vector<std::string>> ||
                std::is_same_v<T, std::vector<int32_t>>) {
    (*identity)[name] = fmt::format("{}", *value);
  } else {
    (*identity)[name] = fmt::format("{}", *value);
  }
}

void add_sampling(std::map<std::string, std::string>* identity, const job::SamplingFields& fields) {
  add(identity, "temperature", fields.temperature);
  add(identity, "top_p", fields.top_p);
  add(identity, "top_k", fields.top_k);
  add(identity, "min_p", fields.min_p);
  add(identity, "max_tokens", fields.max_tokens);
  add(identity, "min_tokens", fields.min_tokens);
  add(identity, "stop", fields.stop);
  add(identity, "stop_token_ids", fields.stop_token_ids);
  add(identity, "ignore_eos", fields.ignore_eos);
  add(identity, "repetition_penalty", fields.repetition_penalty);
  add(identity, "frequency_penalty", fields.frequency_penalty);
  add(identity, "presence_penalty", fields.presence_penalty);
}

}  // namespace

std::map<std::string, std::string> run_identity(const Options& options,
                                                const IdentityParts& parts) {
  std::map<std::string, std::string> identity = {
      {"model", fmt::format("{:016x}", parts.model.checkpoint)},
      {"tokenizer", fmt::format("{:016x}", parts.model.tokenizer)},
      {"seed", std::to_string(options.seed)},
      {"dtype", std::string(name_of(parts.device.backend->activation_dtype()))},
      {"simd", parts.device.simd},
      {"max-model-len", std::to_string(parts.plan.memory.max_model_len)},
      {"end-of-text", fmt::format("{}", fmt::join(parts.config.eos_token_ids, ","))}};
  add_sampling(&identity, parts.rows.defaults);
  // Behind the names above, so that one of those is the difference that is told.
  identity["what makes a row a prompt"] = fmt::format("{:016x}", job::fingerprint(parts.rows));
  identity["what a line looks like"] = fmt::format("{:016x}", job::fingerprint(parts.lines));
  for (const auto& [name, values] : options.given) {
    const auto& excluded = without_effect();
    if (std::find(excluded.begin(), excluded.end(), name) != excluded.end()) continue;
    identity["--" + name] = fmt::format("{}", fmt::join(values, " "));
  }
  // Rows that belong to a replica: the replicas must be the same ones.
  if (!options.replica_sampling.empty() || options.num_shards > 1) {
    identity["dp"] = std::to_string(parts.plan.layout.dp);
    identity["partition"] = options.partition;
  }
  return identity;
}

}  // namespace mpinfer::apps
