#include "lib/engine/prefix_groups.h"

#include <algorithm>

namespace mpinfer::engine {
namespace {

int64_t common_blocks(const std::vector<int32_t>& a, const std::vector<int32_t>& b, int64_t most) {
  most = std::min({most, std::ssize(a), std::ssize(b)});
  int64_t n = 0;
  while (n < most && a[static_cast<size_t>(n)] == b[static_cast<size_t>(n)] &&
         a[static_cast<size_t>(n)] >= 0) {
    ++n;
  }
  return n;
}

}  // namespace

std::vector<backend::PrefixGroup> find_prefix_groups(const StepPlan& plan, size_t cache_group,
                                                     int32_t block_size) {
  std::vector<backend::PrefixGroup> groups;
  const int64_t least = (kLeastTokens + block_size - 1) / block_size;
  const auto blocks_of = [&](int32_t entry) -> const std::vector<int32_t>& {
    return plan.entries[static_cast<size_t>(entry)].blocks[cache_group];
  };
  int32_t end = 0;
  for (int32_t begin = 0; begin < plan.num_decodes; begin = end) {
    int64_t shared = std::ssize(blocks_of(begin));
    for (end = begin + 1; end < plan.num_decodes; ++end) {
      const int64_t common = common_blocks(blocks_of(begin), blocks_of(end), shared);
      const int64_t others = end - begin - 1;
      if (common < least || common * (others + 1) < shared * others) break;
      shared = common;
    }
    if (end - begin < kLeastMembers) continue;
    groups.push_back({.first_sequence = begin,
                      .num_sequences = end - begin,
                      .num_tokens = static_cast<int32_t>(shared) * block_size});
  }
  return groups;
}

}  // namespace mpinfer::engine
