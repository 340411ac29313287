// One start of mpinfer run: builds the objects of this rank in the order of the include rule and
// lets the session carry rows through them. Everything that can be refused is refused before
// weights are read.
#include <sys/resource.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "apps/commands/replica.h"
#include "apps/commands/row_setup.h"
#include "apps/commands/run_identity.h"
#include "apps/commands/run_setup.h"
#include "apps/commands/run_start.h"
#include "lib/comm/heartbeat.h"
#include "lib/comm/watch.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/engine/engine.h"
#include "lib/io/file.h"
#include "lib/io/progress.h"
#include "lib/job/report.h"
#include "lib/model/expert_placement.h"
#include "lib/model/loader.h"
#include "lib/text/grammar/grammars.h"
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

job::JobOptions job_options(const Options& options, const Device& device, bool goes_on) {
  job::JobOptions job;
  job.input = options.input;
  job.reuse = goes_on             ? job::ReuseSpooled::kAll
              : options.overwrite ? job::ReuseSpooled::kNone
                                  : job::ReuseSpooled::kStandardInput;
  job.prompt = options.prompt;
  job.output = options.output;
  job.run_dir = run_directory(options);
  job.skip = options.skip;
  job.limit = options.limit;
  job.partition = io::partition_policy(options.partition);
  job.format = format_options(options);
  if (job.format.separate_errors) job.errors_output = options.output + ".errors";
  job.retry_errors = options.retry_errors;
  job.shard = options.shard;
  job.num_shards = options.num_shards;
  job.progress = io::progress_mode(options.prompt ? "none" : options.progress);
  if (!options.max_errors.empty()) {
    job.max_errors = job::error_budget(options.max_errors, "--max-errors");
  }
  job.index_threads = device.threads;
  // A GPU takes prompts faster than two threads read them.
  job.feeder_threads = device.cuda          ? std::clamp(device.threads / 2, 1, 8)
                       : device.threads > 2 ? 2
                                            : 1;
  return job;
}

io::Manifest begin_manifest(const Options& options) {
  io::Manifest manifest;
  manifest.tool_version = MPINFER_VERSION;
  manifest.arguments = options.arguments;
  for (const auto& [name, values] : options.given) {
    const auto origin = options.origin.find(name);
    std::string text = fmt::format("{}", fmt::join(values, " "));
    if (origin != options.origin.end()) text += fmt::format(" ({})", origin->second);
    manifest.configuration[name] = text;
  }
  return manifest;
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
  if (session.num_shards() > 1) {
    spdlog::info("shard {} of {}: {} of {} rows", session.shard(), session.num_shards(),
                 io::with_thousands(session.num_rows_here()),
                 io::with_thousands(session.input().num_rows));
  }
  constexpr size_t kMostLines = 64;
  for (size_t i = 0; i < lines.size() && i < kMostLines; ++i) spdlog::info("{}", lines[i]);
  if (lines.size() > kMostLines) spdlog::info("… and {} ranks more", lines.size() - kMostLines);
  if (session.num_done_before() > 0) {
    spdlog::info("going on: {} of {} rows are done, by {} journals",
                 io::with_thousands(session.num_done_before()),
                 io::with_thousands(session.num_rows_here()), session.num_journals_before());
  }
  spdlog::info("layout dp {} pp {} tp {}{}: {}", plan.layout.dp, plan.layout.pp, plan.layout.tp,
               plan.layout.ep > 1 ? fmt::format(" ep {}", plan.layout.ep) : "", plan.reason);
  spdlog::info("{}; max-model-len {}, up to {} sequences at once", plan.memory.sum,
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

int exit_code_of(const Options& options, const job::RunReport& report, job::Ending ending) {
  switch (ending) {
    case job::Ending::kComplete:
      return exit_code_of(options, report);
    case job::Ending::kTooManyErrors:
      return static_cast<int>(ExitCode::kFailedRows);
    case job::Ending::kStopped:
      return static_cast<int>(ExitCode::kStopped);
  }
  return static_cast<int>(ExitCode::kInternal);
}

const char* reason_of(job::Ending ending) {
  switch (ending) {
    case job::Ending::kComplete:
      return "all rows done";
    case job::Ending::kTooManyErrors:
      return "more failed rows than --max-errors allows";
    case job::Ending::kStopped:
      return "stopped before all rows were done";
  }
  return "";
}

// The records of all ranks and the totals; rank 0 writes and prints them.
// Where each expert goes in the next run, by the rows that this one saw.
void write_placement(const Options& options, const job::RunReport& report) {
  const job::ExpertLoad load = job::expert_load(report);
  if (report.layout.ep == 1 || load.layers.empty()) {
    spdlog::info("--expert-placement: nothing to write at ep {}", report.layout.ep);
    return;
  }
  const model::ExpertPlacement placement =
      model::balance_experts(load.layers, report.num_experts, report.layout.ep);
  io::replace_file(options.expert_placement, model::placement_text(placement, report.num_experts));
  spdlog::info("wrote {}: experts by the rows of this run", printable(options.expert_placement));
}

// Rank 0's file, on every rank.
model::ExpertPlacement placement_of(const Options& options, const model::ModelConfig& config,
                                    const comm::HostComm& world) {
  std::string text;
  if (world.rank() == 0 && std::filesystem::exists(options.expert_placement)) {
    std::ifstream file(options.expert_placement, std::ios::binary);
    text.assign(std::istreambuf_iterator<char>(file), {});
    if (text.empty()) text = " ";
  }
  world.broadcast(text, 0);
  if (text.empty()) return {};
  return model::read_placement(text, options.expert_placement, config);
}

int conclude(const Options& options, const model::ModelConfig& config, const comm::HostComm& world,
             const planner::Plan& plan, job::Session& session, const Course& course,
             const job::RankReport& mine, const std::map<std::string, double>& seconds,
             job::Ending ending) {
  const auto records = world.gather(job::serialise(mine), 0);
  if (world.rank() != 0) return 0;
  job::RunReport report;
  report.tool_version = MPINFER_VERSION;
  report.layout = plan.layout;
  report.layout_reason = plan.reason;
  report.num_experts = config.moe.num_experts;
  report.expert_placement = config.moe.placement;
  report.num_rows = session.num_rows_here();
  for (const std::string& bytes : records) {
    report.ranks.push_back(job::deserialise_rank_report(bytes));
  }
  report.seconds = seconds;
  const bool written = ending == job::Ending::kComplete && options.num_shards == 1;
  report.output = written ? options.output : "";
  report.run_dir = run_directory(options);
  report.lost = course.lost;
  report.exit_code = exit_code_of(options, report, ending);
  std::string path = options.report;
  if (path.empty() && !report.run_dir.empty()) path = report.run_dir + "/report.json";
  if (!path.empty()) job::write_report(path, report);
  const job::ResultCounts totals = job::totals_of(report);
  if (io::RunRecord* record = course.record.get()) {
    record->change([&](io::Manifest& manifest) {
      manifest.num_answered = totals.num_answered;
      manifest.num_failed = totals.num_failed;
      manifest.prompt_tokens = totals.prompt_tokens;
      manifest.completion_tokens = totals.completion_tokens;
      manifest.seconds = seconds;
    });
    record->close(ending == job::Ending::kComplete ? "complete" : "stopped", report.exit_code,
                  reason_of(ending));
  }
  for (const std::string& line : job::losses_of(report)) spdlog::warn("{}", line);
  if (ending == job::Ending::kTooManyErrors) {
    spdlog::error("stopped: {} rows failed, more than --max-errors {}; no output was written",
                  totals.num_failed, options.max_errors);
  }
  if (!options.expert_placement.empty()) write_placement(options, report);
  for (const std::string& line : job::summary_of(report)) spdlog::info("{}", line);
  return report.exit_code;
}

// Rank 0 closes the manifest; any rank leaves its verdict, since rank 0 may not live to hear of it.
void prepare_last_words(LastWords& last_words, const std::string& run_dir, int rank, int attempt,
                        std::shared_ptr<io::RunRecord> record) {
  if (run_dir.empty()) return;
  last_words.say = [run_dir, rank, attempt, record](int exit_code, const std::string& what) {
    try {
      if (attempt > 0) io::leave_verdict(run_dir, attempt, rank, {exit_code, what});
      if (record) record->close("failed", exit_code, what);
    } catch (const Error& error) {
      spdlog::warn("{}", error.what());
    }
  };
}

}  // namespace

int start_run(const Options& options, comm::HostComm world, job::StopControl& stop, Course& course,
              LastWords& last_words) {
  const auto start = Clock::now();
  const std::shared_ptr<io::RunRecord> record =
      world.rank() == 0 ? open_run_record(options) : nullptr;
  course.record = record;
  require_model_everywhere(options, world);
  model::ModelConfig config = model::load_model_config(options.model);
  if (!options.expert_placement.empty()) {
    config.moe.placement = placement_of(options, config, world);
  }
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
  std::unique_ptr<text::grammar::Grammars> grammars;
  if (tokenizer != nullptr) {
    grammars = std::make_unique<text::grammar::Grammars>(*tokenizer, config.vocab_size,
                                                         config.eos_token_ids);
  }
  RowSetup row_setup(options, tokenizer_path);
  Device device = open_device(options, world);
  require_same_everywhere(world, identity, device.simd);

  job::JobOptions job = job_options(options, device, course.opened);
  job.manifest = begin_manifest(options);
  job.record = record.get();
  job.stop = &stop;
  const comm::HostComm everyone = world.duplicate();
  job::Session session(job, everyone, options.field, defaults.max_tokens.value_or(0));
  const planner::Plan plan = plan_run(options, config, device, everyone, session.input());
  const comm::Mesh mesh = comm::make_mesh(std::move(world), plan.layout);
  session.set_replica_sampling(
      job::parse_replica_sampling(options.replica_sampling, plan.layout.dp, config.vocab_size));
  job::BuilderOptions builder = row_setup.builder_options(options);
  builder.max_model_len = plan.memory.max_model_len;
  builder.vocab_size = config.vocab_size;
  builder.defaults = defaults;
  builder.grammars = grammars.get();
  const io::Opening opening = session.open(
      everyone, run_identity(options, {config, identity, device, plan, builder, job.format}),
      fmt::format("dp {} pp {} tp {}", plan.layout.dp, plan.layout.pp, plan.layout.tp));
  course.opened = true;
  course.layout = plan.layout;
  course.simd = device.simd;
  course.max_model_len = plan.memory.max_model_len;
  if (opening.kind == io::StartKind::kAlreadyComplete) {
    if (everyone.rank() != 0) return 0;
    spdlog::info("already complete: {}; exit code {}: {}", printable(options.output),
                 opening.exit_code, job::meaning_of(opening.exit_code));
    return opening.exit_code;
  }
  row_setup.set_now(opening.created);
  prepare_last_words(last_words, job.run_dir, everyone.rank(), opening.attempt, record);
  session.distribute(mesh);
  for (job::LostRank& lost : course.lost) {
    if (lost.rows_left < 0 && mesh.leader()) {
      lost.rows_left = session.num_rows_here() - session.num_done_before();
    }
  }
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

  const double first_seconds = std::max(600.0, options.step_timeout);
  comm::Heartbeat heartbeat(everyone, first_seconds, options.step_timeout);
  heartbeat.set_rows(session.replica_rows(), plan.layout.replica());
  comm::Watch watch({.first_seconds = first_seconds,
                     .step_seconds = options.step_timeout,
                     .rank = everyone.rank(),
                     .host = comm::host_name(),
                     .last_words =
                         [&last_words](const std::string& what) {
                           if (last_words.say) {
                             last_words.say(static_cast<int>(ExitCode::kPeerFailure), what);
                           }
                         },
                     .heartbeat = &heartbeat});
  const auto loading = Clock::now();
  // A replica without rows loads nothing, unless its experts work for its group's.
  const int64_t group_rows = mesh.members.all_reduce_sum(session.num_rows());
  std::unique_ptr<engine::Generator> generator;  // goes after the answers are in place
  if (session.num_rows() > 0 || group_rows > 0) {
    generator = make_replica(options, config, plan, mesh, device, watch, grammars.get());
    report.seconds["load"] = seconds_since(loading);
    const auto generating = Clock::now();
    const engine::EngineStats stats = session.generate(*generator, builder, tokenizer.get());
    report.seconds["generate"] = seconds_since(generating);
    report.seconds["compute"] = stats.compute_seconds;
    report.seconds["communication"] = stats.wait_seconds;
    report.seconds["idle"] = stats.idle_seconds;
    report.seconds["first_token"] = stats.first_token_seconds;
    report.computed_prompt_tokens = stats.prompt_tokens;
    report.preemptions = stats.preemptions;
    report.expert_counts = generator->expert_counts();
    for (const int32_t blocks : plan.memory.num_blocks) report.kv_blocks += blocks;
  }
  const double loaded = report.seconds["load"];
  const auto ended = Clock::now();
  const job::Ending ending = session.finish(watch);
  report.seconds["gather"] = session.gather_seconds();
  report.seconds["host"] =
      std::max(0.0, report.seconds["generate"] - report.seconds["compute"] -
                        report.seconds["communication"] - report.seconds["idle"]);
  if (mesh.leader()) {
    report.num_rows = session.counts().num_answered + session.counts().num_failed;
    report.counts = session.counts();
    report.earlier = session.earlier_counts();
  }
  report.peak_memory = peak_memory();
  const std::map<std::string, double> seconds = {
      {"start", report.seconds["start"]},
      {"load", loaded},
      {"generate",
       std::chrono::duration<double>(ended - loading).count() - loaded + session.wait_seconds()},
      {"gather", session.gather_seconds()},
      {"total", seconds_since(start)}};
  return conclude(options, config, everyone, plan, session, course, report, seconds, ending);
}

}  // namespace mpinfer::apps
