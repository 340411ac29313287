#include "lib/io/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "lib/comm/mpi.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/file.h"
#include "lib/io/manifest.h"

namespace mpinfer::io {
namespace {

constexpr int64_t kMaxLockBytes = 65536;

double seconds_of(const timespec& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

std::string this_machine() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  char name[64] = {};
  const ssize_t length = ::readlink("/proc/self/ns/pid", name, sizeof(name) - 1);
  return boot + " " + std::string(name, static_cast<size_t>(std::max<ssize_t>(0, length)));
}

// Field 22 of /proc/<pid>/stat; 0: no such process, or a dead one that nobody has waited for.
int64_t start_of_process(int64_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string line;
  if (!std::getline(file, line)) return 0;
  std::istringstream rest(line.substr(std::min(line.size(), line.rfind(')') + 1)));
  std::string field;
  for (int number = 3; rest >> field; ++number) {
    if (number == 3 && (field == "Z" || field == "X")) return 0;
    if (number == 22) return std::strtoll(field.c_str(), nullptr, 10);
  }
  return 0;
}

std::string new_nonce() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}", random(), random(), static_cast<unsigned>(::getpid()));
}

std::string text_of(const LockHolder& holder) {
  const nlohmann::ordered_json json = {
      {"host", holder.host},        {"machine", holder.machine},
      {"pid", holder.pid},          {"pid_start", holder.pid_start},
      {"job", holder.job},          {"restart_count", holder.restart_count},
      {"start", holder.start},      {"nonce", holder.nonce},
      {"lease_ms", holder.lease_ms}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::optional<LockHolder> parse(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return std::nullopt;
  try {
    LockHolder holder;
    json.at("host").get_to(holder.host);
    json.at("machine").get_to(holder.machine);
    json.at("pid").get_to(holder.pid);
    json.at("pid_start").get_to(holder.pid_start);
    json.at("job").get_to(holder.job);
    json.at("restart_count").get_to(holder.restart_count);
    json.at("start").get_to(holder.start);
    json.at("nonce").get_to(holder.nonce);
    json.at("lease_ms").get_to(holder.lease_ms);
    return holder;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

// The file server's clock, by a file that is touched now; ours where that is not possible.
double now_of(int guard) {
  struct stat status {};
  if (guard >= 0 && ::futimens(guard, nullptr) == 0 && ::fstat(guard, &status) == 0) {
    return seconds_of(status.st_mtim);
  }
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return seconds_of(now);
}

std::optional<LockHolder> read_holder(const std::string& path, int guard) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  std::string text;
  try {
    text = read_whole_file(path, kMaxLockBytes);
  } catch (const Error&) {
    return std::nullopt;  // gone between the two calls
  }
  LockHolder holder = parse(text).value_or(LockHolder{});
  holder.age_seconds = std::max(0.0, now_of(guard) - seconds_of(status.st_mtim));
  return holder;
}

}  // namespace

bool LockHolder::alive() const {
  if (pid == 0) return false;
  if (machine == this_machine()) return start_of_process(pid) == pid_start;
  return age_seconds * 1000.0 < static_cast<double>(lease_ms);
}

std::string LockHolder::description() const {
  if (pid == 0) return "a job whose lock cannot be read";
  return fmt::format("process {} on {}{}, running since {}, last sign of life {:.0f} s ago", pid,
                     printable(host), job.empty() ? "" : ", job " + printable(job),
                     printable(start), age_seconds);
}

std::optional<LockHolder> read_lock(const std::string& directory) {
  return read_holder(directory + "/lock", -1);
}

RunLock::RunLock(const std::string& directory, const LockOptions& options)
    : path_(directory + "/lock"), options_(options), nonce_(new_nonce()) {
  make_directories(directory);
  // Two jobs that find the same stale lock decide one after the other, where flock works; where it
  // does not, the one whose lock stands at the end goes on.
  const std::string guard_path = directory + "/lock.guard";
  const int guard = ::open(guard_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (guard < 0) {
    throw Error(ExitCode::kUsage, fmt::format("run directory {}: cannot be written: {}", directory,
                                              std::generic_category().message(errno)));
  }
  const File closes(guard, guard_path);
  while (::flock(guard, LOCK_EX) != 0 && errno == EINTR) {
  }
  if (const auto holder = read_holder(path_, guard)) {
    const bool requeued = !options.job.empty() && holder->job == options.job &&
                          holder->restart_count < options.restart_count;
    if (holder->alive() && !requeued) {
      throw Error(ExitCode::kUsage,
                  fmt::format("run directory {}: in use by {}; wait for it, or give another output",
                              directory, holder->description()));
    }
    taken_from_ = holder->description();
  }
  LockHolder mine;
  mine.host = comm::host_name();
  mine.machine = this_machine();
  mine.pid = ::getpid();
  mine.pid_start = start_of_process(mine.pid);
  mine.job = options.job;
  mine.restart_count = options.restart_count;
  mine.start = utc_now();
  mine.nonce = nonce_;
  mine.lease_ms = options.lease.count();
  replace_file(path_, text_of(mine));
  const auto holder = read_holder(path_, guard);
  if (!holder) {
    throw Error(ExitCode::kUsage,
                fmt::format("run directory {}: its lock cannot be read back: another job took it "
                            "just now, or the disk fails",
                            directory));
  }
  if (holder->nonce != nonce_) {
    throw Error(ExitCode::kUsage, fmt::format("run directory {}: another job took it just now: {}",
                                              directory, holder->description()));
  }
  thread_ = std::thread([this] { renew(); });
}

RunLock::~RunLock() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
  const auto holder = read_holder(path_, -1);
  if (holder && holder->nonce == nonce_) ::unlink(path_.c_str());
}

void RunLock::renew() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    wake_.wait_for(lock, options_.renew, [this] { return stop_; });
    if (stop_) return;
    lock.unlock();
    const auto holder = read_holder(path_, -1);
    if (holder && holder->nonce != nonce_) {
      lost_ = true;
      return;
    }
    // Only the time is renewed; a lock that somebody deleted is not made again.
    if (holder) ::utimensat(AT_FDCWD, path_.c_str(), nullptr, 0);
    lock.lock();
  }
}

void RunLock::check() const {
  if (!lost_) return;
  const auto holder = read_holder(path_, -1);
  throw Error(ExitCode::kPeerFailure,
              fmt::format("{}: taken over by {}; this job stops, its finished rows are kept", path_,
                          holder ? holder->description() : "another job"));
}

}  // namespace mpinfer::io
