// From options and hardware to the planner's questions, the same for run, plan and check.
#pragma once

#include <cstdint>

#include "apps/options.h"
#include "lib/model/config.h"
#include "lib/planner/planner.h"

namespace mpinfer::apps {

// Bytes of host memory that may be planned with: available memory or what the cgroup leaves,
// whichever is less.
int64_t available_host_memory();

// Defaults of the backend for what the options leave open.
planner::PlanRequest make_plan_request(const Options& options, const model::ModelConfig& config,
                                       bool cuda);

// Stochastic rows whose logits exist at once: enough to fill the device.
constexpr int32_t max_logit_rows(bool cuda) {
  return cuda ? 512 : 64;
}

// Number and typical length of the input's rows, estimated from its index; the planner's own guess
// without rows. Throws Error(kInputUnreadable).
void read_lengths(planner::PlanRequest* request, const Options& options,
                  int64_t default_max_tokens);

}  // namespace mpinfer::apps
