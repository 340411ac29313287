#include "lib/io/partition.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <string>

#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::io {
namespace {

void put_costliest_first(Rows* rows) {
  std::sort(rows->begin(), rows->end(), [](const Row& a, const Row& b) {
    const int64_t cost_a = cost_of(a.entry);
    const int64_t cost_b = cost_of(b.entry);
    return cost_a != cost_b ? cost_a > cost_b : a.index < b.index;
  });
}

}  // namespace

PartitionPolicy partition_policy(std::string_view name) {
  if (name == "balanced") return PartitionPolicy::kBalanced;
  if (name == "contiguous") return PartitionPolicy::kContiguous;
  if (name == "dynamic") return PartitionPolicy::kDynamic;
  throw Error(ExitCode::kUsage,
              fmt::format("--partition {}: use balanced, contiguous or dynamic", printable(name)));
}

std::vector<int32_t> deal_balanced(Rows* rows, int32_t num_replicas) {
  MPINFER_CHECK(num_replicas > 0);
  const auto replicas = static_cast<size_t>(num_replicas);
  put_costliest_first(rows);
  std::vector<int32_t> owner(rows->size());
  std::vector<int64_t> load(replicas, 0);
  std::vector<int32_t> by_load(replicas);
  std::iota(by_load.begin(), by_load.end(), 0);
  for (size_t begin = 0; begin < rows->size(); begin += replicas) {
    const size_t count = std::min(replicas, rows->size() - begin);
    std::stable_sort(by_load.begin(), by_load.end(), [&](int32_t a, int32_t b) {
      const int64_t load_a = load[static_cast<size_t>(a)];
      const int64_t load_b = load[static_cast<size_t>(b)];
      return load_a != load_b ? load_a < load_b : a < b;
    });
    for (size_t i = 0; i < count; ++i) {
      owner[begin + i] = by_load[i];
      load[static_cast<size_t>(by_load[i])] += cost_of((*rows)[begin + i].entry);
    }
  }
  return owner;
}

std::vector<int32_t> deal_contiguous(int64_t num_rows, int32_t num_replicas) {
  MPINFER_CHECK(num_replicas > 0 && num_rows >= 0);
  std::vector<int32_t> owner;
  owner.reserve(static_cast<size_t>(num_rows));
  for (int32_t replica = 0; replica < num_replicas; ++replica) {
    const int64_t count = num_rows / num_replicas + (replica < num_rows % num_replicas ? 1 : 0);
    owner.insert(owner.end(), static_cast<size_t>(count), replica);
  }
  return owner;
}

void order_for_admission(Rows* rows) {
  struct Group {
    int64_t cost = 0;
    int64_t first = 0;  // index of its costliest row
  };
  std::map<uint16_t, Group> groups;
  const auto group_of = [&](const Row& row) {
    const Group alone{cost_of(row.entry), row.index};
    return row.entry.prefix == 0 ? alone : groups.at(static_cast<uint16_t>(row.entry.prefix));
  };
  for (const Row& row : *rows) {
    if (row.entry.prefix == 0) continue;
    const auto [group, added] = groups.try_emplace(static_cast<uint16_t>(row.entry.prefix),
                                                   Group{cost_of(row.entry), row.index});
    if (!added && cost_of(row.entry) > group->second.cost)
      group->second = {cost_of(row.entry), row.index};
  }
  std::sort(rows->begin(), rows->end(), [&](const Row& a, const Row& b) {
    const Group group_a = group_of(a);
    const Group group_b = group_of(b);
    if (group_a.cost != group_b.cost) return group_a.cost > group_b.cost;
    if (group_a.first != group_b.first) return group_a.first < group_b.first;
    const int64_t cost_a = cost_of(a.entry);
    const int64_t cost_b = cost_of(b.entry);
    return cost_a != cost_b ? cost_a > cost_b : a.index < b.index;
  });
}

std::vector<int64_t> guided_blocks(Rows* rows, int32_t num_replicas) {
  MPINFER_CHECK(num_replicas > 0);
  put_costliest_first(rows);
  int64_t cost_left = 0;
  for (const Row& row : *rows) cost_left += cost_of(row.entry);
  const auto num_rows = static_cast<int64_t>(rows->size());
  std::vector<int64_t> starts = {0};
  int64_t at = 0;
  while (at < num_rows) {
    const auto number = static_cast<int64_t>(starts.size());
    // The first block of every other replica keeps a row.
    const int64_t last = num_rows - std::max<int64_t>(0, num_replicas - number);
    const int64_t target = cost_left / (4 * int64_t{num_replicas});
    int64_t cost = 0;
    do {
      cost += cost_of((*rows)[static_cast<size_t>(at)].entry);
      ++at;
    } while (at < last && cost < target);
    cost_left -= cost;
    starts.push_back(at);
  }
  return starts;
}

}  // namespace mpinfer::io
