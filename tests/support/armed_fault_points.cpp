// Fault points of test programs. MPINFER_FAULTS="name:count:action[@rank];…": the count-th time
// that a rank passes the point, it does the action: kill (SIGKILL itself), stop (SIGSTOP), exit
// (3), abort, or lets the call there fail: EIO, ENOSPC, EINTR, short. "count+": that time and every
// later one. A call that fails says so on stderr, so that a sweep knows when it has passed the last
// one. The variable is taken out of the environment before the program looks at it.
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "lib/core/fault_point.h"

namespace mpinfer {
namespace {

struct Fault {
  std::string name;
  std::string action;
  bool for_ever = false;
  std::atomic<int> left = 0;
};

std::vector<Fault*> armed;

int own_rank() {
  const char* text = std::getenv("OMPI_COMM_WORLD_RANK");
  if (text == nullptr) text = std::getenv("SLURM_PROCID");
  return text == nullptr ? 0 : std::atoi(text);
}

[[gnu::constructor]] void arm() {
  const char* text = std::getenv("MPINFER_FAULTS");
  if (text == nullptr) return;
  std::istringstream list(text);
  for (std::string entry; std::getline(list, entry, ';');) {
    std::istringstream parts(entry);
    std::string count;
    auto* fault = new Fault;
    std::getline(parts, fault->name, ':');
    std::getline(parts, count, ':');
    std::getline(parts, fault->action);
    fault->left = std::atoi(count.c_str());
    fault->for_ever = count.ends_with('+');
    const size_t at = fault->action.find('@');
    if (at != std::string::npos) {
      if (std::atoi(fault->action.c_str() + at + 1) != own_rank()) continue;
      fault->action.resize(at);
    }
    armed.push_back(fault);
  }
  ::unsetenv("MPINFER_FAULTS");
}

// What a call is to fail with; 0: the action is another.
int failure_of(const std::string& action) {
  if (action == "EIO") return EIO;
  if (action == "ENOSPC") return ENOSPC;
  if (action == "EINTR") return EINTR;
  return action == "short" ? kShortWrite : 0;
}

}  // namespace

int fault_point(const char* name) {
  for (Fault* fault : armed) {
    if (fault->name != name) continue;
    const int left = --fault->left;
    if (left > 0 || (left < 0 && !fault->for_ever)) continue;
    if (fault->action == "kill") ::kill(::getpid(), SIGKILL);
    if (fault->action == "stop") ::kill(::getpid(), SIGSTOP);
    if (fault->action == "exit") ::_exit(3);
    if (fault->action == "abort") std::abort();
    if (const int failure = failure_of(fault->action); failure != 0) {
      if (left == 0) std::fprintf(stderr, "fault %s %s\n", name, fault->action.c_str());
      return failure;
    }
  }
  return 0;
}

}  // namespace mpinfer
