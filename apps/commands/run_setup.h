// What run decides before weights are read: refusals, the device of each rank, the common SIMD
// target, the plan, and that all ranks see the same program and model.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "apps/options.h"
#include "lib/backend/backend.h"
#include "lib/comm/mesh.h"
#include "lib/comm/mpi.h"
#include "lib/io/run_record.h"
#include "lib/job/sampling_fields.h"
#include "lib/job/session.h"
#include "lib/model/config.h"
#include "lib/planner/planner.h"

namespace mpinfer::apps {

// Rank 0: looks at output, run directory and input names before anything is read, and takes the run
// directory's lock. Null: the run keeps nothing. Throws Error(kUsage).
std::unique_ptr<io::RunRecord> open_run_record(const Options& options);
// Where the run keeps its journals; empty: nowhere (standard output, a device).
std::string run_directory(const Options& options);

struct Device {
  std::unique_ptr<backend::Backend> backend;
  bool cuda = false;
  int threads = 1;    // of the CPU share of this rank
  std::string cores;  // "cores 0-7 of 16 (widened from 1)"
  std::string simd;   // common to all ranks; empty on CUDA
  int num_hosts = 1;
  int64_t memory = 0;  // bytes to plan with, the least of all ranks
};
// Collective over world. Throws Error(kUsage) where CUDA is asked for and devices are too few.
Device open_device(const Options& options, const comm::HostComm& world);

// A rank without the model directory that rank 0 has: Error(kUsage) on every rank, naming it and
// its host.
void require_model_everywhere(const Options& options, const comm::HostComm& world);

struct ModelIdentity {
  uint64_t checkpoint = 0;  // 0 for load-format dummy
  uint64_t tokenizer = 0;   // 0: there is none
};
// Every rank must run the same binary over the same model. Collective.
void require_same_everywhere(const comm::HostComm& world, const ModelIdentity& identity,
                             const std::string& simd);

// Directory of the tokenizer; empty when there is no tokenizer.json.
std::string tokenizer_directory(const Options& options);

// Flags over generation_config over nothing; the flags' ranges are checked. Throws Error(kUsage).
job::SamplingFields sampling_defaults(const Options& options, const model::ModelConfig& config);

planner::Plan plan_run(const Options& options, const model::ModelConfig& config,
                       const Device& device, const comm::HostComm& world,
                       const job::InputSummary& input);

}  // namespace mpinfer::apps
