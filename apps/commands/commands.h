// The commands. Each returns the exit code of INTERFACE §5 or throws Error; run is collective over
// the world, the others are rank 0's. A launcher takes any rank's code for a failure: only rank 0
// speaks, the others return 0.
#pragma once

#include <functional>
#include <string>

#include "apps/options.h"
#include "lib/comm/mpi.h"

namespace mpinfer::apps {

// What a rank still does for its run once an error has ended it; main calls it.
struct LastWords {
  std::function<void(int exit_code, const std::string& what)> say;
  // Every living rank ends for the same reason: none has to end the others.
  bool together = false;
};

int run_command(const Options& options, comm::HostComm world, LastWords& last_words);
int plan_command(const Options& options, int world_size);
int check_command(const Options& options, int world_size);
int tokenize_command(const Options& options);
int merge_command(const Options& options);
int status_command(const Options& options);

}  // namespace mpinfer::apps
