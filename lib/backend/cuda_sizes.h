// Fixed device memory of the CUDA backend beside what its callers allocate.
#pragma once

#include <cstdint>

namespace mpinfer::backend {

inline constexpr int64_t kLogitsTileBytes = int64_t{32}
                                            << 20;  // f32 logits of a vocabulary tile: stays in L2
// Sums of decode attention in parts.
inline constexpr int64_t kSplitPartialFloats = int64_t{32} << 20;
inline constexpr int64_t kSplitCounters = int64_t{64}
                                          << 10;  // one a (sequence, KV head) of a split batch;
                                                  // behind them one a stream, of attention's tasks
inline constexpr int64_t kMostExperts = 1024;
inline constexpr int64_t kExpertCounterBytes = (kMostExperts + 64) * 4;  // a stream's
inline constexpr int64_t kExpertStagingBytes = int64_t{16} << 20;

}  // namespace mpinfer::backend
