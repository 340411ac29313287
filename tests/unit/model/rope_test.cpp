// Rope tables against transformers' own numbers for published models (scripts/make_goldens.py).
#include "lib/model/rope.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/catch.h"
#include "tests/unit/model/model_folder.h"

namespace mpinfer::model::test {
namespace {

TEST_CASE("inverse frequencies and attention factors equal transformers'") {
  std::ifstream file(fmt::format("{}/rope_cases.json", MPINFER_GOLDEN_DIR));
  const nlohmann::json cases = nlohmann::json::parse(file);
  CHECK(cases.size() == 6);
  for (const nlohmann::json& one : cases) {
    INFO(one.at("name"));
    const ModelFolder folder;
    folder.write("config.json", one.at("config").dump());
    const RopeConfig rope = load_model_config(folder.path()).rope;
    CHECK(rope.attention_factor == Approx(one.at("attention_factor").get<double>()).epsilon(1e-6));
    const std::vector<float> found = inverse_frequencies(rope, 4096);
    const auto expected = one.at("inverse_frequencies").get<std::vector<float>>();
    REQUIRE(found.size() == expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      INFO("pair " << i);
      CHECK(found[i] == Approx(expected[i]).epsilon(1e-6));
    }
  }
}

TEST_CASE("a table holds cos, then sin, of position times frequency, scaled") {
  const RopeConfig rope{.theta = 100.0, .rotary_dim = 4, .attention_factor = 2.0};
  const std::vector<float> table = rope_table(rope, 3);
  REQUIRE(table.size() == 12);
  CHECK(table[0] == 2.0F);
  CHECK(table[2] == 0.0F);
  CHECK(table[8] == Approx(2.0 * std::cos(2.0)));
  CHECK(table[9] == Approx(2.0 * std::cos(0.2)));
  CHECK(table[10] == Approx(2.0 * std::sin(2.0)));
  CHECK(table[11] == Approx(2.0 * std::sin(0.2)));
}

}  // namespace
}  // namespace mpinfer::model::test
