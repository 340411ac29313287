// RunRecord: what rank 0 keeps of a run in its directory: the lock, the manifest, the hash of every
// input row, and the decision whether a start begins, resumes or has nothing to do. It refuses a
// directory that holds another run, naming the first difference. Journals are named here; leaders
// write them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "lib/io/index.h"
#include "lib/io/manifest.h"
#include "lib/io/run_lock.h"

namespace mpinfer::io {

enum class ResumeMode : uint8_t { kAuto, kNever, kRequire };
// Throws Error(kUsage) for another name.
ResumeMode resume_mode(std::string_view name);

struct ResumePolicy {
  ResumeMode mode = ResumeMode::kAuto;
  bool overwrite = false;
  bool retry_errors = false;
  std::string overwrite_command = {};  // what to type to replace the run, for messages
};

enum class StartKind : uint8_t { kFresh, kResumed, kAlreadyComplete };

// Equal on all ranks once it is broadcast.
struct Opening {
  StartKind kind = StartKind::kFresh;
  int attempt = 1;
  int exit_code = 0;    // kAlreadyComplete: of that run
  int64_t created = 0;  // start of the first attempt, seconds since 1970
};

std::string journal_name(int attempt, int replica);  // journal-0001-r00000.log
inline constexpr std::string_view kJournalPrefix = "journal-";

// The name of the first value that differs and both values; empty: all are equal.
std::string first_difference(const std::map<std::string, std::string>& before,
                             const std::map<std::string, std::string>& now);

class RunRecord {
 public:
  // Before the model is read: refuses what can be refused by looking at the directory and the
  // output, then takes the lock. Throws Error(kUsage).
  RunRecord(const std::string& directory, const std::string& output, const ResumePolicy& policy,
            const LockOptions& lock);

  // now: all but attempts and counts. index: all rows, to find the first one that changed. Begins
  // an attempt in the manifest unless there is nothing to do. Throws Error(kUsage).
  Opening open(const Manifest& now, const InputIndex& index, const Attempt& attempt);

  // Changes the manifest and writes it. Any thread.
  void change(const std::function<void(Manifest&)>& change);
  // Ends the attempt. The code of a verdict that a rank left in the directory goes first.
  void close(const std::string& state, int exit_code, const std::string& reason);
  Manifest manifest() const;
  // Throws Error(kPeerFailure) once another job has taken over.
  void check_lock() const { lock_->check(); }

 private:
  void clear();
  void refuse_other_run(const Manifest& now, const InputIndex& index) const;
  std::string changed_row(const InputIndex& index) const;
  int next_attempt() const;

  std::string directory_;
  ResumePolicy policy_;
  std::optional<Manifest> earlier_;
  std::unique_ptr<RunLock> lock_;
  mutable std::mutex mutex_;
  Manifest manifest_;
  bool opened_ = false;
};

// What a rank that fails leaves in the directory, since rank 0 may be killed before it hears of it.
struct Verdict {
  int exit_code = 0;
  std::string what;
};
void leave_verdict(const std::string& directory, int attempt, int rank, const Verdict& verdict);
std::optional<Verdict> read_verdict(const std::string& directory, int attempt);

}  // namespace mpinfer::io
