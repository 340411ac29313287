// In-process test double: one communicator a thread, the same sums in the same order as the MPI
// one.
#pragma once

#include <memory>
#include <vector>

#include "lib/comm/communicator.h"

namespace mpinfer::comm {

// size communicators that meet in this process; each is used by one thread. backends[i] allocates
// for rank i.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(
    const std::vector<backend::Backend*>& backends);

}  // namespace mpinfer::comm
