// The commands. Each returns the exit code of INTERFACE §5 or throws Error; run is collective over
// the world, the others are rank 0's.
#pragma once

#include "apps/options.h"
#include "lib/comm/mpi.h"

namespace mpinfer::apps {

int run_command(const Options& options, comm::HostComm world);
int plan_command(const Options& options, int world_size);
int check_command(const Options& options, int world_size);
int tokenize_command(const Options& options);

}  // namespace mpinfer::apps
