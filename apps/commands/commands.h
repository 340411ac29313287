// The commands. Each returns the exit code of INTERFACE §5 or throws Error; run is collective over
// the world, the others are rank 0's.
#pragma once

#include <functional>
#include <string>

#include "apps/options.h"
#include "lib/comm/mpi.h"

namespace mpinfer::apps {

// What a rank still does for its run once an error has ended it; main calls it.
struct LastWords {
  std::function<void(int exit_code, const std::string& what)> say;
};

int run_command(const Options& options, comm::HostComm world, LastWords& last_words);
int plan_command(const Options& options, int world_size);
int check_command(const Options& options, int world_size);
int tokenize_command(const Options& options);
int merge_command(const Options& options);
int status_command(const Options& options);

}  // namespace mpinfer::apps
