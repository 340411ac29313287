// Options: one validated value from flags, MPINFER_* variables, a TOML file and defaults, in that
// precedence. Environment variables are read here alone. Rank 0 resolves them; the others get its
// value by broadcast (serialise/deserialise).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace mpinfer::apps {

enum class Command : uint8_t { kRun, kPlan, kCheck, kTokenize, kMerge, kStatus };

// Sampling defaults for rows that do not say; empty: generation_config, else neutral.
struct SamplingDefaults {
  std::optional<double> temperature, top_p, min_p, repetition_penalty, frequency_penalty,
      presence_penalty;
  std::optional<int64_t> top_k, max_tokens, min_tokens, n, logprobs, prompt_logprobs;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::optional<bool> ignore_eos;
};

struct Options {
  Command command = Command::kRun;
  std::string model, tokenizer, load_format = "auto";
  std::vector<std::string> input;
  std::string output, run_dir, config_file;
  int tp = 0, pp = 0, dp = 0, ep = 0;  // 0: planner
  std::string expert_placement;
  bool enable_expert_parallel = false;  // ep = dp * tp
  std::vector<int32_t> pp_layers;
  std::string backend = "auto", dtype = "auto";
  int64_t max_model_len = 0, max_num_seqs = 0, max_num_batched_tokens = 0,
          block_size = 0;  // 0: default
  double gpu_memory_utilization = 0.94;
  int64_t kv_cache_memory_bytes = 0;
  bool prefix_caching = true;
  bool deterministic = false;
  int threads = 0;  // 0: this rank's share
  std::string simd;
  std::string partition = "balanced";
  std::string replica_sampling;
  int64_t limit = -1, skip = 0;
  uint64_t seed = 0;
  SamplingDefaults sampling;
  std::string generation_config = "auto";
  std::string field = "prompt", row_params = "auto";
  std::string system, chat_template, prompt_template, served_model_name;
  bool apply_chat_template = false;
  std::optional<std::string> prompt;  // --prompt TEXT
  bool return_token_ids = false;
  std::string output_format = "auto", output_field = "output", samples = "list", errors = "inline";
  std::string too_long = "error";
  bool overwrite = false;
  std::string resume = "auto";
  bool retry_errors = false;
  std::string errors_ok = "0", max_errors;
  double step_timeout = 60.0;
  double stop_before = 0.0;  // seconds before the job's end; 0: not asked for
  int shard = 0, num_shards = 1;
  // merge, status
  bool partial = false, json = false, exit_code = false;
  std::string progress = "auto", log_level = "info", log_format = "text", report;
  // plan
  int plan_gpus = 0, plan_nodes = 1;
  int64_t plan_gpu_memory = 0;
  // tokenize
  bool decode = false;

  // What a job manager says of this job; rank 0 reads it.
  struct Job {
    std::string id;             // SLURM_JOB_ID
    int64_t restart_count = 0;  // SLURM_RESTART_COUNT
    int64_t end_time = 0;       // SLURM_JOB_END_TIME, seconds since 1970; 0: not known
  };
  Job job;
  std::vector<std::string> arguments;  // as given, without the program's name; rank 0

  // Long name → the values as given, and where they came from ("--tp", "MPINFER_TP", "run.toml:
  // tp").
  std::map<std::string, std::vector<std::string>> given;
  std::map<std::string, std::string> origin;
};

// Parses argv; help and version come back as text to print instead. Throws Error(kUsage) naming the
// option, its origin, the value and what would be right.
struct Parsed {
  Options options;
  std::string text;  // not empty: print this and end with 0
};
Parsed parse_options(int argc, const char* const* argv);

// What was given travels; the other side resolves it the same way.
std::string serialise(const Options& options);
Options deserialise(const std::string& bytes);

}  // namespace mpinfer::apps
