// Normal numbers by place: the elements of a tensor that is drawn, not read, so that it is the same
// however it is cut. Four a Philox block (Box-Muller), block index = position / 4.
#pragma once

#include <cstdint>

namespace mpinfer {

// out[0 … count) = elements [begin, begin + count) of N(0, deviation) under (seed, tensor).
void fill_normal(float* out, uint64_t seed, uint64_t tensor, int64_t begin, int64_t count,
                 float deviation);

}  // namespace mpinfer
