// One start of a run on the ranks there are, and what it leaves for the next one of the same job,
// which goes on without ranks that were lost.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "apps/commands/commands.h"
#include "apps/options.h"
#include "lib/comm/mesh.h"
#include "lib/comm/mpi.h"
#include "lib/io/run_record.h"
#include "lib/job/report.h"
#include "lib/job/stop_control.h"

namespace mpinfer::apps {

struct Course {
  bool opened = false;  // an attempt has begun in the run directory; the rest is known from then on
  comm::Layout layout;
  std::string simd;           // empty on CUDA
  int64_t max_model_len = 0;  // of the plan
  std::vector<job::LostRank> lost;
  std::shared_ptr<io::RunRecord> record;  // of the start under way, where it is kept
};

// Collective over world. The exit code is rank 0's, 0 on the others.
int start_run(const Options& options, comm::HostComm world, job::StopControl& stop, Course& course,
              LastWords& last_words);

}  // namespace mpinfer::apps
