// Session while rows run, and its end: turns of the engine, progress, stopping, the gather.
#include <algorithm>
#include <thread>

#include "lib/core/error.h"
#include "lib/core/fault_point.h"
#include "lib/core/log.h"
#include "lib/core/memory.h"
#include "lib/job/output.h"
#include "lib/job/session.h"
#include "lib/job/stop_strings.h"

namespace mpinfer::job {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kTurnInterval = std::chrono::milliseconds(2);      // between looks at MPI
constexpr auto kReportInterval = std::chrono::milliseconds(200);  // between progress reports
constexpr auto kPartialInterval = std::chrono::seconds(30);       // between partial records

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

NextRange Session::next_range(const engine::Generator& engine) {
  constexpr int64_t kFewWaiting = 32;
  if (next_block_ < 0) return {.range = {}, .closed = true};
  if (options_.partition != io::PartitionPolicy::kDynamic) {
    next_block_ = -1;
    return {.range = {0, static_cast<int64_t>(rows_.size())}};
  }
  // A block claimed too early is one that a faster replica cannot take.
  if (engine.progress().num_waiting > kFewWaiting) return {};
  if (first_block_taken_) next_block_ = mesh_->layout.dp + counter_->fetch_and_add(1);
  first_block_taken_ = true;
  const auto block = static_cast<size_t>(next_block_);
  if (block + 1 >= starts_.size()) {
    next_block_ = -1;
    return {.range = {}, .closed = true};
  }
  return {.range = {starts_[block], starts_[block + 1]}};
}

engine::EngineStats Session::generate(engine::Generator& engine, const BuilderOptions& builder,
                                      const text::Tokenizer* tokenizer) {
  const auto start = Clock::now();
  if (!mesh_->leader()) return engine.run(nullptr, nullptr, nullptr);
  BuilderOptions builder_options = builder;
  uint64_t request_fingerprint = fingerprint_;
  if (!replica_sampling_.empty()) {
    const auto& own = replica_sampling_[static_cast<size_t>(mesh_->at.dp)];
    builder_options.defaults = overlay(own, builder_options.defaults);
    request_fingerprint = record_key(fingerprint_, fingerprint(builder_options.defaults));
  }
  builder_ = std::make_unique<RequestBuilder>(builder_options, tokenizer);
  FormatOptions format = options_.format;
  format.run_id = io::hash_of(run_id_);
  format.created = opening_.created;
  results_ = std::make_unique<ResultWriter>(
      ResultWriter::Options{.format = format, .request_fingerprint = request_fingerprint},
      tokenizer, *lines_, *journal_);
  FeederOptions feeder_options;
  feeder_options.threads = options_.feeder_threads;
  last_partials_ = Clock::now();
  feeder_ = std::make_unique<Feeder>(
      feeder_options, rows_, [this, &engine] { return next_range(engine); }, *lines_, *builder_,
      *results_,
      FeederCallbacks{
          .on_turn = [this, &engine] { return on_turn(&engine) >= StopLevel::kDrain; },
          .cancelled = [this, &engine] { return on_turn(&engine) >= StopLevel::kCancel; },
          .stalled = [this] { return journal_->stalled(); },
          .begun =
              [this](int64_t index) {
                const auto found = begun_.find(index);
                return found == begun_.end() ? std::vector<int32_t>() : std::move(found->second);
              }});
  if (mesh_->leaders.rank() == 0) {
    line_ =
        std::make_unique<io::ProgressLine>(options_.progress, num_rows_here_ - earlier_.num_done);
  }
  std::unique_ptr<StopStrings> stop_strings;
  if (tokenizer != nullptr) stop_strings = std::make_unique<StopStrings>(*tokenizer);
  if (options_.stop != nullptr) {
    options_.stop->set_flush([this] { flush(/*running=*/true); });
  }
  const engine::EngineStats stats = engine.run(feeder_.get(), results_.get(), stop_strings.get());
  if (options_.stop != nullptr) {
    options_.stop->set_flush([this] { flush(/*running=*/false); });
  }
  results_->drain();
  counts_ = results_->counts();
  generate_seconds_ = seconds_since(start);
  report_progress(&engine, /*last=*/true);
  feeder_.reset();
  results_.reset();
  rows_ = io::Rows();
  return_free_memory();
  return stats;
}

// On the thread of the signals: what is finished becomes durable, and the manifest says how this
// process ended if it is killed right after.
void Session::flush(bool running) {
  try {
    if (running) {
      constexpr auto kPatience = std::chrono::milliseconds(250);
      results_->drain_for(kPatience);
      journal_->commit();
    }
    if (options_.record != nullptr) {
      options_.record->close("stopped", static_cast<int>(ExitCode::kStopped), "SIGTERM");
    }
  } catch (const Error& error) {
    spdlog::error("{}", error.what());
  }
}

StopLevel Session::on_turn(const engine::Generator* engine) {
  const auto now = Clock::now();
  if (now - last_turn_ < kTurnInterval) return stop_at_last_turn_;
  last_turn_ = now;
  fault_point("turn");
  if (options_.record != nullptr) options_.record->check_lock();
  if (counter_ && mesh_->leaders.rank() == 0) counter_->poll();
  if (now - last_partials_ >= kPartialInterval) {
    last_partials_ = now;
    results_->keep_unfinished();
  }
  if (now - last_report_ >= kReportInterval) {
    last_report_ = now;
    report_progress(engine, /*last=*/false);
  }
  // Rank 0 tells every leader; a leader that was told by its own signal stops by itself too.
  const auto told = static_cast<StopLevel>(progress_->stop_requested());
  stop_at_last_turn_ = std::max(told, stop_level());
  return stop_at_last_turn_;
}

void Session::report_progress(const engine::Generator* engine, bool last) {
  io::ReplicaProgress progress;
  if (engine != nullptr) {
    const engine::Progress state = engine->progress();
    const ResultCounts counts = results_->counts();
    progress = {.num_rows = feeder_->num_rows(),
                .num_answered = counts.num_answered,
                .num_failed = counts.num_failed,
                .num_waiting = state.num_waiting,
                .num_running = state.num_running,
                .kv_blocks_used = state.kv_blocks_used,
                .kv_blocks_total = state.kv_blocks_total,
                .prompt_tokens = state.prompt_tokens,
                .completion_tokens = state.completion_tokens,
                .stop_level = static_cast<int64_t>(stop_level())};
  }
  if (last) {
    progress_->post_last(progress);
  } else {
    progress_->post(progress);
  }
  if (mesh_->leaders.rank() == 0) watch_progress();
}

// Rank 0: the line on stderr, and the end of the run when too many rows have failed.
void Session::watch_progress() {
  progress_->collect();
  if (line_ && line_->due()) line_->update(progress_->replicas());
  auto level = static_cast<int64_t>(stop_level());
  for (const io::ReplicaProgress& replica : progress_->replicas()) {
    level = std::max(level, replica.stop_level);
  }
  if (level > 0) progress_->request_stop(static_cast<int>(level));
  if (!options_.max_errors) return;
  int64_t failed = 0;
  for (const io::ReplicaProgress& replica : progress_->replicas()) failed += replica.num_failed;
  if (failed > options_.max_errors->rows_of(num_rows_here_)) {
    too_many_errors_ = true;
    progress_->request_stop(static_cast<int>(StopLevel::kDrain));
  }
}

// Rank 0 goes on serving the counter and the progress line until every leader has said it is done.
void Session::wait_for_leaders(comm::Watch& watch) {
  if (num_rows_ == 0) report_progress(nullptr, /*last=*/true);
  if (mesh_->leaders.rank() != 0) return;
  while (!progress_->all_finished()) {
    if (counter_) counter_->poll();
    watch_progress();
    watch.check();
    std::this_thread::sleep_for(kTurnInterval);
  }
  if (line_) line_->finish();
}

// A barrier of the world that may take as long as the slowest replica: everybody goes on telling
// its neighbour that it lives.
void Session::wait_for_all(comm::Watch& watch, const char* what) {
  spdlog::debug("waiting for {}", what);
  const auto barrier = mesh_->world.start_barrier();
  while (!barrier->test()) {
    watch.check();
    std::this_thread::sleep_for(kTurnInterval);
  }
}

// Every result of this leader: of the journals it took over, and of its own as the last one.
std::vector<io::StoredResult> Session::stored_results(std::vector<io::File>* journals) {
  std::vector<io::StoredResult> results = std::move(earlier_.results);
  *journals = std::move(earlier_.journals);
  journals->push_back(journal_->close());
  journal_.reset();
  const auto number = static_cast<uint32_t>(journals->size() - 1);
  results.reserve(results.size() + static_cast<size_t>(counts_.num_answered + counts_.num_failed));
  io::scan_journal(journals->back(), [&](const io::JournalRecord& record,
                                         std::string_view /*payload*/) {
    if (record.kind == io::RecordKind::kPartial) return;
    results.push_back(
        {.row = record.row, .offset = record.offset, .length = record.length, .journal = number});
  });
  return results;
}

Ending Session::finish(comm::Watch& watch) {
  auto ending = Ending::kComplete;
  if (mesh_->leader()) {
    const auto waiting = Clock::now();
    wait_for_leaders(watch);
    wait_seconds_ = seconds_since(waiting);
  }
  wait_for_all(watch, "every replica");
  watch.ending();
  if (mesh_->leader()) {
    const comm::HostComm& leaders = mesh_->leaders;
    std::unique_ptr<comm::Watch::Armed> armed;
    const auto on_round = [&] {
      armed.reset();
      watch.check();
      armed.reset(new comm::Watch::Armed(watch.arm("gather", -1)));
    };
    on_round();
    counter_.reset();
    const auto start = Clock::now();
    std::vector<io::File> journals;
    std::vector<io::StoredResult> results = stored_results(&journals);
    const int64_t done = leaders.all_reduce_sum(static_cast<int64_t>(results.size()));
    const bool stop = progress_->stop_requested() > 0 || stop_level() > StopLevel::kNone;
    const bool stopped = leaders.all_reduce_max(stop ? 1 : 0) == 1;
    MPINFER_CHECK(stopped || done == num_rows_here_, "{} results for {} rows", done,
                  num_rows_here_);
    if (done < num_rows_here_) {
      const bool errors = leaders.all_reduce_max(too_many_errors_ ? 1 : 0) == 1;
      ending = errors ? Ending::kTooManyErrors : Ending::kStopped;
    } else if (options_.num_shards == 1) {
      const int64_t bytes = write_output(leaders, journals, std::move(results),
                                         {.path = options_.output,
                                          .errors_path = options_.errors_output,
                                          .first_row = first_row_,
                                          .num_rows = summary_.num_rows,
                                          .locked = !options_.run_dir.empty(),
                                          .on_round = on_round});
      if (options_.record != nullptr) {
        options_.record->change([&](io::Manifest& manifest) { manifest.output_bytes = bytes; });
      }
    }
    gather_seconds_ = seconds_since(start);
    if (leaders.rank() == 0) warn_of_near_misses("were not read");
  }
  wait_for_all(watch, "the output");
  return static_cast<Ending>(mesh_->world.all_reduce_max(static_cast<int64_t>(ending)));
}

}  // namespace mpinfer::job
