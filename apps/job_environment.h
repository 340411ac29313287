// What launchers say by variables: the Slurm job, and DP_RANK and DP_SIZE as vLLM's jobs set them.
// With options.cpp the only reader of the environment.
#pragma once

#include <string>

#include "apps/options.h"
#include "lib/comm/mpi.h"

namespace mpinfer::apps {

// Before MPI starts: a process without a launcher needs no daemon of Open MPI's beside it, whose
// start takes longer than the rest of MPI's, and goes on where /tmp is read-only.
void prepare_world_of_one();

// A value that is no number is none.
Options::Job read_job();

// MPINFER_DP_RANK and MPINFER_DP_SIZE, or VLLM_DP_RANK and VLLM_DP_SIZE, of all ranks.
struct DpVariables {
  int shard = 0;       // equal on every rank: this job is one of several
  int num_shards = 0;  // 0: not that
  int dp = 0;  // different ones that cover 0 … dp − 1: the ranks' dp coordinates; 0: not that
  std::string refusal;  // not empty: what is wrong with them, equal on every rank
  comm::HostComm world;
};
// The world's ranks in the order of their coordinates. Collective.
DpVariables read_dp_variables(comm::HostComm world);

}  // namespace mpinfer::apps
