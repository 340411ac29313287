// For tests of communicators of GPUs, a rank each.
#pragma once

#include "lib/backend/cuda_backend.h"
#include "lib/comm/mpi.h"
#include "lib/comm/watch.h"
#include "tests/support/catch.h"

namespace mpinfer::comm {

inline WatchOptions patient(const HostComm& world) {
  return {.first_seconds = 100, .step_seconds = 100, .rank = world.rank(), .host = host_name()};
}

// One for each of several ranks; says so on rank 0 otherwise.
inline bool has_gpus(const HostComm& world) {
  if (world.size() > 1 && backend::cuda_device_count() >= world.size()) return true;
  if (world.rank() == 0) WARN("fewer CUDA devices than ranks: skipped");
  return false;
}

}  // namespace mpinfer::comm
