// The cores of this rank. mpirun binds a rank to one core at two ranks or fewer; the rank's share
// of the cores that the launcher itself may use is what it should compute on. Without a launcher
// the cores this process was given (taskset, numactl) stay as they are.
#pragma once

#include <string>

#include "lib/comm/mpi.h"

namespace mpinfer::comm {

struct CoreShare {
  int num_cores = 1;
  std::string description;  // "cores 0-7 of 16 (widened from 1)"
};

// Collective over host (the ranks of one node). Deals the launcher's cores, at most the cgroup's
// quota, in contiguous blocks; widens this process's affinity to its block. More ranks
// than cores: ranks share, one core each.
CoreShare take_core_share(const HostComm& host);

}  // namespace mpinfer::comm
