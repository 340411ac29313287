// Communicator over NCCL for the CUDA backend: one NCCL communicator an axis, its unique id
// broadcast over the axis's HostComm. Non-blocking; errors of peers are polled for and thrown as
// Error(kPeerFailure). A build without NCCL throws Error(kUsage) saying so.
#pragma once

#include <memory>

#include "lib/comm/communicator.h"
#include "lib/comm/mpi.h"
#include "lib/comm/watch.h"

namespace mpinfer::comm {

std::unique_ptr<Communicator> make_nccl_communicator(const HostComm& comm,
                                                     backend::Backend& backend, Watch& watch,
                                                     const char* name, AxisUse use);

}  // namespace mpinfer::comm
