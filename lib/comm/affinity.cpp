#include "lib/comm/affinity.h"

#include <fmt/core.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <sstream>
#include <vector>

namespace mpinfer::comm {
namespace {

std::vector<int> cores_in(const cpu_set_t& set) {
  std::vector<int> cores;
  for (size_t core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(static_cast<int>(core));
  }
  return cores;
}

// Of a process, 0 for this one; empty if it cannot be read.
std::vector<int> cores_of(pid_t process) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(process, sizeof(set), &set) != 0) return {};
  return cores_in(set);
}

void bind_to(const std::vector<int>& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) CPU_SET(static_cast<size_t>(core), &set);
  sched_setaffinity(0, sizeof(set), &set);
}

struct Process {
  std::string name;
  pid_t parent = 0;
};

// Of /proc/PID/stat: "PID (name) state parent …"; the name may hold anything but ends at the last
// parenthesis.
Process read_process(pid_t process) {
  std::ifstream file(fmt::format("/proc/{}/stat", process));
  std::string text;
  std::getline(file, text);
  const size_t begin = text.find('(');
  const size_t end = text.rfind(')');
  if (begin == std::string::npos || end == std::string::npos) return {};
  Process found{.name = text.substr(begin + 1, end - begin - 1)};
  std::istringstream rest(text.substr(end + 1));
  std::string state;
  rest >> state >> found.parent;
  return found;
}

// The launcher's own cores, which hold no binding of ranks; those of this process where none is
// found above it, or where it has not them all.
std::vector<int> allowed_cores(const std::vector<int>& own) {
  static constexpr std::array kLaunchers = {
      "mpirun", "mpiexec", "orterun",         "orted",         "prterun",
      "prted",  "prte",    "hydra_pmi_proxy", "mpiexec.hydra", "slurmstepd"};
  constexpr int kMostSteps = 6;  // wrappers between the launcher and this process
  pid_t process = getppid();
  for (int step = 0; step < kMostSteps && process > 1; ++step) {
    const Process found = read_process(process);
    if (std::find(kLaunchers.begin(), kLaunchers.end(), found.name) != kLaunchers.end()) {
      std::vector<int> cores = cores_of(process);
      return std::includes(cores.begin(), cores.end(), own.begin(), own.end()) ? cores : own;
    }
    process = found.parent;
  }
  return own;
}

// cgroup v2 quota in cores, 0 if there is none.
int quota_cores() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 0;
  std::istringstream number(quota);
  double micros = 0;
  if (!(number >> micros)) return 0;
  return std::max(1, static_cast<int>(std::floor(micros / period + 0.5)));
}

std::string ranges(const std::vector<int>& cores) {
  std::string out;
  for (size_t i = 0; i < cores.size();) {
    size_t last = i;
    while (last + 1 < cores.size() && cores[last + 1] == cores[last] + 1) ++last;
    out += fmt::format("{}{}", out.empty() ? "" : ",", cores[i]);
    if (last > i) out += fmt::format("-{}", cores[last]);
    i = last + 1;
  }
  return out;
}

}  // namespace

CoreShare take_core_share(const HostComm& host) {
  std::vector<int> before = cores_of(0);
  if (before.empty()) before = {0};
  std::vector<int> allowed = allowed_cores(before);
  // Under Slurm each task may have a cpuset of its own: then the share is already dealt.
  const bool own_cpuset =
      host.all_reduce_sum(static_cast<int64_t>(allowed.size())) !=
          int64_t{host.size()} * static_cast<int64_t>(allowed.size()) ||
      host.all_reduce_min(allowed.front()) != host.all_reduce_max(allowed.front());
  const int quota = quota_cores();
  if (quota > 0 && static_cast<size_t>(quota) < allowed.size())
    allowed.resize(static_cast<size_t>(quota));
  const auto num_allowed = static_cast<int>(allowed.size());
  std::vector<int> mine = allowed;
  if (!own_cpuset && host.size() > 1) {
    const int begin = num_allowed * host.rank() / host.size();
    const int end = num_allowed * (host.rank() + 1) / host.size();
    mine = end > begin ? std::vector<int>(allowed.begin() + begin, allowed.begin() + end)
                       : std::vector<int>{allowed[static_cast<size_t>(host.rank() % num_allowed)]};
  }
  bind_to(mine);
  CoreShare share;
  share.num_cores = static_cast<int>(mine.size());
  share.description = fmt::format(
      "cores {} of {}{}", ranges(mine), num_allowed,
      before.size() < mine.size() ? fmt::format(" (widened from {})", before.size()) : "");
  return share;
}

}  // namespace mpinfer::comm
