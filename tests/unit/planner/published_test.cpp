// What `plan` says of large published models, from their config.json alone, against sums made by
// hand. gpt-oss-120b is the bf16 model, not the published MXFP4 one.
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <string>

#include "lib/core/error.h"
#include "lib/model/loader.h"
#include "lib/planner/planner.h"
#include "tests/support/catch.h"

namespace mpinfer::planner {
namespace {

constexpr int64_t k80GiB = static_cast<int64_t>(0.94 * static_cast<double>(int64_t{80} << 30));

model::ModelConfig published(const std::string& name) {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() /
                                       ("mpinfer-published-" + name + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  std::filesystem::copy_file(std::string(MPINFER_PUBLISHED_DIR) + "/" + name + ".json",
                             folder / "config.json",
                             std::filesystem::copy_options::overwrite_existing);
  const model::ModelConfig config = model::load_model_config(folder.string());
  std::filesystem::remove_all(folder);
  return config;
}

PlanRequest request_of(int dp, int pp, int tp, int ep = 0) {
  PlanRequest request;
  request.dp = dp;
  request.pp = pp;
  request.tp = tp;
  request.ep = ep;
  request.block_size = 32;
  request.activation = DType::kBF16;
  return request;
}

MemoryPlan memory_of(const model::ModelConfig& config, const comm::Layout& layout,
                     const std::vector<model::StageLayers>& stages) {
  const Hardware gpus{layout.dp * layout.pp * layout.tp, 1, true, k80GiB};
  return plan_memory(config, layout, stages, gpus,
                     request_of(layout.dp, layout.pp, layout.tp, layout.ep));
}

MemoryPlan memory_of(const model::ModelConfig& config, const comm::Layout& layout) {
  return memory_of(config, layout, model::balance_stages(config, layout.pp, {}));
}

double bytes_a_token(const MemoryPlan& plan) {
  return static_cast<double>(plan.kv) / static_cast<double>(plan.kv_tokens);
}

TEST_CASE("DeepSeek-V3: 671 G parameters, 576 elements a token and layer") {
  const model::ModelConfig config = published("deepseek-v3");
  // Of a layer: q_a 1536 * 7168, q_b 24576 * 1536, kv_a 576 * 7168, kv_b 32768 * 512,
  // o 7168 * 16384.
  constexpr int64_t kWhole = 11'010'048 + 4'128'768;                 // q_a and kv_a
  constexpr int64_t kHeads = 37'748'736 + 16'777'216 + 117'440'512;  // cut by tp
  constexpr int64_t kDense = 3 * 18432 * 7168;
  constexpr int64_t kRouter = 256 * 7168;
  constexpr int64_t kExperts = int64_t{256} * 3 * 2048 * 7168;
  constexpr int64_t kShared = 3 * 2048 * 7168;
  constexpr int64_t kEnds = int64_t{2} * 129280 * 7168;
  // Norms of 7168, 7168, 1536 and 512 a layer, the corrections of 58 routers, the last norm.
  constexpr int64_t kVectors = 61 * (2 * 7168 + 1536 + 512) + 58 * 256 + 7168;
  const auto weights = [&](int64_t tp, int64_t expert_ranks) {
    return 2 * (61 * (kWhole + kHeads / tp) + 3 * kDense / tp +
                58 * (kRouter + kShared / tp + kExperts / expert_ranks) + kEnds / tp) +
           4 * kVectors;
  };
  const MemoryPlan whole = memory_of(config, {1, 1, 1, 1});
  CHECK(whole.weights == weights(1, 1));
  CHECK((whole.weights - 4 * kVectors) / 2 == 671'025'397'760);
  CHECK_FALSE(whole.fits);
  // Heads and experts are cut, latent rows and what makes them are on every rank.
  CHECK(memory_of(config, {1, 1, 16, 1}).weights == weights(16, 16));
  CHECK(memory_of(config, {1, 1, 16, 16}).weights == weights(16, 16));
  CHECK(memory_of(config, {4, 1, 8, 32}).weights == weights(8, 32));
  CHECK(memory_of(config, {32, 1, 1, 32}).weights == weights(1, 32));
  // A token's row of 512 + 64 in bf16 in each of 61 layers, whatever tp is.
  for (const comm::Layout& layout : {comm::Layout{1, 1, 32, 32}, comm::Layout{4, 1, 8, 32}}) {
    const MemoryPlan plan = memory_of(config, layout);
    REQUIRE(plan.fits);
    CHECK(bytes_a_token(plan) == 61 * 576 * 2);
  }
  CHECK(config.attention_scale ==
        Approx(std::pow(0.1 * std::log(40.0) + 1.0, 2) / std::sqrt(192.0)));
  CHECK(config.rope.attention_factor == 1.0);
}

TEST_CASE("DeepSeek-V3 in bf16 is refused on eight GPUs of 80 GiB with a world that holds it") {
  const model::ModelConfig config = published("deepseek-v3");
  try {
    choose_plan(config, {8, 1, true, k80GiB}, request_of(0, 0, 0));
    FAIL("accepted");
  } catch (const Error& error) {
    const std::string what = error.what();
    INFO(what);
    CHECK(what.find("weights 1342.1 GB") != std::string::npos);
    CHECK(what.find("works: -n ") != std::string::npos);
  }
  const Plan plan = choose_plan(config, {32, 4, true, k80GiB}, request_of(0, 0, 0));
  CHECK(plan.memory.fits);
  CHECK(plan.layout.tp <= 8);  // stays inside a node
}

TEST_CASE("Qwen3-235B-A22B: 235 G parameters, four KV heads") {
  const model::ModelConfig config = published("qwen3-235b-a22b");
  // Of a layer: q and o 2 * 8192 * 4096, k and v 2 * 512 * 4096, router 128 * 4096, experts
  // 128 * 3 * 1536 * 4096; embedding and head 2 * 151936 * 4096; norms 2 * 4096 + 2 * 128, 4096.
  constexpr int64_t kMatrices = 94 * (int64_t{2} * 8192 * 4096 + 2 * 512 * 4096 + 128 * 4096 +
                                      int64_t{128} * 3 * 1536 * 4096) +
                                int64_t{2} * 151936 * 4096;
  constexpr int64_t kNorms = 94 * (2 * 4096 + 2 * 128) + 4096;
  static_assert(kMatrices == 235'092'836'352);
  CHECK(memory_of(config, {1, 1, 1, 1}).weights == 2 * kMatrices + 4 * kNorms);
  const MemoryPlan tp4 = memory_of(config, {2, 1, 4, 8});
  REQUIRE(tp4.fits);
  CHECK(bytes_a_token(tp4) == 94 * 2 * 128 * 2);  // one KV head a rank
  const Plan plan = choose_plan(config, {8, 1, true, k80GiB}, request_of(0, 0, 0));
  CHECK(plan.layout.members() == 1);
  CHECK(plan.memory.weights == memory_of(config, plan.layout, plan.stages).weights);
}

TEST_CASE("gpt-oss-120b in bf16: 117 G parameters, half of its layers with a window") {
  const model::ModelConfig config = published("gpt-oss-120b");
  // Of a layer: q 4096 * 2880, k and v 2 * 512 * 2880, o 2880 * 4096, router 128 * 2880, experts
  // 128 * 3 * 2880 * 2880; embedding and head 2 * 201088 * 2880.
  constexpr int64_t kMatrices = 36 * (int64_t{2} * 4096 * 2880 + 2 * 512 * 2880 + 128 * 2880 +
                                      int64_t{128} * 3 * 2880 * 2880) +
                                int64_t{2} * 201088 * 2880;
  // In f32, each of a multiple of 64 elements: norms 2 * 2880, biases of qkv 5120, o 2880, router
  // 128, experts 128 * (5760 + 2880), sinks 64; the last norm.
  constexpr int64_t kVectors =
      36 * (2 * 2880 + 5120 + 2880 + 128 + 128 * (5760 + 2880) + 64) + 2880;
  CHECK(memory_of(config, {1, 1, 1, 1}).weights == 2 * kMatrices + 4 * kVectors);
  static_assert(kMatrices + kVectors == 116'829'156'672);  // as published
  // 18 layers keep every token, 18 a window and one step: K and V of 8 heads of 64 over tp 4.
  const MemoryPlan plan = memory_of(config, {1, 1, 4, 4});
  REQUIRE(plan.fits);
  REQUIRE(plan.num_blocks.size() == 2);
  const int64_t block = int64_t{32} * 18 * 2 * 2 * 64 * 2;
  CHECK(plan.kv == block * (int64_t{plan.num_blocks[0]} + plan.num_blocks[1]));
  CHECK(plan.num_blocks[0] > plan.num_blocks[1]);
  CHECK_THROWS_AS(choose_plan(config, {2, 1, true, k80GiB}, request_of(0, 0, 0)), Error);
  CHECK(choose_plan(config, {4, 1, true, k80GiB}, request_of(0, 0, 0)).memory.fits);
}

}  // namespace
}  // namespace mpinfer::planner
