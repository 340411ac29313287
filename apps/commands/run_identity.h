// What the answers of a run depend on beside its rows, by name: a run goes on only where all of it
// is as it was, whatever the layout.
#pragma once

#include <map>
#include <string>

#include "apps/commands/run_setup.h"
#include "apps/options.h"
#include "lib/job/request_builder.h"
#include "lib/job/result_format.h"
#include "lib/model/config.h"
#include "lib/planner/planner.h"

namespace mpinfer::apps {

struct IdentityParts {
  const model::ModelConfig& config;
  const ModelIdentity& model;
  const Device& device;
  const planner::Plan& plan;
  const job::BuilderOptions& rows;
  const job::FormatOptions& lines;
};

// Every option that was given counts, unless it is known not to change an answer.
std::map<std::string, std::string> run_identity(const Options& options, const IdentityParts& parts);

}  // namespace mpinfer::apps
