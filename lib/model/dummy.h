// Weights for --load-format dummy: N(0, 0.02) by (seed, parameter name, position), so that a tensor
// is the same however it is cut.
#pragma once

#include <cstdint>
#include <string_view>

namespace mpinfer::model {

// out[0 … count) = elements [begin, begin + count) of the row-major tensor called name.
void fill_normal(float* out, uint64_t seed, std::string_view name, int64_t begin, int64_t count);

}  // namespace mpinfer::model
