// The parts of one rank of a replica with rows, built in the order of the include rule: what turns
// requests into completions. A test program brings a stand-in that needs no model.
#pragma once

#include <memory>

#include "apps/commands/run_setup.h"
#include "apps/options.h"
#include "lib/comm/mesh.h"
#include "lib/comm/watch.h"
#include "lib/engine/engine.h"
#include "lib/model/config.h"
#include "lib/planner/planner.h"

namespace mpinfer::apps {

// Everything is borrowed; grammars: null without a tokenizer. Reads the weights; collective over
// the replica.
std::unique_ptr<engine::Generator> make_replica(const Options& options,
                                                const model::ModelConfig& config,
                                                const planner::Plan& plan, const comm::Mesh& mesh,
                                                Device& device, comm::Watch& watch,
                                                TokenGrammars* grammars);

}  // namespace mpinfer::apps
