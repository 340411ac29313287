#include "lib/comm/ulfm.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>

#include "lib/comm/mpi_handle.h"
#include "lib/comm/pause.h"
#include "lib/core/error.h"

namespace mpinfer::comm {
namespace {

using Clock = std::chrono::steady_clock;

// Of Open MPI 5's mpi.h, whose numbers stay as long as the library's soname.
constexpr int kProcFailed = 75;
constexpr int kProcFailedPending = 76;
constexpr int kRevoked = 77;
constexpr int kFaultToleranceKey = 12;  // MPI_FT, a predefined attribute: 1 under --with-ft

// A rank that cannot leave what it was doing, because its device hangs, is lost too: it ends by a
// signal, which the launcher tells the others; they wait for it in agree().
constexpr unsigned kSecondsToUnwind = 60;

struct Calls {
  int (*revoke)(MPI_Comm) = nullptr;
  int (*shrink)(MPI_Comm, MPI_Comm*) = nullptr;
  int (*failure_ack)(MPI_Comm) = nullptr;
  int (*start_agree)(MPI_Comm, int*, MPI_Request*) = nullptr;
  bool usable = false;
};

template <class Call>
bool look_up(const char* name, Call* call) {
  *call = reinterpret_cast<Call>(::dlsym(RTLD_DEFAULT, name));
  return *call != nullptr;
}

const Calls& calls() {
  static const Calls found = [] {
    Calls c;
    c.usable = look_up("MPIX_Comm_revoke", &c.revoke) && look_up("MPIX_Comm_shrink", &c.shrink) &&
               look_up("MPIX_Comm_failure_ack", &c.failure_ack) &&
               look_up("MPIX_Comm_iagree", &c.start_agree);
    if (!c.usable) return c;
    int* value = nullptr;
    int given = 0;
    const int status =
        MPI_Comm_get_attr(MPI_COMM_WORLD, kFaultToleranceKey, static_cast<void*>(&value), &given);
    c.usable = status == MPI_SUCCESS && given != 0 && value != nullptr && *value == 1;
    return c;
  }();
  return found;
}

// Of the main thread, like all of MPI. Communicators that somebody may wait on.
std::set<MPI_Comm> shared;
bool loss_noted = false;  // and not gone on from
bool has_lost = false;

bool is_loss(int status) {
  int error_class = MPI_SUCCESS;
  MPI_Error_class(status, &error_class);
  return error_class == kProcFailed || error_class == kProcFailedPending || error_class == kRevoked;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

bool survives_lost_ranks() {
  return calls().usable;
}

void wait_until_made(MPI_Comm comm) {
  if (!survives_lost_ranks()) return;
  MPI_Request barrier = MPI_REQUEST_NULL;
  MPINFER_MPI(MPI_Ibarrier(comm, &barrier));
  int done = 0;
  for (const Pause pause; true; pause()) {
    const KeepsCore keeps_core;
    MPINFER_MPI(MPI_Test(&barrier, &done, MPI_STATUS_IGNORE));
    if (done != 0) return;
    // Who has met a loss has revoked these, and does not come.
    for (const MPI_Comm other : shared) {
      int waiting = 0;
      MPINFER_MPI(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, other, &waiting, MPI_STATUS_IGNORE));
    }
  }
}

void keep_in_mind(MPI_Comm comm, int size) {
  if (size > 1 && survives_lost_ranks()) shared.insert(comm);
}

void forget(MPI_Comm comm) {
  shared.erase(comm);
}

void note_loss(int status) {
  if (!survives_lost_ranks() || !is_loss(status)) return;
  if (!loss_noted) ::alarm(kSecondsToUnwind);
  loss_noted = true;
  has_lost = true;
  for (const MPI_Comm comm : shared) calls().revoke(comm);
  shared.clear();
}

bool has_lost_ranks() {
  return has_lost;
}

void abandon(std::span<MPI_Request> requests) {
  if (!loss_noted) return;
  constexpr double kPatience = 1.0;
  const auto start = Clock::now();
  for (MPI_Request& request : requests) {
    int done = 0;
    while (request != MPI_REQUEST_NULL && done == 0 && seconds_since(start) < kPatience) {
      if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
    }
  }
}

bool lost_ranks(const HostComm& world, double seconds) {
  const auto start = Clock::now();
  while (!loss_noted && seconds_since(start) < seconds) {
    int waiting = 0;
    note_loss(
        MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, world.handle().comm, &waiting, MPI_STATUS_IGNORE));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return loss_noted;
}

int agree(const HostComm& world, int bits, double seconds) {
  ::alarm(0);
  const auto start = Clock::now();
  calls().failure_ack(world.handle().comm);
  MPI_Request request = MPI_REQUEST_NULL;
  MPINFER_MPI(calls().start_agree(world.handle().comm, &bits, &request));
  while (true) {
    int done = 0;
    const int status = MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    // A rank that died meanwhile is told as an error beside the result.
    if (status != MPI_SUCCESS && !is_loss(status)) MPINFER_MPI(status);
    if (done != 0 || status != MPI_SUCCESS) return bits;
    if (seconds_since(start) > seconds) {
      throw Error(ExitCode::kPeerFailure,
                  fmt::format("rank {} on {}: {:.0f} s after a rank was lost not every living rank "
                              "has come to go on",
                              world.rank(), host_name(), seconds));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

Survivors survivors_of(const HostComm& world) {
  const MPI_Comm before = world.handle().comm;
  MPI_Comm comm = MPI_COMM_NULL;
  MPINFER_MPI(calls().shrink(before, &comm));
  loss_noted = false;
  Survivors survivors;
  survivors.world = HostComm(std::make_unique<HostComm::Handle>(comm));
  std::vector<int> ranks(static_cast<size_t>(survivors.world.size()));
  for (size_t i = 0; i < ranks.size(); ++i) ranks[i] = static_cast<int>(i);
  survivors.old_ranks.resize(ranks.size());
  MPI_Group old_group = MPI_GROUP_NULL;
  MPI_Group new_group = MPI_GROUP_NULL;
  MPINFER_MPI(MPI_Comm_group(before, &old_group));
  MPINFER_MPI(MPI_Comm_group(comm, &new_group));
  MPINFER_MPI(MPI_Group_translate_ranks(new_group, static_cast<int>(ranks.size()), ranks.data(),
                                        old_group, survivors.old_ranks.data()));
  MPI_Group_free(&old_group);
  MPI_Group_free(&new_group);
  return survivors;
}

}  // namespace mpinfer::comm
