// Decode rows of a plan whose contexts begin with the same KV blocks, so that attention may read
// those once a step for all of them. A pure function of the plan.
#pragma once

#include <vector>

#include "lib/backend/backend.h"
#include "lib/engine/sequence.h"

namespace mpinfer::engine {

// Runs of neighbouring decode rows (the scheduler admits rows of one beginning together), at least
// kLeastMembers that share at least kLeastTokens; a run takes a member that shares less only if
// the tokens saved grow. Blocks that a window has freed are shared by nobody.
std::vector<backend::PrefixGroup> find_prefix_groups(const StepPlan& plan, size_t cache_group,
                                                     int32_t block_size);

inline constexpr int32_t kLeastMembers = 4;
inline constexpr int32_t kLeastTokens = 128;

}  // namespace mpinfer::engine
