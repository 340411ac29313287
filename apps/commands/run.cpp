// mpinfer run: builds the objects of this rank in the order of the include rule and lets the
// session carry rows through them. Everything that can be refused is refused before weights are
// read.
#include <sys/resource.h>

#include <chrono>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <memory>

#include "apps/commands/commands.h"
#include "apps/commands/planning.h"
#include "apps/commands/row_setup.h"
#include "apps/commands/run_setup.h"
#include "lib/backend/workspace.h"
#include "lib/comm/mpi_communicator.h"
#include "lib/comm/nccl_communicator.h"
#include "lib/comm/watch.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/engine/engine.h"
#include "lib/io/progress.h"
#include "lib/job/report.h"
#include "lib/model/kv_cache.h"
#include "lib/model/lm_head.h"
#include "lib/model/loader.h"
#include "lib/model/transformer.h"
#include "lib/text/tokenizer.h"

namespace mpinfer::apps {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t peak_memory() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

// The parts of one rank of a replica with rows, in the order they are built.
class Replica {
 public:
  Replica(const Options& options, const model::ModelConfig& config, const planner::Plan& plan,
          const comm::Mesh& mesh, Device& device, comm::Watch& watch)
      : backend_(*device.backend) {
    const auto make = device.cuda ? comm::make_nccl_communicator : comm::make_mpi_communicator;
    tp_ = make(mesh.tp, backend_, watch, "tp");
    pp_ = make(mesh.pp, backend_, watch, "pp");
    const model::StageLayers stage = plan.stages[static_cast<size_t>(mesh.at.pp)];
    const model::ShardOf shard{stage, mesh.layout.pp, mesh.at.pp, mesh.layout.tp, mesh.at.tp};
    const auto format =
        options.load_format == "dummy" ? model::LoadFormat::kDummy : model::LoadFormat::kAuto;
    weights_ = std::make_unique<model::StageWeights>(model::load_weights(
        backend_, options.model, config, shard, format, options.seed, device.threads));
    const DType activation = backend_.activation_dtype();
    engine_options_.block_size =
        options.block_size > 0 ? static_cast<int32_t>(options.block_size) : (device.cuda ? 32 : 16);
    engine_options_.num_blocks = plan.memory.num_blocks;
    engine_options_.max_num_seqs = plan.memory.max_num_seqs;
    engine_options_.max_num_batched_tokens =
        static_cast<int32_t>(options.max_num_batched_tokens > 0 ? options.max_num_batched_tokens
                                                                : (device.cuda ? 16384 : 8192));
    engine_options_.max_model_len = checked_cast<int32_t>(plan.memory.max_model_len);
    engine_options_.seed = options.seed;
    engine_options_.max_logit_rows = max_logit_rows(device.cuda);
    cache_ = std::make_unique<model::KvCache>(backend_, config, stage, mesh.layout.tp,
                                              engine_options_.block_size, plan.memory.num_blocks,
                                              activation);
    const int64_t rows = engine_options_.max_num_batched_tokens;
    workspace_ = std::make_unique<backend::Workspace>(backend_.allocate(
        model::Transformer::workspace_bytes(config, mesh.layout.tp, rows, activation) +
        model::LmHead::workspace_bytes(config, mesh.layout.tp, engine_options_.max_logit_rows,
                                       activation)));
    transformer_ = std::make_unique<model::Transformer>(backend_, *tp_, config, *weights_, *cache_,
                                                        *workspace_, plan.memory.max_model_len);
    if (weights_->last) {
      lm_head_ = std::make_unique<model::LmHead>(backend_, *tp_, config, *weights_, *workspace_,
                                                 engine_options_.max_logit_rows);
    }
    engine_ = std::make_unique<engine::Engine>(
        engine_options_, engine::EngineParts{backend_, *transformer_, lm_head_.get(), config, *pp_,
                                             mesh.replica, watch});
  }

  engine::Engine& engine() { return *engine_; }

 private:
  backend::Backend& backend_;
  std::unique_ptr<comm::Communicator> tp_;
  std::unique_ptr<comm::Communicator> pp_;
  std::unique_ptr<model::StageWeights> weights_;
  engine::EngineOptions engine_options_;
  std::unique_ptr<model::KvCache> cache_;
  std::unique_ptr<backend::Workspace> workspace_;
  std::unique_ptr<model::Transformer> transformer_;
  std::unique_ptr<model::LmHead> lm_head_;
  std::unique_ptr<engine::Engine> engine_;
};

job::FormatOptions format_options(const Options& options) {
  job::FormatOptions format;
  format.token_ids = options.return_token_ids;
  if (options.prompt && options.output.empty()) {  // the text alone is printed
    format.format = job::OutputFormat::kFlat;
    return format;
  }
  format.format = job::output_format(options.output_format);
  format.output_field = options.output_field;
  format.line_a_sample = options.samples == "rows";
  format.separate_errors = options.errors == "separate";
  format.model_name = options.served_model_name;
  if (format.model_name.empty()) {
    const std::filesystem::path directory(options.model);
    format.model_name = (directory.has_filename() ? directory : directory.parent_path()).filename();
  }
  return format;
}

job::JobOptions job_options(const Options& options, const Device& device) {
  job::JobOptions job;
  job.input = options.input;
  job.prompt = options.prompt;
  job.output = options.output;
  job.run_dir = run_directory(options);
  job.skip = options.skip;
  job.limit = options.limit;
  job.partition = io::partition_policy(options.partition);
  job.format = format_options(options);
  if (job.format.separate_errors) job.errors_output = options.output + ".errors";
  job.progress = io::progress_mode(options.prompt ? "none" : options.progress);
  if (!options.max_errors.empty()) {
    job.max_errors = job::error_budget(options.max_errors, "--max-errors");
  }
  job.index_threads = device.threads;
  job.feeder_threads = device.threads > 2 ? 2 : 1;
  return job;
}

io::Manifest begin_manifest(const Options& options, const ModelIdentity& identity,
                            const Device& device) {
  io::Manifest manifest;
  manifest.tool_version = MPINFER_VERSION;
  for (const auto& [name, values] : options.given) {
    const auto origin = options.origin.find(name);
    std::string text = fmt::format("{}", fmt::join(values, " "));
    if (origin != options.origin.end()) text += fmt::format(" ({})", origin->second);
    manifest.configuration[name] = text;
  }
  manifest.identity = {{"model", fmt::format("{:016x}", identity.checkpoint)},
                       {"tokenizer", fmt::format("{:016x}", identity.tokenizer)},
                       {"seed", std::to_string(options.seed)},
                       {"dtype", std::string(name_of(device.backend->activation_dtype()))},
                       {"simd", device.simd}};
  return manifest;
}

uint64_t hash_of(const io::Manifest& manifest) {
  std::string text;
  for (const auto& [name, value] : manifest.identity) text += name + "=" + value + ";";
  return io::hash_of(text);
}

void print_start(const comm::HostComm& world, const comm::Mesh& mesh, const planner::Plan& plan,
                 const Device& device, const job::Session& session) {
  const model::StageLayers stage = plan.stages[static_cast<size_t>(mesh.at.pp)];
  const std::string mine = fmt::format(
      "rank {:>3}  {}  {}, {}  dp {} pp {} tp {}  layers {}–{}  {}", world.rank(),
      comm::host_name(), device.backend->description(), device.cores, mesh.at.dp, mesh.at.pp,
      mesh.at.tp, stage.begin, stage.end - 1,
      session.num_rows() > 0 ? fmt::format("{} rows", io::with_thousands(session.num_rows()))
                             : "no rows: loads nothing");
  const auto lines = world.gather(mine, 0);
  if (world.rank() != 0) return;
  constexpr size_t kMostLines = 64;
  for (size_t i = 0; i < lines.size() && i < kMostLines; ++i) spdlog::info("{}", lines[i]);
  if (lines.size() > kMostLines) spdlog::info("… and {} ranks more", lines.size() - kMostLines);
  spdlog::info("layout dp {} pp {} tp {}: {}", plan.layout.dp, plan.layout.pp, plan.layout.tp,
               plan.reason);
  spdlog::info("{}; max-model-len {}, {} sequences at once", plan.memory.sum,
               plan.memory.max_model_len, plan.memory.max_num_seqs);
  const job::InputSummary& input = session.input();
  if (input.num_without_max_tokens > 0 && input.num_rows > 0) {
    spdlog::info("{} rows have no max_tokens: up to {} tokens each unless a default says less",
                 io::with_thousands(input.num_without_max_tokens),
                 io::with_thousands(plan.memory.max_model_len));
  }
  if (!session.first_line().empty()) spdlog::info("first row: {}", printable(session.first_line()));
}

int exit_code_of(const Options& options, const job::RunReport& report) {
  const int64_t failed = job::totals_of(report).num_failed;
  const int64_t allowed =
      job::error_budget(options.errors_ok, "--errors-ok").rows_of(report.num_rows);
  return static_cast<int>(failed > allowed ? ExitCode::kFailedRows : ExitCode::kComplete);
}

// The records of all ranks and the totals; rank 0 writes and prints them.
int conclude(const Options& options, const comm::HostComm& world, const planner::Plan& plan,
             job::Session& session, const job::RankReport& mine,
             const std::map<std::string, double>& seconds, bool complete) {
  const auto records = world.gather(job::serialise(mine), 0);
  if (world.rank() != 0) return 0;
  job::RunReport report;
  report.tool_version = MPINFER_VERSION;
  report.layout = plan.layout;
  report.layout_reason = plan.reason;
  report.num_rows = session.input().num_rows;
  for (const std::string& record : records) {
    report.ranks.push_back(job::deserialise_rank_report(record));
  }
  report.seconds = seconds;
  report.output = options.output;
  report.run_dir = run_directory(options);
  report.exit_code =
      complete ? exit_code_of(options, report) : static_cast<int>(ExitCode::kFailedRows);
  std::string path = options.report;
  if (path.empty() && !report.run_dir.empty()) path = report.run_dir + "/report.json";
  if (!path.empty()) job::write_report(path, report);
  const job::ResultCounts totals = job::totals_of(report);
  session.close_manifest(complete ? "complete" : "stopped", report.exit_code,
                         complete ? "all rows done" : "more failed rows than --max-errors allows",
                         totals, seconds);
  if (!complete) {
    spdlog::error("stopped: {} rows failed, more than --max-errors {}; no output was written",
                  totals.num_failed, options.max_errors);
  }
  for (const std::string& line : job::summary_of(report)) spdlog::info("{}", line);
  return report.exit_code;
}

}  // namespace

int run_command(const Options& options, comm::HostComm world) {
  const auto start = Clock::now();
  if (world.rank() == 0) require_runnable(options);
  const model::ModelConfig config = model::load_model_config(options.model);
  const job::SamplingFields defaults = sampling_defaults(options, config);
  ModelIdentity identity;
  if (options.load_format != "dummy") {
    identity.checkpoint = model::check_checkpoint(options.model, config);
  }
  const std::string tokenizer_path = tokenizer_directory(options);
  std::unique_ptr<text::Tokenizer> tokenizer;
  if (!tokenizer_path.empty()) {
    tokenizer = text::Tokenizer::load(tokenizer_path);
    identity.tokenizer = tokenizer->fingerprint();
  }
  RowSetup row_setup(options, tokenizer_path);
  auto now = static_cast<int64_t>(std::time(nullptr));
  world.broadcast(&now, sizeof(now), 0);
  row_setup.set_now(now);
  Device device = open_device(options, world);
  require_same_everywhere(world, identity, device.simd);

  job::JobOptions job = job_options(options, device);
  job.manifest = begin_manifest(options, identity, device);
  job.format.created = now;
  job.identity = hash_of(job.manifest);
  const comm::HostComm everyone = world.duplicate();
  job::Session session(job, everyone, options.field, defaults.max_tokens.value_or(0));
  const planner::Plan plan = plan_run(options, config, device, everyone, session.input());
  const comm::Mesh mesh = comm::make_mesh(std::move(world), plan.layout);
  session.set_replica_sampling(
      job::parse_replica_sampling(options.replica_sampling, plan.layout.dp, config.vocab_size));
  session.distribute(
      mesh, fmt::format("dp {} pp {} tp {}", plan.layout.dp, plan.layout.pp, plan.layout.tp));
  print_start(everyone, mesh, plan, device, session);

  job::RankReport report;
  report.rank = everyone.rank();
  report.host = comm::host_name();
  report.device = device.backend->description();
  report.at = mesh.at;
  const model::StageLayers stage = plan.stages[static_cast<size_t>(mesh.at.pp)];
  report.first_layer = stage.begin;
  report.last_layer = stage.end;
  report.seconds["start"] = seconds_since(start);

  comm::Watch watch({.first_seconds = std::max(600.0, options.step_timeout),
                     .step_seconds = options.step_timeout,
                     .rank = everyone.rank(),
                     .host = comm::host_name()});
  const auto loading = Clock::now();
  if (session.num_rows() > 0) {
    Replica replica(options, config, plan, mesh, device, watch);
    report.seconds["load"] = seconds_since(loading);
    const auto generating = Clock::now();
    job::BuilderOptions builder = row_setup.builder_options(options);
    builder.max_model_len = plan.memory.max_model_len;
    builder.vocab_size = config.vocab_size;
    builder.defaults = defaults;
    const engine::EngineStats stats = session.generate(replica.engine(), builder, tokenizer.get());
    report.seconds["generate"] = seconds_since(generating);
    report.seconds["compute"] = stats.compute_seconds;
    report.seconds["communication"] = stats.wait_seconds;
    report.seconds["idle"] = stats.idle_seconds;
    report.seconds["first_token"] = stats.first_token_seconds;
    report.computed_prompt_tokens = stats.prompt_tokens;
    report.preemptions = stats.preemptions;
    for (const int32_t blocks : plan.memory.num_blocks) report.kv_blocks += blocks;
  }
  const double loaded = report.seconds["load"];
  const auto ended = Clock::now();
  const bool complete = session.finish();
  report.seconds["gather"] = session.gather_seconds();
  report.seconds["host"] =
      std::max(0.0, report.seconds["generate"] - report.seconds["compute"] -
                        report.seconds["communication"] - report.seconds["idle"]);
  if (mesh.leader()) {
    report.num_rows = session.counts().num_answered + session.counts().num_failed;
    report.counts = session.counts();
  }
  report.peak_memory = peak_memory();
  const std::map<std::string, double> seconds = {
      {"start", report.seconds["start"]},
      {"load", loaded},
      {"generate",
       std::chrono::duration<double>(ended - loading).count() - loaded + session.wait_seconds()},
      {"gather", session.gather_seconds()},
      {"total", seconds_since(start)}};
  return conclude(options, everyone, plan, session, report, seconds, complete);
}

}  // namespace mpinfer::apps
