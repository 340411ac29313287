// Rotary position tables: cos and sin for every position, NeoX pairing (d, d + rotary_dim / 2).
// Kinds: default, linear, llama3, YaRN, LongRoPE.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/model/config.h"

namespace mpinfer::model {

// [rotary_dim / 2] angles per position, after scaling. LongRoPE's depend on how far contexts may
// reach: beyond the original maximum every position takes the long factors.
std::vector<float> inverse_frequencies(const RopeConfig& rope, int64_t max_positions);

// [max_positions, rotary_dim]: first half cos, second half sin, both times attention_factor.
std::vector<float> rope_table(const RopeConfig& rope, int64_t max_positions);

}  // namespace mpinfer::model
