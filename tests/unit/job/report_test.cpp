// What the report says about experts: counts of stages and replicas put together, imbalance by
// hand.
#include "lib/job/report.h"

#include <cmath>

#include "tests/support/catch.h"

namespace mpinfer::job {
namespace {

RankReport rank_with(int32_t first_layer, std::vector<int64_t> counts) {
  RankReport report;
  report.first_layer = first_layer;
  report.expert_counts = std::move(counts);
  return report;
}

TEST_CASE("Expert load: stages lie one after the other, replicas add up, dense layers are empty") {
  RunReport report;
  report.num_experts = 3;
  report.layout = {.dp = 2, .pp = 2, .tp = 1, .ep = 2};
  report.ranks = {rank_with(0, {0, 0, 0, 1, 2, 3}), rank_with(2, {4, 0, 2}),
                  rank_with(0, {0, 0, 0, 3, 0, 0}), rank_with(2, {2, 2, 2}), rank_with(0, {})};
  const ExpertLoad load = expert_load(report);
  CHECK(load.layers == std::vector<std::vector<int64_t>>{{}, {4, 2, 3}, {6, 2, 4}});
  // Rank 0 of two holds experts 0 and 1.
  CHECK(load.ranks == std::vector<int64_t>{6 + 8, 3 + 4});
  CHECK(std::abs(load.expert_imbalance - ((4.0 / 3.0 - 1.0) + (6.0 / 4.0 - 1.0)) / 2.0) < 1e-12);
  CHECK(std::abs(load.rank_imbalance - ((6.0 / 4.5 - 1.0) + (8.0 / 6.0 - 1.0)) / 2.0) < 1e-12);
}

TEST_CASE("Expert load without a row is even") {
  RunReport report;
  report.num_experts = 4;
  report.ranks = {rank_with(0, std::vector<int64_t>(8, 0)), rank_with(0, {})};
  const ExpertLoad load = expert_load(report);
  CHECK(load.layers.empty());
  CHECK(load.expert_imbalance == 0.0);
  CHECK(load.rank_imbalance == 0.0);
}

TEST_CASE("A rank's expert counts survive the way to rank 0") {
  const RankReport report = rank_with(3, {1, 0, 1LL << 40});
  CHECK(deserialise_rank_report(serialise(report)).expert_counts == report.expert_counts);
}

}  // namespace
}  // namespace mpinfer::job
