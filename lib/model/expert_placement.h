// Expert placement: which place among the ranks of an expert-parallel group each expert of a layer
// has. Without one, expert e is at place e. A run writes one from the rows that chose each expert,
// the next reads it (--expert-placement); a file that is no permutation is refused.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lib/model/config.h"

namespace mpinfer::model {

// Of each layer with experts, heaviest first to the rank that has least and still room (ranks hold
// what expert_part says); layers without rows keep their order. rows: by layer and expert.
ExpertPlacement balance_experts(const std::vector<std::vector<int64_t>>& rows, int32_t num_experts,
                                int ep);

std::string placement_text(const ExpertPlacement& placement, int32_t num_experts);
// Throws Error(kUsage) naming path, layer and what is wrong, also for a model whose router chooses
// among groups of neighbours, which a placement would tear apart.
ExpertPlacement read_placement(const std::string& text, const std::string& path,
                               const ModelConfig& config);

}  // namespace mpinfer::model
