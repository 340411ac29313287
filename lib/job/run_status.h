// What a run directory says of its run, or of the shards in it, to whoever looks from outside: how
// far it is, whether somebody works on it, how it ended. Reads only.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lib/io/manifest.h"
#include "lib/io/run_lock.h"
#include "lib/job/earlier_results.h"

namespace mpinfer::job {

inline constexpr int kUnderWay = 1;  // exit code of status for a live run

struct RunStatus {
  std::string directory;
  int shard = 0;
  int num_shards = 1;
  std::optional<io::Manifest> manifest;  // empty: this shard was not begun
  std::optional<io::LockHolder> holder;  // who works on it now
  std::string state = "missing";         // running, stopped, complete, failed, died
  std::string reason;
  int exit_code = 75;
  int64_t num_rows = 0;  // of this shard; 0: not known
  int64_t num_answered = 0;
  int64_t num_failed = 0;
};

// One entry, or one a shard (those not begun included). Throws Error(kUsage) where there is no run.
std::vector<RunStatus> read_status(const std::string& directory);
// Of all: 1 while one of them is under way, else the worst.
int exit_code_of(const std::vector<RunStatus>& shards);

// Every result in a directory's journals, whatever attempt it is of.
EarlierResults read_all_results(const RunStatus& run);

}  // namespace mpinfer::job
