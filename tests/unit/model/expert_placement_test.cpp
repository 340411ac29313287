// Placement of experts: files that are no permutation are refused; heavy experts part.
#include "lib/model/expert_placement.h"

#include "lib/core/error.h"
#include "tests/support/catch.h"

namespace mpinfer::model {
namespace {

ModelConfig model_of(int32_t experts, size_t layers) {
  ModelConfig config;
  config.architecture = "Qwen3MoeForCausalLM";
  config.moe.num_experts = experts;
  config.layers.resize(layers);
  return config;
}

std::string refusal_of(const std::string& text, const ModelConfig& config) {
  try {
    read_placement(text, "p.json", config);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("A placement that does not fit the model is refused with what is wrong") {
  const ModelConfig config = model_of(3, 2);
  CHECK(refusal_of("{", config) != "");
  CHECK(refusal_of(" ", config) != "");
  CHECK(refusal_of(R"({"num_experts": 4, "layers": {}})", config).find("is of 4 experts") !=
        std::string::npos);
  for (const char* layer : {"[0, 1, 1]", "[0, 1]", "[]"}) {
    const std::string text = fmt::format(R"({{"num_experts": 3, "layers": {{"1": {}}}}})", layer);
    CHECK(refusal_of(text, config).find("layer 1 is no permutation") != std::string::npos);
  }
  CHECK(refusal_of(R"({"num_experts": 3, "layers": {"1": [0, 1, 3]}})", config) != "");
  CHECK(refusal_of(R"({"num_experts": 3, "layers": {}})", model_of(0, 2)).find("has no experts") !=
        std::string::npos);
  ModelConfig grouped = config;
  grouped.moe.num_groups = 3;
  CHECK(refusal_of(R"({"num_experts": 3, "layers": {}})", grouped).find("groups") !=
        std::string::npos);
}

TEST_CASE("Experts are dealt heaviest first, ranks keep their sizes") {
  // Ranks of three and two: 50 and 30 fill the second, so both light ones join 90.
  const ExpertPlacement placement = balance_experts({{}, {90, 10, 50, 5, 30}}, 5, 2);
  CHECK(placement == ExpertPlacement{{}, {0, 1, 3, 2, 4}});
  // No rows at all: any order, but a permutation that can be read back.
  const ModelConfig config = model_of(5, 2);
  CHECK(read_placement(placement_text(placement, 5), "p.json", config) == placement);
  const ExpertPlacement empty = balance_experts({{0, 0, 0, 0, 0}}, 5, 3);
  CHECK(read_placement(placement_text(empty, 5), "p.json", config).at(0) == empty.at(0));
}

}  // namespace
}  // namespace mpinfer::model
