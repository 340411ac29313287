#include "lib/job/session.h"

#include <sys/stat.h>
#include <algorithm>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/memory.h"
#include "lib/io/spool.h"
#include "lib/job/json_text.h"

namespace mpinfer::job {
namespace {

constexpr uint32_t kTypicalCompletion = 256;

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
  for (const io::Row& row : index.rows) {
    prompt += static_cast<double>(row.entry.prompt_tokens);
    completion += static_cast<double>(row.entry.completion_tokens);
  }
  summary.mean_prompt_tokens = prompt / static_cast<double>(index.rows.size());
  summary.mean_completion_tokens = completion / static_cast<double>(index.rows.size());
  return summary;
}

// Rows run whatever their ids are; who joins answers by id should know.
void warn_of_ids(const io::IdCounts& ids) {
  if (ids.num_ids == 0) return;  // a file without ids joins by index
  std::string what;
  const auto add = [&what](int64_t count, const char* text) {
    if (count == 0) return;
    what += fmt::format("{}{} {}", what.empty() ? "" : ", ", io::with_thousands(count), text);
  };
  add(ids.num_repeated, "rows repeat the id of an earlier row");
  add(ids.num_missing, "have none");
  add(ids.num_numbers, "have one that is no string");
  if (!what.empty()) spdlog::warn("ids: {}; the member index tells answers apart", what);
}

}  // namespace

Session::Session(const JobOptions& options, const comm::HostComm& world,
                 const std::string& prompt_field, int64_t default_max_tokens)
    : options_(options), rank_(world.rank()) {
  input_names_ = options_.prompt ? std::vector<std::string>{"--prompt"} : options_.input;
  if (world.rank() == 0) index_input(prompt_field, default_max_tokens);
  std::string paths = nlohmann::json({options_.input, only_root_reads_}).dump();
  paths = world.scatter(std::vector<std::string>(static_cast<size_t>(world.size()), paths), 0);
  const auto read = nlohmann::json::parse(paths);
  options_.input = read[0].get<std::vector<std::string>>();
  only_root_reads_ = read[1].get<bool>();
  broadcast_record(world, &summary_);
  broadcast_record(world, &first_row_);
  broadcast_numbers(world, &file_bytes_);
}

Session::~Session() {
  if (options_.stop != nullptr) options_.stop->set_flush({});
}

// Rank 0: what cannot be read at any offset goes to the run directory, or to a nameless file that
// rank 0 alone sees.
void Session::spool_inputs() {
  for (size_t i = 0; i < options_.input.size(); ++i) {
    std::string& path = options_.input[i];
    if (!io::needs_spool(path)) continue;
    const std::string target =
        options_.run_dir.empty() ? "" : fmt::format("{}/input/{}.jsonl", options_.run_dir, i);
    const bool reuse = options_.reuse == ReuseSpooled::kAll ||
                       (options_.reuse == ReuseSpooled::kStandardInput && path == "-");
    io::Spooled spooled = io::spool_input(path, target, reuse);
    only_root_reads_ = only_root_reads_ || target.empty();
    path = std::move(spooled.path);
    if (spooled.held.is_open()) spooled_.push_back(std::move(spooled.held));
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
    only_root_reads_ = true;
  }
  spool_inputs();
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
  if (!index_.rows.empty() && index_.rows[0].entry.length != io::RowEntry::kTooLong) {
    const auto file = static_cast<size_t>(index_.rows[0].entry.file);
    first_line_ = io::read_row(io::open_input(options_.input[file]), index_.rows[0].entry);
  }
  warn_of_near_misses("are not read");
  warn_of_ids(index_.ids);
}

void Session::warn_of_near_misses(const char* when) const {
  for (size_t i = 0; i < watched_counts_.size(); ++i) {
    if (watched_counts_[i] == 0) continue;
    spdlog::warn("{} rows have a field {}, whose values {}: the field is called {}",
                 io::with_thousands(watched_counts_[i]), near_misses()[i].written, when,
                 near_misses()[i].meant);
  }
}

// The answers' identity goes into every journal and key, so that no result of another run is taken
// for one of this.
io::Opening Session::open(const comm::HostComm& world,
                          const std::map<std::string, std::string>& identity,
                          const std::string& layout) {
  std::string text;
  for (const auto& [name, value] : identity) text += fmt::format("{}={};", name, value);
  fingerprint_ = io::hash_of(text);
  text += fmt::format("{:016x} {} {}", summary_.hash, summary_.num_rows, first_row_);
  run_id_ = fmt::format("{:016x}", io::hash_of(text));
  std::string hosts;
  for (const std::string& host : world.gather(comm::host_name(), 0)) {
    if (hosts.find(host + "\n") == std::string::npos) hosts += host + "\n";
  }
  if (options_.record != nullptr) {
    io::Manifest now = options_.manifest;
    now.identity = identity;
    now.run_id = run_id_;
    now.shard = options_.shard;
    now.num_shards = options_.num_shards;
    now.input_files = input_names_;
    now.input_bytes = summary_.bytes;
    now.input_hash = fmt::format("{:016x}", summary_.hash);
    now.first_row = first_row_;
    now.num_rows = summary_.num_rows;
    if (!options_.output.empty() && options_.output != "-") {
      now.output = std::filesystem::absolute(options_.output).string();
    }
    io::Attempt attempt;
    attempt.start = io::utc_now();
    attempt.layout = layout;
    for (size_t at = 0; at < hosts.size(); at = hosts.find('\n', at) + 1) {
      attempt.hosts.push_back(hosts.substr(at, hosts.find('\n', at) - at));
    }
    opening_ = options_.record->open(now, index_, attempt);
  }
  if (opening_.created == 0) opening_.created = static_cast<int64_t>(std::time(nullptr));
  broadcast_record(world, &opening_);
  if (options_.stop != nullptr && opening_.kind != io::StartKind::kAlreadyComplete) {
    options_.stop->set_flush([this] { flush(/*running=*/false); });
  }
  return opening_;
}

// owner of each row of the index, by the policy over num_replicas; may put the rows in another
// order.
std::vector<int32_t> Session::deal(int32_t num_replicas) {
  if (options_.partition == io::PartitionPolicy::kContiguous) {
    return io::deal_contiguous(static_cast<int64_t>(index_.rows.size()), num_replicas);
  }
  return io::deal_balanced(&index_.rows, num_replicas);
}

// Rank 0: leaves in the index the rows that are to be done, and says whose they are (empty:
// whoever is free). Shards and sampling by replica fix a row's replica once and for all; else only
// what is left is dealt, to the replicas there are now.
std::vector<int32_t> Session::choose_rows(int dp) {
  const bool fixed = options_.num_shards > 1 || !replica_sampling_.empty();
  io::Rows& rows = index_.rows;
  const auto done = [this](const io::Row& row) {
    return earlier_.done[static_cast<size_t>(row.index - first_row_)];
  };
  std::vector<int32_t> owner;
  if (fixed) {
    owner = deal(options_.num_shards * dp);
    const int32_t first = options_.shard * dp;
    size_t kept = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (owner[i] < first || owner[i] >= first + dp) continue;
      ++num_rows_here_;
      if (done(rows[i])) continue;
      owner[kept] = owner[i] - first;
      rows[kept++] = rows[i];
    }
    rows.resize(kept);
    owner.resize(kept);
  } else {
    num_rows_here_ = static_cast<int64_t>(rows.size());
    std::erase_if(rows, done);
  }
  earlier_.done = std::vector<bool>();
  if (options_.partition == io::PartitionPolicy::kDynamic) return {};
  return fixed ? owner : deal(dp);
}

void Session::distribute(const comm::Mesh& mesh) {
  mesh_ = &mesh;
  if (mesh.leader()) {
    const bool root = mesh.leaders.rank() == 0;
    earlier_ = read_earlier_results(mesh.leaders,
                                    {.directory = options_.run_dir,
                                     .run_id = run_id_,
                                     .attempt = opening_.attempt,
                                     .first_row = first_row_,
                                     .num_rows = summary_.num_rows,
                                     .fingerprint = replica_sampling_.empty() ? fingerprint_ : 0,
                                     .retry_errors = options_.retry_errors},
                                    root ? &index_ : nullptr);
    std::vector<int32_t> owner;
    if (root) owner = choose_rows(mesh.layout.dp);
    broadcast_record(mesh.leaders, &num_rows_here_);
    take_unfinished(owner);
    const bool dynamic = options_.partition == io::PartitionPolicy::kDynamic;
    if (dynamic) {
      rows_ = std::move(index_.rows);
      if (root) starts_ = io::guided_blocks(&rows_, mesh.layout.dp);
      io::broadcast_blocks(mesh.leaders, &rows_, &starts_);
      counter_ = std::make_unique<comm::SharedCounter>(mesh.leaders, 0);
      next_block_ = mesh.at.dp;
    } else {
      rows_ = io::scatter_rows(mesh.leaders, std::move(index_.rows), owner);
      next_block_ = rows_.empty() ? -1 : 0;
    }
    if (options_.partition == io::PartitionPolicy::kBalanced) {
      io::order_for_admission(&rows_);
    }
    index_ = io::InputIndex();
    owner = {};
    return_free_memory();
    lines_ = std::make_unique<io::InputLines>(mesh.leaders, options_.input, file_bytes_, &rows_,
                                              int64_t{32} << 20, root || !only_root_reads_);
    lines_->set_names(input_names_);
    const auto block = static_cast<size_t>(mesh.at.dp);
    num_rows_ = !dynamic                     ? static_cast<int64_t>(rows_.size())
                : block + 1 < starts_.size() ? starts_[block + 1] - starts_[block]
                                             : 0;
    progress_ = std::make_unique<io::ProgressExchange>(mesh.leaders);
    open_journal();
    if (options_.record != nullptr) {
      options_.record->change([&](io::Manifest& manifest) {
        manifest.num_rows_here = num_rows_here_;
        manifest.attempts.back().rows_before = earlier_.num_done;
      });
    }
  }
  mesh.replica.broadcast(&num_rows_, sizeof(num_rows_), 0);
  share_replica_rows();
}

void Session::share_replica_rows() {
  std::string bytes;
  if (mesh_->leader()) {
    comm::ReplicaRows mine;
    if (options_.partition != io::PartitionPolicy::kDynamic && !rows_.empty()) {
      const auto [first, last] =
          std::minmax_element(rows_.begin(), rows_.end(),
                              [](const io::Row& a, const io::Row& b) { return a.index < b.index; });
      mine = {first->index, last->index, static_cast<int64_t>(rows_.size())};
    }
    for (const std::string& part :
         mesh_->leaders.all_gather({reinterpret_cast<const char*>(&mine), sizeof(mine)})) {
      bytes += part;
    }
  }
  mesh_->replica.broadcast(bytes, 0);
  replica_rows_.resize(bytes.size() / sizeof(comm::ReplicaRows));
  std::memcpy(replica_rows_.data(), bytes.data(), bytes.size());
}

// The tokens of rows that were begun go where the rows go; all but the last one, so that the way a
// row ends is found again. owner: by the index, empty where any replica may get any row.
void Session::take_unfinished(const std::vector<int32_t>& owner) {
  const comm::HostComm& leaders = mesh_->leaders;
  std::vector<nlohmann::json> parts(static_cast<size_t>(leaders.size()), nlohmann::json::array());
  if (leaders.rank() == 0) {
    for (size_t i = 0; i < index_.rows.size() && !earlier_.unfinished.empty(); ++i) {
      const auto found = earlier_.unfinished.find(index_.rows[i].index);
      if (found == earlier_.unfinished.end()) continue;
      found->second.pop_back();
      const nlohmann::json entry = {found->first, found->second};
      for (size_t leader = 0; leader < parts.size(); ++leader) {
        if (owner.empty() || owner[i] == static_cast<int32_t>(leader)) {
          parts[leader].push_back(entry);
        }
      }
    }
    earlier_.unfinished.clear();
  }
  std::vector<std::string> bytes;
  for (const nlohmann::json& part : parts) bytes.push_back(part.dump());
  for (const auto& entry : nlohmann::json::parse(leaders.scatter(bytes, 0))) {
    begun_[entry[0].get<int64_t>()] = entry[1].get<std::vector<int32_t>>();
  }
}

// In the run directory where this host has one, else a file that goes with the process. Shards are
// merged from their directory, so every leader must see rank 0's.
void Session::open_journal() {
  const comm::HostComm& leaders = mesh_->leaders;
  const bool root = leaders.rank() == 0;
  std::random_device random;
  const std::string nonce = fmt::format("{:08x}{:08x}", random(), random());
  io::JournalWriter::Options journal_options;
  io::File file;
  if (!options_.run_dir.empty()) {
    const std::string path =
        options_.run_dir + "/" + io::journal_name(opening_.attempt, mesh_->at.dp);
    try {
      io::make_directories(options_.run_dir);
      file = io::create_exclusive(path);
      io::sync_directory_of(path);
    } catch (const Error& error) {
      if (root || options_.num_shards > 1) throw;
      spdlog::warn("{}: the answers of this replica are kept in a temporary file until the end",
                   error.what());
    }
  }
  const auto files = leaders.gather(file.is_open() ? file.name() : std::string(), 0);
  for (const std::string& name : files) {
    struct stat status {};
    if (options_.num_shards == 1 || (!name.empty() && ::stat(name.c_str(), &status) == 0)) continue;
    throw Error(ExitCode::kUsage,
                fmt::format("run directory {}: {} does not see the journals of every replica; a "
                            "shard needs a directory that all of its nodes share",
                            options_.run_dir, comm::host_name()));
  }
  if (!file.is_open()) {
    file = io::make_anonymous_file();
    journal_options.durable = false;
  }
  const nlohmann::ordered_json header = {{"schema", 1},
                                         {"tool_version", options_.manifest.tool_version},
                                         {"run", run_id_},
                                         {"nonce", nonce},
                                         {"replica", mesh_->at.dp},
                                         {"host", comm::host_name()},
                                         {"start", io::utc_now()}};
  journal_ = std::make_unique<io::JournalWriter>(
      std::move(file), journal_options,
      header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace mpinfer::job
