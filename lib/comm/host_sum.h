// Sums that must come out equal whatever the transport: pieces are added in rank order, element by
// element.
#pragma once

#include <cstdint>

#include "lib/core/dtype.h"

namespace mpinfer::comm {

// out[i] = parts[0][i] + parts[1][i] + … in f32, rounded once to dtype; parts are num_parts arrays
// of count elements, part_stride bytes apart. f32 or bf16. out may be parts.
void sum_in_rank_order(void* out, const void* parts, int num_parts, int64_t part_stride,
                       DType dtype, int64_t count);

// The share of rank in count elements cut into size nearly equal pieces: [begin, begin + length).
struct Share {
  int64_t begin = 0;
  int64_t length = 0;
};
Share share_of(int64_t count, int size, int rank);

}  // namespace mpinfer::comm
