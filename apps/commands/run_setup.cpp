#include "apps/commands/run_setup.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/commands/planning.h"
#include "lib/backend/cpu_backend.h"
#include "lib/backend/cuda_backend.h"
#include "lib/comm/affinity.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/file.h"
#include "lib/io/index.h"
#include "lib/io/ordered_writer.h"

namespace mpinfer::apps {
namespace {

bool is_regular_or_new(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) != 0 || S_ISREG(status.st_mode);
}

// The best target that every rank has.
std::string common_simd(const Options& options, const comm::HostComm& world) {
  if (!options.simd.empty()) return options.simd;
  const nlohmann::json mine = backend::simd_targets();
  std::vector<std::vector<std::string>> lists;
  for (const std::string& bytes : world.all_gather(mine.dump())) {
    lists.push_back(nlohmann::json::parse(bytes).get<std::vector<std::string>>());
  }
  for (const std::string& target : lists.front()) {
    const bool everywhere = std::all_of(lists.begin(), lists.end(), [&](const auto& list) {
      return std::find(list.begin(), list.end(), target) != list.end();
    });
    if (everywhere) return target;
  }
  throw Error(ExitCode::kUsage, "the ranks' processors have no SIMD target in common");
}

void require_devices(const comm::HostComm& world, const comm::HostComm& host, int devices) {
  const bool short_here = devices < host.size();
  const int64_t total = world.all_reduce_sum(host.rank() == 0 ? devices : 0);
  if (world.all_reduce_max(short_here ? 1 : 0) == 0) return;
  throw Error(ExitCode::kUsage,
              fmt::format("{} ranks for {} CUDA devices{}: use -n {} (one rank a device), or "
                          "--backend cpu",
                          world.size(), total,
                          short_here ? fmt::format(" ({} has {} for {} ranks)", comm::host_name(),
                                                   devices, host.size())
                                     : "",
                          total));
}

std::string binary_hash() {
  const std::string bytes = io::read_whole_file("/proc/self/exe", int64_t{4} << 30);
  return fmt::format("{:016x}", io::hash_of(bytes));
}

job::SamplingFields flag_fields(const SamplingDefaults& flags) {
  job::SamplingFields fields;
  fields.temperature = flags.temperature;
  fields.top_p = flags.top_p;
  fields.min_p = flags.min_p;
  fields.repetition_penalty = flags.repetition_penalty;
  fields.frequency_penalty = flags.frequency_penalty;
  fields.presence_penalty = flags.presence_penalty;
  fields.top_k = flags.top_k;
  fields.max_tokens = flags.max_tokens;
  fields.min_tokens = flags.min_tokens;
  fields.n = flags.n;
  fields.logprobs = flags.logprobs;
  fields.prompt_logprobs = flags.prompt_logprobs;
  fields.ignore_eos = flags.ignore_eos;
  if (!flags.stop.empty()) fields.stop = flags.stop;
  if (!flags.stop_token_ids.empty()) fields.stop_token_ids = flags.stop_token_ids;
  return fields;
}

void check_flag(const char* name, const job::FieldValue& value, int64_t vocab_size) {
  job::SamplingFields ignored;
  if (const auto error = job::set_field(name, value, vocab_size, &ignored)) {
    std::string flag = name;
    std::replace(flag.begin(), flag.end(), '_', '-');
    throw Error(ExitCode::kUsage, fmt::format("--{}: {}", flag, error->message));
  }
}

template <class T>
void check_flag(const char* name, const std::optional<T>& value, int64_t vocab_size) {
  if (value) check_flag(name, job::FieldValue(*value), vocab_size);
}

void check_flags(const SamplingDefaults& flags, int64_t vocab_size) {
  check_flag("temperature", flags.temperature, vocab_size);
  check_flag("top_p", flags.top_p, vocab_size);
  check_flag("min_p", flags.min_p, vocab_size);
  check_flag("repetition_penalty", flags.repetition_penalty, vocab_size);
  check_flag("frequency_penalty", flags.frequency_penalty, vocab_size);
  check_flag("presence_penalty", flags.presence_penalty, vocab_size);
  check_flag("top_k", flags.top_k, vocab_size);
  check_flag("max_tokens", flags.max_tokens, vocab_size);
  check_flag("min_tokens", flags.min_tokens, vocab_size);
  job::ArrayValue stop;
  stop.size = static_cast<int64_t>(flags.stop.size());
  stop.strings = flags.stop;
  check_flag("stop", job::FieldValue(stop), vocab_size);
  job::ArrayValue ids;
  ids.size = static_cast<int64_t>(flags.stop_token_ids.size());
  ids.integers.assign(flags.stop_token_ids.begin(), flags.stop_token_ids.end());
  check_flag("stop_token_ids", job::FieldValue(ids), vocab_size);
}

// One word of a command line, as a shell wants it.
std::string quoted(const std::string& word) {
  const std::string plain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=:,@%+";
  if (!word.empty() && word.find_first_not_of(plain) == std::string::npos) return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string overwrite_command(const Options& options) {
  std::string command = "mpinfer";
  for (const std::string& argument : options.arguments) {
    command += " " + printable(quoted(argument), 4096);
  }
  return options.overwrite ? command : command + " --overwrite";
}

// A directory is cut into one number of shards, or none.
void refuse_other_shards(const Options& options, const std::string& run_dir) {
  if (options.num_shards == 1) {
    const auto shards = io::list_directory(run_dir, "shard-");
    if (shards.empty()) return;
    throw Error(ExitCode::kUsage,
                fmt::format("run directory {}: holds {}; give --shard, write their rows with "
                            "mpinfer merge, or give another output or remove {}",
                            run_dir, shards.front(), run_dir));
  }
  const std::string parent = io::directory_of(run_dir);
  const std::string ending = fmt::format("-of-{}", options.num_shards);
  for (const std::string& name : io::list_directory(parent, "shard-")) {
    if (name.ends_with(ending) || options.overwrite) continue;
    throw Error(ExitCode::kUsage,
                fmt::format("--shard {}/{}: {} holds {}; every shard is cut alike, and a change "
                            "needs another output or {} removed",
                            options.shard, options.num_shards, parent, name, parent));
  }
  if (std::filesystem::exists(parent + "/manifest.json")) {
    throw Error(ExitCode::kUsage, fmt::format("--shard {}/{}: {} holds a run without shards",
                                              options.shard, options.num_shards, parent));
  }
}

}  // namespace

std::string run_directory(const Options& options) {
  std::string directory = options.run_dir;
  if (directory.empty()) {
    if (options.output.empty() || options.output == "-") return "";
    if (!is_regular_or_new(options.output)) return "";
    directory = options.output + ".run";
  }
  if (options.num_shards == 1) return directory;
  return fmt::format("{}/shard-{}-of-{}", directory, options.shard, options.num_shards);
}

std::unique_ptr<io::RunRecord> open_run_record(const Options& options) {
  const std::string run_dir = run_directory(options);
  // --overwrite is spent once a job: a requeued one goes on.
  const bool overwrite = options.overwrite && options.job.restart_count == 0;
  if (!options.output.empty()) {
    io::require_writable_output(options.output, options.input, overwrite || !run_dir.empty());
  }
  if (run_dir.empty()) {
    if (options.num_shards > 1) {
      throw Error(ExitCode::kUsage, "--shard: give -o FILE or --run-dir DIR, where shards meet");
    }
    return nullptr;
  }
  const io::ResumePolicy policy{.mode = io::resume_mode(options.resume),
                                .overwrite = overwrite,
                                .retry_errors = options.retry_errors,
                                .overwrite_command = overwrite_command(options)};
  const io::LockOptions lock{.job = options.job.id, .restart_count = options.job.restart_count};
  refuse_other_shards(options, run_dir);
  // merge writes OUT, not a shard.
  return std::make_unique<io::RunRecord>(run_dir, options.num_shards > 1 ? "" : options.output,
                                         policy, lock);
}

Device open_device(const Options& options, const comm::HostComm& world) {
  Device device;
  const comm::HostComm host = world.split_host();
  device.num_hosts = static_cast<int>(world.all_reduce_sum(host.rank() == 0 ? 1 : 0));
  const comm::CoreShare share = comm::take_core_share(host);
  device.threads = options.threads > 0 ? options.threads : share.num_cores;
  device.cores = share.description;
  const int devices = options.backend == "cpu" ? 0 : backend::cuda_device_count();
  device.cuda = options.backend != "cpu" && world.all_reduce_max(devices) > 0;
  if (options.backend == "cuda" && !device.cuda) {
    throw Error(ExitCode::kUsage, "--backend cuda: no rank sees a CUDA device; use --backend cpu");
  }
  if (options.backend == "auto" && !device.cuda && !backend::cuda_version().empty() &&
      world.rank() == 0) {
    spdlog::info("backend cpu: no rank sees a CUDA device");
  }
  int64_t memory = 0;
  if (device.cuda) {
    require_devices(world, host, devices);
    backend::CudaOptions cuda;
    cuda.device = host.rank();
    if (options.dtype == "float32") cuda.activation_dtype = DType::kF32;
    if (options.dtype == "float16") cuda.activation_dtype = DType::kF16;
    cuda.deterministic = options.deterministic;
    device.backend = backend::make_cuda_backend(cuda);
    // What the context, the backend's own workspaces and other processes hold is gone already.
    const backend::MemoryInfo info = device.backend->memory_info();
    memory = info.free_bytes - static_cast<int64_t>(static_cast<double>(info.total_bytes) *
                                                    (1.0 - options.gpu_memory_utilization));
  } else {
    device.simd = common_simd(options, world);
    device.backend =
        backend::make_cpu_backend({.threads = device.threads, .simd_target = device.simd});
    memory = available_host_memory() / host.size();
  }
  device.memory = world.all_reduce_min(memory);
  return device;
}

void require_model_everywhere(const Options& options, const comm::HostComm& world) {
  const bool here = std::filesystem::exists(options.model + "/config.json");
  // Without a model on rank 0 the reader says more.
  if (world.all_reduce_max(world.rank() == 0 && here ? 1 : 0) == 0) return;
  comm::require_equal(
      world, {{"model directory", fmt::format("{}{}", here ? "" : "nothing at ", options.model)}});
}

void require_same_everywhere(const comm::HostComm& world, const ModelIdentity& identity,
                             const std::string& simd) {
  comm::require_equal(world, {{"binary", binary_hash()},
                              {"model", fmt::format("{:016x}", identity.checkpoint)},
                              {"tokenizer", fmt::format("{:016x}", identity.tokenizer)},
                              {"simd", simd}});
}

std::string tokenizer_directory(const Options& options) {
  if (!options.tokenizer.empty()) return options.tokenizer;
  return std::filesystem::exists(options.model + "/tokenizer.json") ? options.model : "";
}

job::SamplingFields sampling_defaults(const Options& options, const model::ModelConfig& config) {
  check_flags(options.sampling, config.vocab_size);
  job::SamplingFields flags = flag_fields(options.sampling);
  std::string path = options.generation_config;
  if (path == "none") return flags;
  if (path == "auto") {
    path = options.model + "/generation_config.json";
    if (!std::filesystem::exists(path)) return flags;
  }
  return job::overlay(flags, job::from_generation_config(model::load_generation_defaults(path)));
}

planner::Plan plan_run(const Options& options, const model::ModelConfig& config,
                       const Device& device, const comm::HostComm& world,
                       const job::InputSummary& input) {
  planner::Hardware hardware;
  hardware.world = world.size();
  hardware.nodes = device.num_hosts;
  hardware.cuda = device.cuda;
  hardware.memory_per_rank = device.memory;
  planner::PlanRequest request = make_plan_request(options, config, device.cuda);
  if (input.num_rows > 0) {
    request.lengths.prompt = input.mean_prompt_tokens;
    request.lengths.completion = input.mean_completion_tokens;
    request.num_rows = input.num_rows;
  }
  return planner::choose_plan(config, hardware, request);
}

}  // namespace mpinfer::apps
