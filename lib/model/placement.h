// Placement: the memory of every weight that a rank holds, in one allocation, and the way from a
// loaded target to its member of StageWeights.
#pragma once

#include <vector>

#include "lib/model/loader.h"
#include "lib/model/params.h"

namespace mpinfer::model {

// Memory of one target: packed weights, or a vector that is collected here and uploaded at the end.
struct Placed {
  Target target;
  backend::WeightStack weight = {};  // of a target of one weight: the first alone
  void* device = nullptr;
  std::vector<float> vector = {};

  backend::Weight weight_of(int64_t index) const { return weight.at(index); }
};

// Allocates out.memory and fills out.bytes.
std::vector<Placed> place_weights(backend::Backend& backend, const ModelConfig& config,
                                  const ShardOf& shard, StageWeights& out);
void set_slot(StageWeights& out, const Placed& placed);

}  // namespace mpinfer::model
