#include "lib/comm/affinity.h"

#include <fmt/core.h>
#include <sched.h>

#include <algorithm>
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

std::vector<int> current_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return {0};
  return cores_in(set);
}

void bind_to(const std::vector<int>& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) CPU_SET(static_cast<size_t>(core), &set);
  sched_setaffinity(0, sizeof(set), &set);
}

// What the kernel lets this process have at most: every core asked for, the cpuset answers.
std::vector<int> allowed_cores() {
  const std::vector<int> before = current_cores();
  cpu_set_t all;
  CPU_ZERO(&all);
  for (size_t core = 0; core < CPU_SETSIZE; ++core) CPU_SET(core, &all);
  if (sched_setaffinity(0, sizeof(all), &all) != 0) return before;
  const std::vector<int> allowed = current_cores();
  bind_to(before);
  return allowed;
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
  const std::vector<int> before = current_cores();
  std::vector<int> allowed = allowed_cores();
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
