// Which decode rows of a plan attention may treat as one group.
#include "lib/engine/prefix_groups.h"
#include "tests/support/catch.h"

namespace mpinfer::engine {
namespace {

constexpr int32_t kBlock = 32;

// Decode rows with these block tables, then a prefill row with the first's.
StepPlan plan_of(const std::vector<std::vector<int32_t>>& tables) {
  StepPlan plan;
  for (const auto& table : tables) {
    PlanEntry& entry = plan.entries.emplace_back();
    entry.decode = true;
    entry.blocks = {table};
  }
  plan.num_decodes = static_cast<int32_t>(tables.size());
  plan.entries.emplace_back().blocks = {tables.front()};
  return plan;
}

// Blocks 0 .. shared - 1, then own ones up to count.
std::vector<int32_t> table(int32_t shared, int32_t count, int32_t own) {
  std::vector<int32_t> out;
  for (int32_t b = 0; b < count; ++b) out.push_back(b < shared ? b : own + b);
  return out;
}

using Triple = std::vector<int32_t>;
std::vector<Triple> groups_of(const std::vector<std::vector<int32_t>>& tables) {
  std::vector<Triple> out;
  for (const backend::PrefixGroup& group : find_prefix_groups(plan_of(tables), 0, kBlock)) {
    out.push_back({group.first_sequence, group.num_sequences, group.num_tokens});
  }
  return out;
}

}  // namespace

TEST_CASE("neighbours that begin with the same blocks are a group") {
  CHECK(groups_of({table(0, 9, 100), table(6, 9, 200), table(6, 7, 300), table(6, 8, 400),
                   table(6, 20, 500), table(0, 6, 600)}) == std::vector<Triple>{{1, 4, 192}});
}

TEST_CASE("too few members or tokens are no group") {
  CHECK(groups_of({table(6, 9, 100), table(6, 9, 200), table(6, 9, 300)}).empty());
  CHECK(
      groups_of({table(3, 9, 100), table(3, 9, 200), table(3, 9, 300), table(3, 9, 400)}).empty());
}

TEST_CASE("a member that shares less joins only where the tokens saved grow") {
  std::vector<std::vector<int32_t>> tables;
  for (int32_t i = 1; i <= 8; ++i) tables.push_back(table(40, 42, 100 * i));
  tables.push_back(table(39, 42, 2000));  // 39 * 8 > 40 * 7
  tables.push_back(table(4, 42, 3000));   // 4 * 9 < 39 * 8
  CHECK(groups_of(tables) == std::vector<Triple>{{0, 9, 39 * kBlock}});
}

TEST_CASE("blocks that a window has freed are nobody's") {
  std::vector<int32_t> freed(12, -1);
  CHECK(groups_of({freed, freed, freed, freed, freed}).empty());
}

}  // namespace mpinfer::engine
