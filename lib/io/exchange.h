// What replica leaders and rank 0 tell each other outside the engine: shares of the index out,
// lines to leaders that do not see the input, progress back. Every function is collective over the
// leaders; rank 0 of them is rank 0 of the world. Memory is bounded: rows travel in windows.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/comm/mpi.h"
#include "lib/io/file.h"
#include "lib/io/index.h"
#include "lib/io/partition.h"

namespace mpinfer::io {

// This leader's rows. all and owner (one a row) are rank 0's; what is not its own leaves it.
Rows scatter_rows(const comm::HostComm& leaders, Rows all, const std::vector<int32_t>& owner,
                  int64_t window_rows = 1 << 13);

// Rank 0's rows and the starts of their blocks (guided_blocks), on every leader.
void broadcast_blocks(const comm::HostComm& leaders, Rows* rows, std::vector<int64_t>* starts);

// The input as this leader reads it: its own descriptors, or a local copy of the lines that rank 0
// sent.
class InputLines {
 public:
  // rows: those this leader will read; their offsets change when the lines come from rank 0. Rank 0
  // must be able to read.
  InputLines(const comm::HostComm& leaders, const std::vector<std::string>& paths,
             const std::vector<int64_t>& expected_bytes, Rows* rows,
             int64_t round_bytes = int64_t{32} << 20, bool can_read = true);

  // May be called from several threads. Throws Error(kUsage) when the line changed.
  std::string read(const RowEntry& row) const;
  const std::string& path(const RowEntry& row) const {
    return names_[static_cast<size_t>(row.file)];
  }
  // Names for messages, where they are not the paths.
  void set_names(std::vector<std::string> names) { names_ = std::move(names); }
  bool copied() const { return copy_.is_open(); }

 private:
  void receive_lines(const comm::HostComm& leaders, Rows* rows, int64_t round_bytes);

  std::vector<std::string> names_;
  std::vector<File> files_;
  File copy_;
};

struct ReplicaProgress {
  int64_t num_rows = 0;  // of its share, as far as it knows
  int64_t num_answered = 0;
  int64_t num_failed = 0;
  int64_t num_waiting = 0;
  int64_t num_running = 0;
  int64_t kv_blocks_used = 0;
  int64_t kv_blocks_total = 0;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t finished = 0;    // 1: the replica has no more work
  int64_t stop_level = 0;  // what its own signals ask for
};

// Nonblocking reports of the leaders to rank 0.
class ProgressExchange {
 public:
  explicit ProgressExchange(const comm::HostComm& leaders);
  // Dropped while the report before is still under way.
  void post(const ReplicaProgress& progress);
  // The last report; returns when it has left. Rank 0 only keeps it.
  void post_last(const ReplicaProgress& progress);
  // Rank 0: takes what has come.
  void collect();
  const std::vector<ReplicaProgress>& replicas() const { return replicas_; }
  bool all_finished() const;

  // Rank 0 asks every leader, itself included, to stop at a level (0: no; higher: sooner); the
  // leaders look for it.
  void request_stop(int level);
  int stop_requested();

 private:
  const comm::HostComm& leaders_;
  std::vector<ReplicaProgress> replicas_;
  ReplicaProgress outgoing_;
  std::unique_ptr<comm::HostRequest> under_way_;
  int stop_ = 0;
  std::deque<int> sent_levels_;  // buffers of stops_
  std::vector<std::unique_ptr<comm::HostRequest>> stops_;
};

}  // namespace mpinfer::io
