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

// owner[i] = replica of rows[i]. Dealt from the costliest row down, one to every replica a round,
// the costliest of a round to the least loaded: counts differ by at most one.
std::vector<int32_t> deal_balanced(const std::vector<RowEntry>& rows, int32_t num_replicas);
// Blocks in input order; the first (rows mod replicas) replicas hold one more.
std::vector<int32_t> deal_contiguous(int64_t num_rows, int32_t num_replicas);

// Guided blocks of a common order: block b is order[starts[b], starts[b + 1]). Replica d begins
// with block d and takes further ones from a counter that starts at num_replicas.
struct GuidedBlocks {
  std::vector<uint32_t> order;  // positions in rows, costliest first
  std::vector<int64_t> starts;
};
// A block holds about 1/(4 · replicas) of the cost that is left, at least one row.
// The order in which a replica admits its rows: the costliest first, but rows whose prompts begin
// alike together, at the place of the costliest of them.
void order_for_admission(std::vector<Row>* rows);

GuidedBlocks guided_blocks(const std::vector<RowEntry>& rows, int32_t num_replicas);

}  // namespace mpinfer::io
