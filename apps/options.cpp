#include "apps/options.h"

#include <unistd.h>

#include <toml++/toml.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "apps/job_environment.h"
#include "apps/model_directory.h"
#include "apps/option_table.h"
#include "lib/backend/cuda_backend.h"
#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::apps {
namespace {

using Values = std::vector<std::string>;

constexpr std::pair<Command, const char*> kCommands[] = {
    {Command::kRun, "run"},           {Command::kPlan, "plan"},   {Command::kCheck, "check"},
    {Command::kTokenize, "tokenize"}, {Command::kMerge, "merge"}, {Command::kStatus, "status"},
};

const char* description_of(Command command) {
  switch (command) {
    case Command::kRun:
      return "Generate an answer for every input row, in input order";
    case Command::kPlan:
      return "Layouts, memory per rank and KV left for a model; reads no weights";
    case Command::kCheck:
      return "Check every row, the model's headers and the memory plan; reads no weights";
    case Command::kTokenize:
      return "Rows in, rows with prompt_token_ids out; needs the tokenizer alone";
    case Command::kMerge:
      return "Write OUT from the shards' journals";
    case Command::kStatus:
      return "How far the run of OUT is, and how it ended";
  }
  return "";
}

constexpr const char* kFooter = R"(
Examples
  mpirun -n 4 mpinfer run --model DIR -i prompts.jsonl -o answers.jsonl
  mpirun -n 8 mpinfer run --model DIR -i prompts.jsonl -o answers.jsonl -dp 2 -tp 4
  mpinfer run --model DIR --prompt "Once upon a time" --max-tokens 40
  mpinfer plan --model DIR --gpus 8 --gpu-memory 80GiB

Every long option may be set by MPINFER_<NAME> (MPINFER_MAX_TOKENS=64) or in the TOML file of -c;
a flag beats the variable, the variable beats the file.

Exit codes
  0 complete, 2 usage or layout, 3 complete with failed rows, 4 input unreadable, 5 model refused,
  6 memory or disk ran out, 7 peer or device failure, 70 internal bug, 75 stopped and resumable)";

std::string variable_of(const std::string& name) {
  std::string variable = "MPINFER_" + name;
  for (char& c : variable)
    c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return variable;
}

std::string did_you_mean(const std::string& name, const Values& candidates) {
  const std::string near = nearest(name, candidates);
  return near.empty() ? "" : fmt::format("; did you mean {}?", near);
}

// ---- TOML

Values values_of(const toml::node& node, const std::string& where) {
  if (const auto* array = node.as_array()) {
    Values values;
    for (const auto& element : *array) {
      const Values one = values_of(element, where);
      values.insert(values.end(), one.begin(), one.end());
    }
    return values;
  }
  if (const auto v = node.value_exact<std::string>()) return {*v};
  if (const auto v = node.value_exact<int64_t>()) return {fmt::format("{}", *v)};
  if (const auto v = node.value_exact<double>()) return {fmt::format("{}", *v)};
  if (const auto v = node.value_exact<bool>()) return {*v ? "true" : "false"};
  throw Error(ExitCode::kUsage,
              fmt::format("{}: must be a string, number, boolean or list of these", where));
}

void read_file(const std::string& path, const Values& known, Options& options) {
  toml::table table;
  try {
    table = toml::parse_file(path);
  } catch (const toml::parse_error& error) {
    throw Error(ExitCode::kUsage,
                fmt::format("--config {}: line {}: {}", path, error.source().begin.line,
                            printable(std::string(error.description()))));
  }
  Values all;
  for (const OptionSpec& spec : option_table()) all.push_back(spec.name);
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    const std::string where = fmt::format("{}: {}", path, name);
    if (std::find(all.begin(), all.end(), name) == all.end() || name == "config") {
      throw Error(ExitCode::kUsage,
                  fmt::format("{}: unknown key{}", where, did_you_mean(name, all)));
    }
    // One file may serve run, check and plan: a key of another command is left alone.
    if (std::find(known.begin(), known.end(), name) == known.end() || options.given.contains(name))
      continue;
    options.given[name] = values_of(node, where);
    options.origin[name] = where;
  }
}

// ---- environment

void read_environment(const Values& known, Options& options) {
  std::map<std::string, std::string> by_variable;
  Values variables;
  for (const OptionSpec& spec : option_table()) {
    by_variable[variable_of(spec.name)] = spec.name;
    variables.push_back(variable_of(spec.name));
  }
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (std::strncmp(*entry, "MPINFER_", 8) != 0) continue;
    const std::string both = *entry;
    const size_t equals = both.find('=');
    const std::string variable = both.substr(0, equals);
    if (variable.starts_with("MPINFER_DP_")) continue;  // read_dp_variables()
    const auto found = by_variable.find(variable);
    if (found == by_variable.end()) {
      throw Error(ExitCode::kUsage, fmt::format("{}: unknown variable{}", printable(variable),
                                                did_you_mean(variable, variables)));
    }
    const std::string& name = found->second;
    if (std::find(known.begin(), known.end(), name) == known.end() || options.given.contains(name))
      continue;
    options.given[name] = {both.substr(equals + 1)};
    options.origin[name] = variable;
  }
}

// ---- resolving

void resolve(Options& options) {
  for (const OptionSpec& spec : option_table()) {
    const auto found = options.given.find(spec.name);
    if (found == options.given.end()) continue;
    const Values& values = found->second;
    try {
      if (values.empty() || (!spec.list && values.size() > 1)) {
        throw Error(ExitCode::kUsage, fmt::format("{} values; takes {}", values.size(),
                                                  spec.list ? "one or more" : "one"));
      }
      spec.set(options, values);
    } catch (const Error& error) {
      throw Error(ExitCode::kUsage, fmt::format("{}: {}", options.origin[spec.name], error.what()));
    }
  }
}

// The hub cache as the hub's own tools look for it.
std::string hub_cache() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (auto cache = variable("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (auto home = variable("HF_HOME"); !home.empty()) return home + "/hub";
  if (auto cache = variable("XDG_CACHE_HOME"); !cache.empty()) return cache + "/huggingface/hub";
  return variable("HOME") + "/.cache/huggingface/hub";
}

// Directories take the place of hub names, so that every rank gets a path.
void find_models(Options& options) {
  for (const auto& [name, member] :
       {std::pair("model", &Options::model), std::pair("tokenizer", &Options::tokenizer)}) {
    if ((options.*member).empty()) continue;
    options.*member = find_model(options.*member, hub_cache());
    options.given[name] = {options.*member};
  }
}

void require(bool condition, const std::string& what) {
  if (!condition) throw Error(ExitCode::kUsage, what);
}

void validate(const Options& o) {
  if (o.command == Command::kMerge || o.command == Command::kStatus) {
    require(!o.output.empty(), "OUT is missing: the output file of the run");
    return;
  }
  require(!o.model.empty() || (o.command == Command::kTokenize && !o.tokenizer.empty()),
          "--model DIR is missing: the directory of a Hugging Face checkpoint");
  if (o.command == Command::kRun) {
    require(o.prompt.has_value() || !o.input.empty(),
            "-i FILE is missing: the JSONL file of prompts (or --prompt TEXT)");
    require(!o.prompt.has_value() || o.input.empty(), "--prompt and -i exclude each other");
    require(o.prompt.has_value() || !o.output.empty(),
            "-o FILE is missing: where the answers go (- is stdout)");
  }
  require(o.samples == "list" || o.output_format != "openai",
          "--samples rows is of the flat format: an OpenAI line holds all choices");
  require(o.errors == "inline" || (o.output != "-" && !o.output.empty()),
          "--errors separate needs -o FILE: the error rows go to FILE.errors");
  if (o.command == Command::kCheck || o.command == Command::kTokenize) {
    require(!o.input.empty(), "-i FILE is missing: the JSONL file of rows");
    require(o.command != Command::kCheck ||
                std::find(o.input.begin(), o.input.end(), "-") == o.input.end(),
            "-i -: check reads the rows twice; write them to a file first");
  }
  if (o.command == Command::kTokenize)
    require(!o.output.empty(), "-o FILE is missing (- is stdout)");
  require(o.replica_sampling.empty() || o.partition != "dynamic",
          "--replica-sampling needs to know each row's replica beforehand: use --partition "
          "balanced or contiguous");
  require(o.max_num_seqs == 0 || o.max_num_batched_tokens == 0 ||
              o.max_num_batched_tokens >= o.max_num_seqs,
          fmt::format("--max-num-batched-tokens {} is below --max-num-seqs {}: a step must hold a "
                      "row of every sequence",
                      o.max_num_batched_tokens, o.max_num_seqs));
}

std::string version_text() {
  const std::string cuda = backend::cuda_version();
  return fmt::format("mpinfer {}, backends: cpu{}", MPINFER_VERSION,
                     cuda.empty() ? ""
                                  : fmt::format(", cuda {} ({} devices here)", cuda,
                                                backend::cuda_device_count()));
}

struct Parser {
  CLI::App app{"mpinfer: offline batch LLM inference over MPI ranks", "mpinfer"};
  std::map<Command, CLI::App*> commands;
  std::map<Command, std::map<std::string, Values>> values;  // option → what the flag gave
  std::map<Command, std::map<std::string, CLI::Option*>> flags;

  Parser() {
    app.set_version_flag("--version", version_text());
    app.set_help_all_flag("--help-all", "Help of every command");
    app.require_subcommand(1);
    for (const auto& [command, name] : kCommands) add_command(command, name);
    app.footer(kFooter);  // after the commands, which would inherit it
  }

  void add_command(Command command, const char* name) {
    CLI::App* sub = app.add_subcommand(name, description_of(command));
    sub->set_help_all_flag();
    commands[command] = sub;
    const Values taken = options_of(command);
    for (const OptionSpec& spec : option_table()) {
      if (std::find(taken.begin(), taken.end(), spec.name) == taken.end()) continue;
      std::string names = "--" + spec.name;
      if (!spec.aliases.empty()) names.insert(0, spec.aliases + ",");
      if (spec.name == "output" && (command == Command::kMerge || command == Command::kStatus)) {
        names += ",out";  // the place behind the command
      }
      Values& target = values[command][spec.name];
      CLI::Option* option = nullptr;
      if (spec.value.empty()) {
        option = sub->add_flag(names, spec.help);
      } else {
        option = sub->add_option(names, target, spec.help)->type_name(spec.value);
        if (spec.list) {
          option->expected(1, 100000);
        } else {
          option->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
        }
      }
      option->group(spec.group);
      flags[command][spec.name] = option;
    }
  }
};

// -tp 2, -tp=2 and their like become long flags: CLI11 knows one-letter short names only.
Values arguments(int argc, const char* const* argv) {
  Values out;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    for (const char* name : {"-tp", "-pp", "-dp"}) {
      if (argument == name || argument.rfind(std::string(name) + "=", 0) == 0)
        argument.insert(0, "-");
    }
    out.push_back(std::move(argument));
  }
  return out;
}

std::string usage_hint(const Values& args, const CLI::Error& error) {
  Values names, commands;
  for (const auto& [command, name] : kCommands) commands.push_back(name);
  const std::string& first = args.front();
  if (first.rfind('-', 0) != 0 &&
      std::find(commands.begin(), commands.end(), first) == commands.end()) {
    return fmt::format("; \"{}\" is no command{}", printable(first), did_you_mean(first, commands));
  }
  for (const OptionSpec& spec : option_table()) names.push_back("--" + spec.name);
  for (const std::string& argument : args) {
    const std::string name = argument.substr(0, argument.find('='));
    if (name.rfind("--", 0) == 0 && std::string(error.what()).find(name) != std::string::npos &&
        std::find(names.begin(), names.end(), name) == names.end()) {
      return did_you_mean(name, names);
    }
  }
  return "";
}

}  // namespace

Parsed parse_options(int argc, const char* const* argv) {
  Parsed parsed;
  Parser parser;
  Values args = arguments(argc, argv);
  if (args.empty()) args.push_back("--help");
  Values reversed(args.rbegin(), args.rend());
  try {
    parser.app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    parsed.text = parser.app.help();
  } catch (const CLI::CallForAllHelp&) {
    parsed.text = parser.app.help("", CLI::AppFormatMode::All);
  } catch (const CLI::CallForVersion& version) {
    parsed.text = std::string(version.what()) + "\n";
  } catch (const CLI::ParseError& error) {
    throw Error(ExitCode::kUsage, fmt::format("{}{}; mpinfer --help lists what there is",
                                              printable(error.what()), usage_hint(args, error)));
  }
  if (!parsed.text.empty()) return parsed;

  Options& options = parsed.options;
  for (const auto& [command, sub] : parser.commands) {
    if (!sub->parsed()) continue;
    options.command = command;
    for (const auto& [name, option] : parser.flags[command]) {
      if (option->count() == 0) continue;
      const Values& values = parser.values[command][name];
      // A switch has results ("true", or what stood behind =) and no values.
      options.given[name] = values.empty() ? Values{option->results().back()} : values;
      options.origin[name] = "--" + name;
    }
  }
  const Values known = options_of(options.command);
  read_environment(known, options);
  if (const auto file = options.given.find("config"); file != options.given.end()) {
    read_file(file->second.back(), known, options);
  }
  resolve(options);
  validate(options);
  options.job = read_job();
  options.arguments.assign(argv + 1, argv + argc);
  find_models(options);
  return parsed;
}

std::string serialise(const Options& options) {
  // CBOR, not text: file names need not be UTF-8.
  const std::vector<uint8_t> bytes =
      nlohmann::json::to_cbor({{"command", static_cast<int>(options.command)},
                               {"arguments", options.arguments},
                               {"job_id", options.job.id},
                               {"job_restart_count", options.job.restart_count},
                               {"job_end_time", options.job.end_time},
                               {"given", options.given},
                               {"origin", options.origin}});
  return {bytes.begin(), bytes.end()};
}

Options deserialise(const std::string& bytes) {
  const auto json = nlohmann::json::from_cbor(bytes);
  Options options;
  options.command = static_cast<Command>(json.at("command").get<int>());
  options.arguments = json.at("arguments").get<std::vector<std::string>>();
  json.at("job_id").get_to(options.job.id);
  json.at("job_restart_count").get_to(options.job.restart_count);
  json.at("job_end_time").get_to(options.job.end_time);
  options.given = json.at("given").get<std::map<std::string, Values>>();
  options.origin = json.at("origin").get<std::map<std::string, std::string>>();
  resolve(options);
  return options;
}

}  // namespace mpinfer::apps
