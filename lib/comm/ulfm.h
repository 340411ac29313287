// Ranks that die while the others go on: User Level Failure Mitigation, as Open MPI 5 has it under
// `mpirun --with-ft ulfm`. Its calls are looked up in the MPI library that is loaded when the
// program runs; without them a lost rank ends the job. The first call that meets a dead rank
// revokes every communicator of the caller and throws Error(kPeerFailure); so do, from then on, the
// calls of all others, wherever they wait. Every living rank unwinds and comes here with the
// communicator that it started from.
#pragma once

#include <vector>

#include "lib/comm/mpi.h"

namespace mpinfer::comm {

// The library can, and the launcher was asked to let it.
bool survives_lost_ranks();

// A rank of world is dead, or somebody has said so: known already, or within seconds.
bool lost_ranks(const HostComm& world, double seconds);

// The bits that every living rank of world sets; all of them call it. Throws Error(kPeerFailure)
// when one does not come within seconds.
int agree(const HostComm& world, int bits, double seconds);

struct Survivors {
  HostComm world;              // in their old order
  std::vector<int> old_ranks;  // of each, in the world before
};
// Collective over the living ranks of world, whose communicators are gone but for this one.
Survivors survivors_of(const HostComm& world);

}  // namespace mpinfer::comm
