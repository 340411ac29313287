#include "apps/option_table.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "apps/option_values.h"
#include "lib/core/error.h"

namespace mpinfer::apps {
namespace {

using Values = std::vector<std::string>;
using Setter = std::function<void(Options&, const Values&)>;

constexpr int64_t kMost = INT64_MAX;
constexpr int64_t kMost32 = INT32_MAX;

Setter text(std::string Options::*member) {
  return [member](Options& o, const Values& v) { o.*member = v.back(); };
}
Setter choice(std::string Options::*member, Values choices) {
  return [member, choices](Options& o, const Values& v) {
    o.*member = parse_choice(v.back(), choices);
  };
}
Setter integer(int64_t Options::*member, int64_t least, int64_t most) {
  return [=](Options& o, const Values& v) { o.*member = parse_integer(v.back(), least, most); };
}
Setter small(int Options::*member, int64_t least, int64_t most) {
  return [=](Options& o, const Values& v) {
    o.*member = static_cast<int>(parse_integer(v.back(), least, most));
  };
}
Setter number(double Options::*member, double least, double most) {
  return [=](Options& o, const Values& v) { o.*member = parse_number(v.back(), least, most); };
}
Setter bytes(int64_t Options::*member) {
  return [=](Options& o, const Values& v) { o.*member = parse_bytes(v.back()); };
}
Setter on(bool Options::*member) {
  return [=](Options& o, const Values& v) { o.*member = parse_switch(v.back()); };
}
Setter sampling_number(std::optional<double> SamplingDefaults::*member, double least, double most) {
  return [=](Options& o, const Values& v) {
    o.sampling.*member = parse_number(v.back(), least, most);
  };
}
Setter sampling_integer(std::optional<int64_t> SamplingDefaults::*member, int64_t least,
                        int64_t most) {
  return [=](Options& o, const Values& v) {
    o.sampling.*member = parse_integer(v.back(), least, most);
  };
}
// 1,2,3 as one value or as several.
std::vector<int32_t> integers(const Values& values, int64_t least, int64_t most) {
  return parse_integers(fmt::format("{}", fmt::join(values, ",")), least, most);
}
// N, or P% of the rows.
Setter count_or_share(std::string Options::*member) {
  return [member](Options& o, const Values& v) {
    const std::string& value = v.back();
    if (!value.empty() && value.back() == '%') {
      parse_number(value.substr(0, value.size() - 1), 0, 100);
    } else {
      parse_integer(value, 0, kMost);
    }
    o.*member = value;
  };
}

std::vector<OptionSpec> make_table() {
  const std::string files = "Model, input, output";
  const std::string layout = "Layout";
  const std::string engine = "Engine";
  const std::string rows = "Rows";
  const std::string sampling = "Sampling, for rows that do not say";
  const std::string output = "Output and report";
  std::vector<OptionSpec> table;
  const auto add = [&table](const std::string& group, const std::string& name,
                            const std::string& aliases, const std::string& value,
                            const std::string& help, Setter set, bool list = false) {
    table.push_back({name, aliases, value, group, help, list, std::move(set)});
  };

  add(files, "model", "", "DIR",
      "Hugging Face checkpoint directory, or ORG/NAME in the local hub cache",
      text(&Options::model));
  add(files, "tokenizer", "", "DIR", "directory of tokenizer.json (default: the model's)",
      text(&Options::tokenizer));
  add(files, "load-format", "", "auto|dummy",
      "dummy: config.json only, weights drawn from the seed",
      choice(&Options::load_format, {"auto", "dummy"}));
  add(
      files, "input", "-i", "FILE...",
      "JSONL files, also .gz and .zst, read as one in the order given; - is stdin",
      [](Options& o, const Values& v) { o.input = v; }, true);
  add(files, "output", "-o", "FILE|-",
      "ordered JSONL; run directory FILE.run beside it; - is stdout", text(&Options::output));
  add(files, "run-dir", "", "DIR", "run directory (default: OUT.run)", text(&Options::run_dir));
  add(files, "config", "-c", "FILE", "TOML file, flat keys named like the long flags",
      text(&Options::config_file));
  add(files, "prompt", "", "TEXT", "one row without a file, answer on stdout",
      [](Options& o, const Values& v) { o.prompt = v.back(); });
  add(files, "overwrite", "", "", "replace OUT and its run directory", on(&Options::overwrite));
  add(files, "resume", "", "auto|never|require",
      "go on with the run in the run directory (default: auto, if there is one)",
      choice(&Options::resume, {"auto", "never", "require"}));
  add(files, "shard", "", "i/n", "this job is shard i (from 0) of n; merge writes OUT",
      [](Options& o, const Values& v) {
        const size_t slash = v.back().find('/');
        if (slash == std::string::npos) {
          throw Error(ExitCode::kUsage, fmt::format("{}: give i/n, such as 3/16", v.back()));
        }
        o.num_shards = static_cast<int>(parse_integer(v.back().substr(slash + 1), 1, 1 << 20));
        o.shard = static_cast<int>(parse_integer(v.back().substr(0, slash), 0, o.num_shards - 1));
      });
  add(files, "partial", "", "", "the rows there are, into OUT.partial; a run may be under way",
      on(&Options::partial));
  add(files, "json", "", "", "one JSON object", on(&Options::json));
  add(files, "exit-code", "", "", "end with the run's exit code; 1: it is under way",
      on(&Options::exit_code));
  add(files, "retry-errors", "", "", "run the rows again that failed", on(&Options::retry_errors));

  add(layout, "tp", "--tensor-parallel-size", "T", "tensor-parallel ranks (-tp); default: planner",
      small(&Options::tp, 1, 4096));
  add(layout, "pp", "--pipeline-parallel-size", "P", "pipeline stages (-pp); default: planner",
      small(&Options::pp, 1, 4096));
  add(layout, "dp", "--data-parallel-size", "D", "replicas (-dp); default: planner",
      small(&Options::dp, 1, 1 << 20));
  add(layout, "ep", "--expert-parallel-size", "E",
      "ranks of a stage that experts are spread over: 1 (cut by tp), tp, or tp times a divisor of "
      "dp, whose replicas then run in lockstep; default: planner",
      small(&Options::ep, 1, 1 << 20));
  add(layout, "expert-placement", "", "FILE",
      "with ep above 1: experts go to ranks as FILE says, if it is there; the run's end writes it "
      "anew "
      "from the rows that chose each",
      text(&Options::expert_placement));
  add(layout, "enable-expert-parallel", "", "", "--ep of dp times tp",
      on(&Options::enable_expert_parallel));
  add(
      layout, "pp-layers", "", "a,b,...", "layers per stage (default: balanced)",
      [](Options& o, const Values& v) { o.pp_layers = integers(v, 1, 100000); }, true);
  add(layout, "partition", "", "balanced|contiguous|dynamic",
      "how rows are dealt to replicas (default: balanced)",
      choice(&Options::partition, {"balanced", "contiguous", "dynamic"}));
  add(layout, "backend", "", "auto|cpu|cuda", "auto: cuda where a device is seen",
      choice(&Options::backend, {"auto", "cpu", "cuda"}));

  add(engine, "dtype", "", "auto|bfloat16|float16|float32",
      "activations on CUDA; the CPU computes in float32",
      choice(&Options::dtype, {"auto", "bfloat16", "float16", "float32"}));
  add(engine, "max-model-len", "", "N",
      "prompt plus completion tokens of a row (default: the model's)",
      integer(&Options::max_model_len, 1, kMost32));
  add(engine, "max-num-seqs", "", "N",
      "most sequences at once in a replica (default: 4096 on GPUs, where memory decides; 256)",
      integer(&Options::max_num_seqs, 1, 1 << 20));
  add(engine, "max-num-batched-tokens", "", "N",
      "token rows of one step (default: 8192, CUDA 16384); over pp stages prompts take 1/pp of it",
      integer(&Options::max_num_batched_tokens, 1, 1 << 22));
  add(engine, "block-size", "", "N", "tokens of a KV block (default: 16, CUDA 32)",
      integer(&Options::block_size, 1, 1024));
  add(engine, "gpu-memory-utilization", "", "F",
      "share of the GPU's memory to plan with (default: 0.94)",
      number(&Options::gpu_memory_utilization, 0.01, 1.0));
  add(engine, "kv-cache-memory-bytes", "", "SIZE", "KV cache of a rank (default: by memory)",
      bytes(&Options::kv_cache_memory_bytes));
  add(engine, "enable-prefix-caching", "", "on|off",
      "share the KV of prompts that begin alike (default: on)",
      [](Options& o, const Values& v) { o.prefix_caching = parse_switch(v.back()); });
  add(engine, "deterministic", "", "",
      "CUDA: one kernel for rows of every batch, so that answers do not depend on dp, order or "
      "restarts; slower",
      on(&Options::deterministic));
  add(engine, "threads", "", "N", "CPU threads of a rank (default: its share of the node's cores)",
      small(&Options::threads, 1, 1024));
  add(engine, "simd", "", "TARGET", "SIMD target (default: the best that all ranks have)",
      text(&Options::simd));
  add(engine, "step-timeout", "", "TIME",
      "longest wait for a peer, such as 60s (default; 600s before the first step)",
      [](Options& o, const Values& v) { o.step_timeout = parse_seconds(v.back()); });
  add(engine, "stop-before", "", "TIME",
      "stop this long before the end of the Slurm job, such as 180s",
      [](Options& o, const Values& v) { o.stop_before = parse_seconds(v.back()); });
  add(engine, "seed", "", "N", "run seed (default: 0)",
      [](Options& o, const Values& v) { o.seed = parse_seed(v.back()); });

  add(rows, "field", "", "NAME",
      "member or dotted path that holds the prompt text (default: prompt)", text(&Options::field));
  add(rows, "row-params", "", "auto|nested|none",
      "which sampling fields of a row count (default: auto)",
      choice(&Options::row_params, {"auto", "nested", "none"}));
  add(rows, "apply-chat-template", "", "", "a prompt becomes a user's message of the chat template",
      on(&Options::apply_chat_template));
  add(rows, "system", "", "TEXT", "system message of chats that have none", text(&Options::system));
  add(rows, "chat-template", "", "FILE", "Jinja chat template (default: the model's)",
      text(&Options::chat_template));
  add(rows, "prompt-template", "", "FILE",
      "Jinja template over a row's own members that gives the prompt",
      text(&Options::prompt_template));
  add(rows, "served-model-name", "", "NAME",
      "refuse rows of the OpenAI form whose body.model is another",
      text(&Options::served_model_name));
  add(rows, "too-long", "", "error|truncate-left|truncate-right",
      "a prompt beyond the context (default: error)",
      choice(&Options::too_long, {"error", "truncate-left", "truncate-right"}));
  add(rows, "limit", "", "N", "only the first N rows", integer(&Options::limit, 0, kMost));
  add(rows, "skip", "", "N", "leave out the first N rows", integer(&Options::skip, 0, kMost));
  add(rows, "replica-sampling", "", "'r:key=value,...;...'",
      "sampling defaults by replica; not with dynamic", text(&Options::replica_sampling));
  add(rows, "max-errors", "", "N|P%", "stop admitting beyond this many failed rows",
      count_or_share(&Options::max_errors));
  add(rows, "errors-ok", "", "N|P%", "failed rows with which the exit code is still 0 (default: 0)",
      count_or_share(&Options::errors_ok));

  add(sampling, "temperature", "", "F", "0 is greedy, up to 2 (default: 1)",
      sampling_number(&SamplingDefaults::temperature, 0, 2));
  add(sampling, "top-p", "", "F", "smallest set of tokens with this probability, in (0, 1]",
      sampling_number(&SamplingDefaults::top_p, 1e-9, 1));
  add(sampling, "top-k", "", "N", "the N most likely tokens only; 0 or -1: off",
      sampling_integer(&SamplingDefaults::top_k, -1, kMost32));
  add(sampling, "min-p", "", "F",
      "least probability, as a share of the likeliest token's, in [0, 1]",
      sampling_number(&SamplingDefaults::min_p, 0, 1));
  add(sampling, "n", "", "N", "samples of a row, up to 1024; above 1 not greedy (default: 1)",
      sampling_integer(&SamplingDefaults::n, 1, 1024));
  add(sampling, "logprobs", "", "K",
      "log-probabilities of the drawn tokens and of the K most likely, up to 20; 0: drawn alone",
      sampling_integer(&SamplingDefaults::logprobs, 0, 20));
  add(sampling, "prompt-logprobs", "", "K", "likewise of the prompt's tokens",
      sampling_integer(&SamplingDefaults::prompt_logprobs, 0, 20));
  add(sampling, "max-tokens", "", "N",
      "completion tokens of a row (default: the rest of the context)",
      sampling_integer(&SamplingDefaults::max_tokens, 1, kMost32));
  add(sampling, "min-tokens", "", "N", "no end before this many completion tokens",
      sampling_integer(&SamplingDefaults::min_tokens, 0, kMost32));
  add(
      sampling, "stop", "", "TEXT...", "end a completion where one of these appears",
      [](Options& o, const Values& v) { o.sampling.stop = v; }, true);
  add(
      sampling, "stop-token-ids", "", "a,b,...", "token ids that end a completion, beside EOS",
      [](Options& o, const Values& v) { o.sampling.stop_token_ids = integers(v, 0, kMost32); },
      true);
  add(sampling, "ignore-eos", "", "", "go on past the end-of-text token",
      [](Options& o, const Values& v) { o.sampling.ignore_eos = parse_switch(v.back()); });
  add(sampling, "repetition-penalty", "", "F", "over prompt and output, > 0; 1: off",
      sampling_number(&SamplingDefaults::repetition_penalty, 1e-6, 1e6));
  add(sampling, "frequency-penalty", "", "F", "over the output, by count, in [-2, 2]",
      sampling_number(&SamplingDefaults::frequency_penalty, -2, 2));
  add(sampling, "presence-penalty", "", "F", "over the output, once, in [-2, 2]",
      sampling_number(&SamplingDefaults::presence_penalty, -2, 2));
  add(sampling, "generation-config", "", "auto|none|FILE",
      "where defaults come from (default: auto, the model's)", text(&Options::generation_config));

  add(output, "return-token-ids", "", "", "add output_token_ids to every line",
      on(&Options::return_token_ids));
  add(output, "output-format", "", "auto|flat|openai",
      "openai: lines of the OpenAI batch API; auto: for rows of that form (default: auto)",
      choice(&Options::output_format, {"auto", "flat", "openai"}));
  add(output, "output-field", "", "NAME", "member that takes the answer's text (default: output)",
      text(&Options::output_field));
  add(output, "samples", "", "list|rows",
      "n samples as lists, or as a line each with its number in sample (default: list)",
      choice(&Options::samples, {"list", "rows"}));
  add(output, "errors", "", "inline|separate",
      "separate: error rows go to OUT.errors instead of OUT (default: inline)",
      choice(&Options::errors, {"inline", "separate"}));
  add(output, "progress", "", "auto|bar|plain|none", "progress line on stderr",
      choice(&Options::progress, {"auto", "bar", "plain", "none"}));
  add(output, "log-level", "", "LEVEL", "trace, debug, info (default), warning, error or off",
      choice(&Options::log_level, {"trace", "debug", "info", "warning", "error", "off"}));
  add(output, "log-format", "", "text|json", "json: one object a line",
      choice(&Options::log_format, {"text", "json"}));
  add(output, "report", "", "FILE",
      "totals and a record of every rank (default: OUT.run/report.json)", text(&Options::report));

  add(layout, "gpus", "", "N", "total GPUs to plan for", small(&Options::plan_gpus, 1, 1 << 20));
  add(layout, "nodes", "", "K", "nodes they are spread over",
      small(&Options::plan_nodes, 1, 1 << 20));
  add(layout, "gpu-memory", "", "SIZE", "memory of one GPU, such as 80GiB",
      bytes(&Options::plan_gpu_memory));
  add(files, "decode", "", "", "token ids in, text out", on(&Options::decode));
  return table;
}

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

const std::vector<OptionSpec>& option_table() {
  static const std::vector<OptionSpec> table = make_table();
  return table;
}

std::vector<std::string> options_of(Command command) {
  static const std::vector<std::string> plan_only = {"gpus", "nodes", "gpu-memory"};
  static const std::vector<std::string> tokenize = {
      "model",     "tokenizer",     "input",           "output",
      "config",    "field",         "limit",           "skip",
      "overwrite", "log-level",     "decode",          "apply-chat-template",
      "system",    "chat-template", "prompt-template", "served-model-name"};
  static const std::vector<std::string> not_plan = {
      "output", "run-dir",      "prompt",        "overwrite",    "return-token-ids", "progress",
      "report", "load-format",  "output-format", "output-field", "samples",          "errors",
      "resume", "retry-errors", "shard",         "stop-before"};
  static const std::vector<std::string> merge = {"output", "run-dir", "partial", "log-level"};
  static const std::vector<std::string> status = {"output", "run-dir", "shard", "json",
                                                  "exit-code"};
  static const std::vector<std::string> not_run = {"decode", "partial", "json", "exit-code"};
  const auto in = [](const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  std::vector<std::string> names;
  for (const OptionSpec& spec : option_table()) {
    bool takes = !in(plan_only, spec.name) && !in(not_run, spec.name);
    if (command == Command::kMerge) takes = in(merge, spec.name);
    if (command == Command::kStatus) takes = in(status, spec.name);
    if (command == Command::kTokenize) takes = in(tokenize, spec.name);
    if (command == Command::kPlan)
      takes = (takes && !in(not_plan, spec.name)) || in(plan_only, spec.name);
    if (command == Command::kCheck) takes = takes && !in(not_plan, spec.name);
    if (takes) names.push_back(spec.name);
  }
  return names;
}

std::string nearest(const std::string& name, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(3, name.size() / 2);
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(name, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

}  // namespace mpinfer::apps
