// Partition policies: pure functions from the rows' costs to the replicas' rows. Every row goes to
// exactly one replica; no replica is empty while another has two rows.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "lib/io/index.h"

namespace mpinfer::io {

enum class PartitionPolicy : uint8_t { kBalanced, kContiguous, kDynamic };

// Throws Error(kUsage) for another name.
PartitionPolicy partition_policy(std::string_view name);

// Puts the costliest rows first; owner[i] = replica of rows[i] then. One to every replica a round,
// the costliest of a round to the least loaded: counts differ by at most one.
std::vector<int32_t> deal_balanced(Rows* rows, int32_t num_replicas);
// Blocks in input order; the first (rows mod replicas) replicas hold one more.
std::vector<int32_t> deal_contiguous(int64_t num_rows, int32_t num_replicas);

// The order in which a replica admits its rows: the costliest first, but rows whose prompts begin
// alike together, at the place of the costliest of them.
void order_for_admission(Rows* rows);

// Puts the costliest rows first and cuts them: block b is rows[starts[b], starts[b + 1]). Replica d
// begins with block d and takes further ones from a counter that starts at num_replicas. A block
// holds about 1/(4 · replicas) of the cost that is left, at least one row.
std::vector<int64_t> guided_blocks(Rows* rows, int32_t num_replicas);

}  // namespace mpinfer::io
