// Communicator over host memory for the CPU backend. Sums run in rank order whatever the message
// size: each rank receives everybody's piece of its share, adds, and the shares are gathered. Every
// wait polls under the watch's deadline and gives the core away, since ranks may share it.
#pragma once

#include <memory>

#include "lib/comm/communicator.h"
#include "lib/comm/mpi.h"
#include "lib/comm/watch.h"

namespace mpinfer::comm {

// name: the axis, for the deadline's report ("tp", "pp"); must be a literal. comm is duplicated.
// Size 1 gives the communicator of one.
std::unique_ptr<Communicator> make_mpi_communicator(const HostComm& comm, backend::Backend& backend,
                                                    Watch& watch, const char* name, AxisUse use);

}  // namespace mpinfer::comm
