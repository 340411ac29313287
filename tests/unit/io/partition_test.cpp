// Partitions: every row exactly once, counts as promised, for random inputs.
#include "lib/io/partition.h"

#include <algorithm>
#include <random>
#include <set>

#include "lib/core/error.h"
#include "tests/support/catch.h"

using namespace mpinfer;
using namespace mpinfer::io;

namespace {

Rows random_rows(std::mt19937& random, size_t count) {
  Rows rows(count);
  for (size_t i = 0; i < count; ++i) {
    rows[i].index = static_cast<int64_t>(i);
    rows[i].entry.prompt_tokens = (1 + random() % 1000) & RowEntry::kMaxTokens;
    rows[i].entry.completion_tokens =
        (random() % 10 == 0 ? 2000 : 1 + random() % 50) & RowEntry::kMaxTokens;
  }
  return rows;
}

void check_costliest_first(const Rows& rows) {
  std::set<int64_t> seen;
  for (size_t i = 0; i < rows.size(); ++i) {
    seen.insert(rows[i].index);
    if (i > 0) CHECK(cost_of(rows[i - 1].entry) >= cost_of(rows[i].entry));
  }
  CHECK(seen.size() == rows.size());
}

std::vector<int64_t> counts_of(const std::vector<int32_t>& owner, int32_t replicas) {
  std::vector<int64_t> counts(static_cast<size_t>(replicas), 0);
  for (const int32_t replica : owner) ++counts.at(static_cast<size_t>(replica));
  return counts;
}

}  // namespace

TEST_CASE("balanced: counts differ by at most one and costs are near each other") {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    Rows rows = random_rows(random, random() % 200);
    const auto replicas = static_cast<int32_t>(1 + random() % 17);
    const auto owner = deal_balanced(&rows, replicas);
    check_costliest_first(rows);
    REQUIRE(owner.size() == rows.size());
    const auto counts = counts_of(owner, replicas);
    const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
    CHECK(*most - *least <= 1);
    std::vector<int64_t> load(static_cast<size_t>(replicas), 0);
    int64_t largest = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      load[static_cast<size_t>(owner[i])] += cost_of(rows[i].entry);
      largest = std::max(largest, cost_of(rows[i].entry));
    }
    const auto [lightest, heaviest] = std::minmax_element(load.begin(), load.end());
    CHECK(*heaviest - *lightest <= largest);
  }
}

TEST_CASE("contiguous: blocks in order, the remainder to the first") {
  CHECK(deal_contiguous(7, 3) == std::vector<int32_t>{0, 0, 0, 1, 1, 2, 2});
  CHECK(deal_contiguous(2, 4) == std::vector<int32_t>{0, 1});
  CHECK(deal_contiguous(0, 4).empty());
  for (int64_t n = 0; n < 50; ++n) {
    for (int32_t replicas = 1; replicas < 9; ++replicas) {
      const auto owner = deal_contiguous(n, replicas);
      CHECK(std::is_sorted(owner.begin(), owner.end()));
      const auto counts = counts_of(owner, replicas);
      CHECK(std::is_sorted(counts.rbegin(), counts.rend()));
      CHECK(counts.front() - counts.back() <= 1);
      CHECK(static_cast<int64_t>(owner.size()) == n);
    }
  }
}

TEST_CASE("guided blocks: every row once, longest first, blocks shrink, none starves") {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    Rows rows = random_rows(random, random() % 300);
    const auto replicas = static_cast<int32_t>(1 + random() % 9);
    const std::vector<int64_t> starts = guided_blocks(&rows, replicas);
    check_costliest_first(rows);
    REQUIRE(starts.front() == 0);
    REQUIRE(starts.back() == static_cast<int64_t>(rows.size()));
    for (size_t b = 1; b < starts.size(); ++b) CHECK(starts[b] > starts[b - 1]);
    const auto num_blocks = static_cast<int64_t>(starts.size()) - 1;
    CHECK(num_blocks >= std::min<int64_t>(replicas, static_cast<int64_t>(rows.size())));
  }
}

TEST_CASE("one row more costly than all others does not drag others into its block") {
  std::mt19937 random(7);
  Rows rows = random_rows(random, 100);
  rows[42].entry.completion_tokens = 1000000;
  const std::vector<int64_t> starts = guided_blocks(&rows, 4);
  CHECK(rows[0].index == 42);
  CHECK(starts[1] == 1);
}

TEST_CASE("an unknown policy is refused with the ones there are") {
  CHECK(partition_policy("dynamic") == PartitionPolicy::kDynamic);
  CHECK_THROWS_AS(partition_policy("fair"), Error);
}

TEST_CASE("rows that begin alike are admitted together, at the place of the costliest") {
  Rows rows;
  const auto add = [&](uint8_t tokens, uint16_t prefix) {
    Row row;
    row.index = static_cast<int64_t>(rows.size());
    row.entry.prompt_tokens = tokens;
    row.entry.prefix = prefix;
    rows.push_back(row);
  };
  add(10, 0);
  add(5, 7);
  add(30, 0);
  add(20, 7);
  add(10, 9);
  add(20, 3);
  add(5, 9);
  order_for_admission(&rows);
  std::vector<int64_t> order;
  for (const Row& row : rows) order.push_back(row.index);
  CHECK(order == std::vector<int64_t>{2, 3, 1, 5, 0, 4, 6});
}
