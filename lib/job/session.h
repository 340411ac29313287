// Session: a run's data road on every rank. Rank 0 indexes the input and decides whether this start
// begins or resumes; leaders get their rows, feed their engines and journal the answers; rank 0
// gathers them into one ordered file. Collective calls, in this order: constructor, open,
// distribute, generate (on replicas with rows), finish.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lib/comm/mesh.h"
#include "lib/comm/mpi.h"
#include "lib/comm/watch.h"
#include "lib/engine/engine.h"
#include "lib/io/exchange.h"
#include "lib/io/index.h"
#include "lib/io/journal.h"
#include "lib/io/partition.h"
#include "lib/io/progress.h"
#include "lib/io/run_record.h"
#include "lib/job/earlier_results.h"
#include "lib/job/error_budget.h"
#include "lib/job/feeder.h"
#include "lib/job/request_builder.h"
#include "lib/job/result_writer.h"
#include "lib/job/stop_control.h"
#include "lib/text/tokenizer.h"

namespace mpinfer::job {

// Which inputs that cannot be read at any offset are taken from where an earlier start put them.
enum class ReuseSpooled : uint8_t {
  kNone,
  kStandardInput,  // what is a file can be read again
  kAll,            // of the same job: a pipe is empty by now
};

struct JobOptions {
  std::vector<std::string> input = {};
  ReuseSpooled reuse = ReuseSpooled::kStandardInput;
  std::optional<std::string> prompt = {};  // one row instead of input
  std::string output = {};  // "-": standard output; empty with prompt: its text on standard output
  std::string errors_output = {};  // of error rows, where format separates them
  std::string run_dir = {};        // empty: none
  int64_t skip = 0;
  int64_t limit = -1;
  io::PartitionPolicy partition = io::PartitionPolicy::kBalanced;
  FormatOptions format = {};
  int shard = 0;
  int num_shards = 1;
  bool retry_errors = false;
  io::ProgressMode progress = io::ProgressMode::kNone;
  std::optional<ErrorBudget> max_errors = {};
  int index_threads = 1;
  int feeder_threads = 1;
  io::Manifest manifest = {};       // what the caller knows of it
  io::RunRecord* record = nullptr;  // rank 0, where there is a run directory; borrowed
  StopControl* stop = nullptr;      // borrowed; null: nothing stops it from outside
};

// What every rank knows of the input.
struct InputSummary {
  int64_t num_rows = 0;
  int64_t bytes = 0;
  uint64_t hash = 0;
  double mean_prompt_tokens = 0.0;      // estimated
  double mean_completion_tokens = 0.0;  // likewise
  int64_t num_without_max_tokens = 0;
};

enum class Ending : uint8_t { kComplete, kTooManyErrors, kStopped };

class Session {
 public:
  // prompt_field and default_completion_tokens serve the estimates. Collective over world.
  Session(const JobOptions& options, const comm::HostComm& world, const std::string& prompt_field,
          int64_t default_max_tokens);
  ~Session();

  const InputSummary& input() const { return summary_; }
  const std::string& first_line() const {
    return first_line_;
  }  // rank 0; empty: no rows, or too long

  void set_replica_sampling(std::vector<SamplingFields> fields) {  // one a replica
    replica_sampling_ = std::move(fields);
  }
  // identity: everything the answers depend on beside rows. layout: for the manifest. Refuses a run
  // directory of another run. Collective over world.
  io::Opening open(const comm::HostComm& world, const std::map<std::string, std::string>& identity,
                   const std::string& layout);
  // Gives every replica its rows. Collective over the world; mesh is borrowed from here on.
  void distribute(const comm::Mesh& mesh);
  // Rows of this replica, at least (dynamic: what it begins with); 0: it has nothing to do. Equal
  // on its ranks.
  int64_t num_rows() const { return num_rows_; }
  int shard() const { return options_.shard; }
  int num_shards() const { return options_.num_shards; }
  int64_t num_rows_here() const { return num_rows_here_; }  // of this job; leaders
  // Of every replica, on every rank; for the verdict on a lost one.
  const std::vector<comm::ReplicaRows>& replica_rows() const { return replica_rows_; }
  int64_t num_done_before() const { return earlier_.num_done; }  // leaders
  int64_t num_journals_before() const { return earlier_.num_journals; }

  // tokenizer may be null. Collective over a replica with rows.
  engine::EngineStats generate(engine::Generator& engine, const BuilderOptions& builder,
                               const text::Tokenizer* tokenizer);

  // Leaders wait for each other, rank 0 writes the output if every row is done. Collective over the
  // world.
  Ending finish(comm::Watch& watch);

  const ResultCounts& counts() const { return counts_; }  // of this replica, on its leader
  const ResultCounts& earlier_counts() const { return earlier_.counts; }  // this leader's share
  double generate_seconds() const { return generate_seconds_; }
  double gather_seconds() const { return gather_seconds_; }
  double wait_seconds() const { return wait_seconds_; }  // rank 0, for other replicas

 private:
  void spool_inputs();
  void index_input(const std::string& prompt_field, int64_t default_max_tokens);
  void warn_of_near_misses(const char* when) const;
  std::vector<int32_t> deal(int32_t num_replicas);
  std::vector<int32_t> choose_rows(int dp);
  void take_unfinished(const std::vector<int32_t>& owner);
  void open_journal();
  void share_replica_rows();
  NextRange next_range(const engine::Generator& engine);
  StopLevel on_turn(const engine::Generator* engine);
  StopLevel stop_level() const { return options_.stop ? options_.stop->level() : StopLevel::kNone; }
  void flush(bool running);
  void report_progress(const engine::Generator* engine, bool last);
  void watch_progress();
  void wait_for_leaders(comm::Watch& watch);
  void wait_for_all(comm::Watch& watch, const char* what);
  std::vector<io::StoredResult> stored_results(std::vector<io::File>* journals);

  JobOptions options_;
  int rank_;  // in the world
  const comm::Mesh* mesh_ = nullptr;
  std::vector<SamplingFields> replica_sampling_;
  InputSummary summary_;
  std::vector<io::File> spooled_;  // rank 0, nameless
  bool only_root_reads_ = false;
  std::vector<std::string> input_names_;  // as they were given
  io::File prompt_file_;                  // rank 0, for a prompt without a file
  io::InputIndex index_;                  // rank 0, until it is distributed
  std::vector<int64_t> file_bytes_;
  std::vector<int64_t> watched_counts_;  // rank 0
  int64_t first_row_ = 0;
  std::string first_line_;
  io::Opening opening_;
  std::string run_id_;
  uint64_t fingerprint_ = 0;  // of what the answers depend on

  std::vector<comm::ReplicaRows> replica_rows_;

  // Leaders only.
  int64_t num_rows_here_ = 0;  // of all replicas, earlier results included
  EarlierResults earlier_;
  UnfinishedRows begun_;
  io::Rows rows_;
  std::vector<int64_t> starts_;  // dynamic: blocks
  std::unique_ptr<comm::SharedCounter> counter_;
  int64_t next_block_ = -1;         // -1: none left
  bool first_block_taken_ = false;  // dynamic: further ones come from the counter
  std::unique_ptr<io::InputLines> lines_;
  std::unique_ptr<io::JournalWriter> journal_;
  std::unique_ptr<RequestBuilder> builder_;
  std::unique_ptr<ResultWriter> results_;
  std::unique_ptr<Feeder> feeder_;
  std::unique_ptr<io::ProgressExchange> progress_;
  std::unique_ptr<io::ProgressLine> line_;
  std::chrono::steady_clock::time_point last_turn_;
  std::chrono::steady_clock::time_point last_report_;
  std::chrono::steady_clock::time_point last_partials_;
  bool too_many_errors_ = false;  // rank 0
  StopLevel stop_at_last_turn_ = StopLevel::kNone;

  int64_t num_rows_ = 0;
  ResultCounts counts_;
  double generate_seconds_ = 0.0;
  double gather_seconds_ = 0.0;
  double wait_seconds_ = 0.0;
};

}  // namespace mpinfer::job
