#include "lib/job/session.h"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/job/json_text.h"
#include "lib/job/output.h"
#include "lib/job/stop_strings.h"

namespace mpinfer::job {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kTurnInterval = std::chrono::milliseconds(2);      // between looks at MPI
constexpr auto kReportInterval = std::chrono::milliseconds(200);  // between progress reports
constexpr uint32_t kTypicalCompletion = 256;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The numbers of the summary travel as one record.
template <class T>
void broadcast_record(const comm::HostComm& comm, T* record) {
  static_assert(std::is_trivially_copyable_v<T>);
  comm.broadcast(record, sizeof(T), 0);
}

void broadcast_numbers(const comm::HostComm& comm, std::vector<int64_t>* numbers) {
  auto size = static_cast<int64_t>(numbers->size());
  broadcast_record(comm, &size);
  numbers->resize(static_cast<size_t>(size));
  if (size > 0) comm.broadcast(numbers->data(), size * static_cast<int64_t>(sizeof(int64_t)), 0);
}

InputSummary summary_of(const io::InputIndex& index) {
  InputSummary summary;
  summary.num_rows = static_cast<int64_t>(index.rows.size());
  summary.bytes = index.bytes();
  summary.hash = index.hash;
  summary.num_without_max_tokens = index.num_without_max_tokens;
  if (index.rows.empty()) return summary;
  double prompt = 0.0;
  double completion = 0.0;
  for (const io::RowEntry& row : index.rows) {
    prompt += row.prompt_tokens;
    completion += row.completion_tokens;
  }
  summary.mean_prompt_tokens = prompt / static_cast<double>(index.rows.size());
  summary.mean_completion_tokens = completion / static_cast<double>(index.rows.size());
  return summary;
}

}  // namespace

Session::Session(const JobOptions& options, const comm::HostComm& world,
                 const std::string& prompt_field, int64_t default_max_tokens)
    : options_(options), rank_(world.rank()) {
  if (world.rank() == 0) index_input(prompt_field, default_max_tokens);
  broadcast_record(world, &summary_);
  broadcast_record(world, &first_row_);
  broadcast_numbers(world, &file_bytes_);
}

Session::~Session() {
  if (std::uncaught_exceptions() == 0 || rank_ != 0) return;
  if (options_.manifest.state != "running" || options_.run_dir.empty()) return;
  try {
    close_manifest("failed", -1, "ended by an error", {}, {});
  } catch (const Error& error) {
    spdlog::warn("{}", error.what());
  }
}

void Session::index_input(const std::string& prompt_field, int64_t default_max_tokens) {
  if (options_.prompt) {
    prompt_file_ = io::make_anonymous_file();
    std::string line = "{";
    append_json_string(&line, prompt_field.substr(0, prompt_field.find('.')));
    line += ": ";
    append_json_string(&line, *options_.prompt);
    io::write_all(prompt_file_, line + "}\n");
    options_.input = {fmt::format("/proc/self/fd/{}", prompt_file_.fd())};
  }
  io::IndexOptions index_options;
  index_options.files = options_.input;
  index_options.skip = options_.skip;
  index_options.limit = options_.limit;
  index_options.threads = options_.index_threads;
  index_options.prompt_field = prompt_field;
  index_options.default_completion_tokens =
      default_max_tokens > 0 ? static_cast<uint32_t>(std::min<int64_t>(default_max_tokens, 1 << 24))
                             : kTypicalCompletion;
  for (const NearMiss& miss : near_misses()) index_options.watched_keys.emplace_back(miss.written);
  index_ = io::build_index(index_options);
  summary_ = summary_of(index_);
  file_bytes_ = index_.file_bytes;
  watched_counts_ = index_.watched_counts;
  first_row_ = index_.first_row;
  if (!index_.rows.empty() && index_.rows[0].length != io::RowEntry::kTooLong) {
    const auto file = static_cast<size_t>(index_.rows[0].file);
    first_line_ = io::read_row(io::open_input(options_.input[file]), index_.rows[0]);
  }
  warn_of_near_misses("are not read");
}

void Session::warn_of_near_misses(const char* when) const {
  for (size_t i = 0; i < watched_counts_.size(); ++i) {
    if (watched_counts_[i] == 0) continue;
    spdlog::warn("{} rows have a field {}, whose values {}: the field is called {}",
                 io::with_thousands(watched_counts_[i]), near_misses()[i].written, when,
                 near_misses()[i].meant);
  }
}

void Session::distribute(const comm::Mesh& mesh, const std::string& layout) {
  mesh_ = &mesh;
  const bool dynamic = options_.partition == io::PartitionPolicy::kDynamic;
  if (mesh.leader()) {
    const bool root = mesh.leaders.rank() == 0;
    if (dynamic) {
      io::GuidedBlocks blocks;
      if (root) blocks = io::guided_blocks(index_.rows, mesh.layout.dp);
      io::OrderedBlocks ordered =
          io::broadcast_blocks(mesh.leaders, root ? &index_ : nullptr, root ? &blocks : nullptr);
      rows_ = std::move(ordered.rows);
      starts_ = std::move(ordered.starts);
      counter_ = std::make_unique<comm::SharedCounter>(mesh.leaders, 0);
      next_block_ = mesh.at.dp;
    } else {
      std::vector<int32_t> owner;
      if (root && options_.partition == io::PartitionPolicy::kBalanced) {
        owner = io::deal_balanced(index_.rows, mesh.layout.dp);
      } else if (root) {
        owner = io::deal_contiguous(static_cast<int64_t>(index_.rows.size()), mesh.layout.dp);
      }
      rows_ = io::scatter_rows(mesh.leaders, root ? &index_ : nullptr, &owner);
      next_block_ = rows_.empty() ? -1 : 0;
    }
    if (options_.partition == io::PartitionPolicy::kBalanced) {
      std::stable_sort(rows_.begin(), rows_.end(), [](const io::Row& a, const io::Row& b) {
        return io::cost_of(a.entry) > io::cost_of(b.entry);
      });
    }
    index_ = io::InputIndex();
    const bool can_read = root || !options_.prompt;
    std::vector<std::string> paths = options_.input;
    if (options_.prompt && !root) paths = {"--prompt"};
    lines_ = std::make_unique<io::InputLines>(mesh.leaders, paths, file_bytes_, &rows_,
                                              int64_t{32} << 20, can_read);
    const auto block = static_cast<size_t>(mesh.at.dp);
    num_rows_ = !dynamic                     ? static_cast<int64_t>(rows_.size())
                : block + 1 < starts_.size() ? starts_[block + 1] - starts_[block]
                                             : 0;
    progress_ = std::make_unique<io::ProgressExchange>(mesh.leaders);
    if (root) begin_manifest(layout);
    open_journal();
  }
  mesh.replica.broadcast(&num_rows_, sizeof(num_rows_), 0);
}

// Rank 0: journals of the run that this one replaces go.
void Session::begin_manifest(const std::string& layout) {
  if (options_.run_dir.empty()) return;
  io::make_directories(options_.run_dir);
  for (const auto& entry : std::filesystem::directory_iterator(options_.run_dir)) {
    if (entry.path().filename().string().starts_with("journal-")) {
      std::filesystem::remove(entry.path());
    }
  }
  io::Manifest& manifest = options_.manifest;
  manifest.state = "running";
  manifest.input_files = options_.input;
  manifest.input_bytes = summary_.bytes;
  manifest.input_hash = fmt::format("{:016x}", summary_.hash);
  manifest.num_rows = summary_.num_rows;
  io::Attempt attempt;
  attempt.start = io::utc_now();
  attempt.layout = layout;
  attempt.hosts = {comm::host_name()};
  manifest.attempts = {attempt};
  io::write_manifest(options_.run_dir + "/manifest.json", manifest);
}

// In the run directory where this host has one, else a file that goes with the process.
void Session::open_journal() {
  const bool root = mesh_->leaders.rank() == 0;
  mesh_->leaders.barrier();
  io::JournalWriter::Options journal_options;
  io::File file;
  if (!options_.run_dir.empty()) {
    const std::string path =
        fmt::format("{}/journal-0001-r{:05}.log", options_.run_dir, mesh_->at.dp);
    try {
      io::make_directories(options_.run_dir);
      if (!root) std::filesystem::remove(path);
      file = io::create_exclusive(path);
      journal_path_ = path;
    } catch (const Error& error) {
      if (root) throw;
      spdlog::warn("{}: the answers of this replica are kept in a temporary file until the end",
                   error.what());
    }
  }
  if (!file.is_open()) {
    file = io::make_anonymous_file();
    journal_options.durable = false;
  }
  const nlohmann::ordered_json header = {{"schema", 1},
                                         {"tool_version", options_.manifest.tool_version},
                                         {"replica", mesh_->at.dp},
                                         {"identity", fmt::format("{:016x}", options_.identity)},
                                         {"input", fmt::format("{:016x}", summary_.hash)},
                                         {"start", io::utc_now()}};
  journal_ = std::make_unique<io::JournalWriter>(std::move(file), journal_options, header.dump());
}

NextRange Session::next_range(const engine::Engine& engine) {
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

engine::EngineStats Session::generate(engine::Engine& engine, const BuilderOptions& builder,
                                      const text::Tokenizer* tokenizer) {
  const auto start = Clock::now();
  if (!mesh_->leader()) return engine.run(nullptr, nullptr, nullptr);
  BuilderOptions builder_options = builder;
  if (!replica_sampling_.empty()) {
    builder_options.defaults =
        overlay(replica_sampling_[static_cast<size_t>(mesh_->at.dp)], builder_options.defaults);
  }
  builder_ = std::make_unique<RequestBuilder>(builder_options, tokenizer);
  const std::string about = fmt::format("{:016x} {:016x} {:016x}", options_.identity,
                                        fingerprint(builder_options), fingerprint(options_.format));
  FormatOptions format = options_.format;
  const uint64_t run[2] = {options_.identity, summary_.hash};
  format.run_id = io::hash_of({reinterpret_cast<const char*>(run), sizeof(run)});
  results_ = std::make_unique<ResultWriter>(
      ResultWriter::Options{.format = format, .request_fingerprint = io::hash_of(about)}, tokenizer,
      *lines_, *journal_);
  FeederOptions feeder_options;
  feeder_options.threads = options_.feeder_threads;
  feeder_ = std::make_unique<Feeder>(
      feeder_options, rows_, [this, &engine] { return next_range(engine); }, *lines_, *builder_,
      *results_, [this, &engine] { return on_turn(&engine); });
  if (mesh_->leaders.rank() == 0) {
    line_ = std::make_unique<io::ProgressLine>(options_.progress, summary_.num_rows);
  }
  std::unique_ptr<StopStrings> stop_strings;
  if (tokenizer != nullptr) stop_strings = std::make_unique<StopStrings>(*tokenizer);
  const engine::EngineStats stats = engine.run(feeder_.get(), results_.get(), stop_strings.get());
  results_->drain();
  counts_ = results_->counts();
  generate_seconds_ = seconds_since(start);
  report_progress(&engine, /*last=*/true);
  feeder_.reset();
  results_.reset();
  return stats;
}

bool Session::on_turn(const engine::Engine* engine) {
  const auto now = Clock::now();
  if (now - last_turn_ < kTurnInterval) return false;
  last_turn_ = now;
  if (counter_ && mesh_->leaders.rank() == 0) counter_->poll();
  if (now - last_report_ >= kReportInterval) {
    last_report_ = now;
    report_progress(engine, /*last=*/false);
  }
  return progress_->stop_requested();
}

void Session::report_progress(const engine::Engine* engine, bool last) {
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
                .completion_tokens = state.completion_tokens};
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
  if (!options_.max_errors) return;
  int64_t failed = 0;
  for (const io::ReplicaProgress& replica : progress_->replicas()) failed += replica.num_failed;
  if (failed > options_.max_errors->rows_of(summary_.num_rows)) progress_->request_stop();
}

// Rank 0 goes on serving the counter and the progress line until every leader has said it is done.
void Session::wait_for_leaders() {
  if (num_rows_ == 0) report_progress(nullptr, /*last=*/true);
  if (mesh_->leaders.rank() != 0) return;
  while (!progress_->all_finished()) {
    if (counter_) counter_->poll();
    watch_progress();
    std::this_thread::sleep_for(kTurnInterval);
  }
  if (line_) line_->finish();
}

bool Session::finish() {
  bool stopped = false;
  if (mesh_->leader()) {
    const auto waiting = Clock::now();
    wait_for_leaders();
    counter_.reset();
    wait_seconds_ = seconds_since(waiting);
    const auto start = Clock::now();
    const io::File journal = journal_->close();
    journal_.reset();
    const int64_t done = mesh_->leaders.all_reduce_sum(counts_.num_answered + counts_.num_failed);
    stopped = done < summary_.num_rows && progress_->stop_requested();
    stopped = mesh_->leaders.all_reduce_max(stopped ? 1 : 0) == 1;
    if (!stopped) {
      write_output(mesh_->leaders, journal,
                   {.path = options_.output,
                    .errors_path = options_.errors_output,
                    .first_row = first_row_,
                    .num_rows = summary_.num_rows});
    }
    gather_seconds_ = seconds_since(start);
    if (mesh_->leaders.rank() == 0) warn_of_near_misses("were not read");
  }
  return mesh_->world.all_reduce_max(stopped ? 1 : 0) == 0;
}

void Session::close_manifest(const std::string& state, int exit_code, const std::string& reason,
                             const ResultCounts& totals,
                             const std::map<std::string, double>& seconds) {
  if (options_.run_dir.empty()) return;
  io::Manifest& manifest = options_.manifest;
  manifest.state = state;
  manifest.seconds = seconds;
  manifest.num_answered = totals.num_answered;
  manifest.num_failed = totals.num_failed;
  manifest.prompt_tokens = totals.prompt_tokens;
  manifest.completion_tokens = totals.completion_tokens;
  if (!manifest.attempts.empty()) {
    io::Attempt& attempt = manifest.attempts.back();
    attempt.end = io::utc_now();
    attempt.exit_code = exit_code;
    attempt.reason = reason;
    attempt.rows_after = manifest.num_answered + manifest.num_failed;
  }
  io::write_manifest(options_.run_dir + "/manifest.json", manifest);
}

}  // namespace mpinfer::job
