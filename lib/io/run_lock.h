// The lock of a run directory: one job at a time. A file "lock" says who holds it (host, process,
// Slurm job); a thread renews it. A lock whose process is gone, whose Slurm job was requeued, or
// that was not renewed for a lease is taken over. A second job is refused, naming the holder.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

namespace mpinfer::io {

struct LockOptions {
  std::string job = {};       // Slurm job id, or empty
  int64_t restart_count = 0;  // of that job
  std::chrono::milliseconds renew{5000};
  std::chrono::milliseconds lease{60000};
};

struct LockHolder {
  std::string host;
  std::string machine;  // boot and process namespace: where pid means something
  int64_t pid = 0;
  int64_t pid_start = 0;  // in clock ticks since boot: a pid may be used again
  std::string job;
  int64_t restart_count = 0;
  std::string start;
  std::string nonce;
  int64_t lease_ms = 60000;
  double age_seconds = 0.0;  // since it was renewed

  // The process may still be there.
  bool alive() const;
  std::string description() const;
};

// The holder as the file says; empty: no lock. A lock that cannot be understood is one without a
// live holder.
std::optional<LockHolder> read_lock(const std::string& directory);

class RunLock {
 public:
  // Creates the directory. Throws Error(kUsage) naming a live holder.
  RunLock(const std::string& directory, const LockOptions& options);
  ~RunLock();  // gives it back if it is still ours
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  // Throws Error(kPeerFailure) once another job has taken over.
  void check() const;
  const std::string& taken_from() const { return taken_from_; }  // empty: nobody

 private:
  void renew();

  std::string path_;
  LockOptions options_;
  std::string nonce_;
  std::string taken_from_;
  std::atomic<bool> lost_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace mpinfer::io
