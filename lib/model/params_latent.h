// The rows of the parameter table that latent attention has in the place of q, k and v.
#pragma once

#include <string>
#include <vector>

#include "lib/model/params.h"

namespace mpinfer::model {

// at: "model.layers.N.self_attn."
void add_latent_attention(const ModelConfig& config, int32_t layer, const std::string& at,
                          std::vector<Parameter>& table);
void add_latent_targets(const ModelConfig& config, int64_t num_heads, int32_t layer,
                        std::vector<Target>& targets);
// Of a parameter whose rule is one of kLatent…; heads: the rank's.
std::vector<Piece> latent_pieces(const ModelConfig& config, const Part& heads,
                                 const Parameter& parameter);

}  // namespace mpinfer::model
