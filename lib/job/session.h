// Session: a run's data road on every rank. Rank 0 indexes the input; leaders get their rows, feed
// their engines and journal the answers; rank 0 gathers them into one ordered file. Collective
// calls, in this order: constructor, distribute, generate (on replicas with rows), finish.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lib/comm/mesh.h"
#include "lib/comm/mpi.h"
#include "lib/engine/engine.h"
#include "lib/io/exchange.h"
#include "lib/io/index.h"
#include "lib/io/journal.h"
#include "lib/io/manifest.h"
#include "lib/io/partition.h"
#include "lib/io/progress.h"
#include "lib/job/error_budget.h"
#include "lib/job/feeder.h"
#include "lib/job/request_builder.h"
#include "lib/job/result_writer.h"
#include "lib/text/tokenizer.h"

namespace mpinfer::job {

struct JobOptions {
  std::vector<std::string> input = {};
  std::optional<std::string> prompt = {};  // one row instead of input
  std::string output = {};  // "-": standard output; empty with prompt: its text on standard output
  std::string errors_output = {};  // of error rows, where format separates them
  std::string run_dir = {};        // empty: none
  int64_t skip = 0;
  int64_t limit = -1;
  io::PartitionPolicy partition = io::PartitionPolicy::kBalanced;
  FormatOptions format = {};
  io::ProgressMode progress = io::ProgressMode::kNone;
  std::optional<ErrorBudget> max_errors = {};
  int index_threads = 1;
  int feeder_threads = 1;
  uint64_t identity =
      0;  // model, tokenizer, seed, dtype: what the answers depend on beside row and sampling
  io::Manifest manifest = {};  // what the caller knows of it
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
  // layout is for the manifest. Gives every replica its rows. Collective over the world; mesh is
  // borrowed from here on.
  void distribute(const comm::Mesh& mesh, const std::string& layout);
  // Rows of this replica, at least (dynamic: what it begins with); 0: it has nothing to do. Equal
  // on its ranks.
  int64_t num_rows() const { return num_rows_; }

  // tokenizer may be null. Collective over a replica with rows.
  engine::EngineStats generate(engine::Engine& engine, const BuilderOptions& builder,
                               const text::Tokenizer* tokenizer);

  // Leaders wait for each other, rank 0 writes the output. Collective over the world. False: the
  // run was stopped by max_errors and there is no output.
  bool finish();
  // Rank 0: the manifest's last state.
  void close_manifest(const std::string& state, int exit_code, const std::string& reason,
                      const ResultCounts& totals, const std::map<std::string, double>& seconds);

  const ResultCounts& counts() const { return counts_; }  // of this replica, on its leader
  double generate_seconds() const { return generate_seconds_; }
  double gather_seconds() const { return gather_seconds_; }
  double wait_seconds() const { return wait_seconds_; }  // rank 0, for other replicas
  std::string journal_path() const { return journal_path_; }

 private:
  void index_input(const std::string& prompt_field, int64_t default_max_tokens);
  void warn_of_near_misses(const char* when) const;
  void begin_manifest(const std::string& layout);
  void open_journal();
  NextRange next_range(const engine::Engine& engine);
  bool on_turn(const engine::Engine* engine);
  void report_progress(const engine::Engine* engine, bool last);
  void watch_progress();
  void wait_for_leaders();

  JobOptions options_;
  int rank_;  // in the world
  const comm::Mesh* mesh_ = nullptr;
  std::vector<SamplingFields> replica_sampling_;
  InputSummary summary_;
  io::File prompt_file_;  // rank 0, for a prompt without a file
  io::InputIndex index_;  // rank 0, until it is distributed
  std::vector<int64_t> file_bytes_;
  std::vector<int64_t> watched_counts_;  // rank 0
  int64_t first_row_ = 0;
  std::string first_line_;

  // Leaders only.
  std::vector<io::Row> rows_;
  std::vector<int64_t> starts_;  // dynamic: blocks
  std::unique_ptr<comm::SharedCounter> counter_;
  int64_t next_block_ = -1;         // -1: none left
  bool first_block_taken_ = false;  // dynamic: further ones come from the counter
  std::unique_ptr<io::InputLines> lines_;
  std::unique_ptr<io::JournalWriter> journal_;
  std::string journal_path_;
  std::unique_ptr<RequestBuilder> builder_;
  std::unique_ptr<ResultWriter> results_;
  std::unique_ptr<Feeder> feeder_;
  std::unique_ptr<io::ProgressExchange> progress_;
  std::unique_ptr<io::ProgressLine> line_;
  std::chrono::steady_clock::time_point last_turn_;
  std::chrono::steady_clock::time_point last_report_;

  int64_t num_rows_ = 0;
  ResultCounts counts_;
  double generate_seconds_ = 0.0;
  double gather_seconds_ = 0.0;
  double wait_seconds_ = 0.0;
};

}  // namespace mpinfer::job
