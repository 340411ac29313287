// Memory and layouts against sums made by hand from the published shapes of Llama-3.1-8B and 70B;
// refusals first: what they name and what they say would work.
#include "lib/planner/planner.h"

#include <functional>

#include "lib/core/error.h"
#include "lib/model/loader.h"
#include "tests/support/catch.h"

namespace mpinfer::planner {
namespace {

constexpr int64_t k80GiB = int64_t{80} << 30;
constexpr int64_t kGpu = static_cast<int64_t>(0.94 * static_cast<double>(k80GiB));  // 80.7 GB

model::ModelConfig llama(int32_t num_layers, int64_t hidden, int64_t intermediate, int32_t heads) {
  model::ModelConfig config;
  config.architecture = "LlamaForCausalLM";
  config.hidden_size = hidden;
  config.intermediate_size = intermediate;
  config.num_attention_heads = heads;
  config.num_key_value_heads = 8;
  config.head_dim = 128;
  config.vocab_size = 128256;
  config.max_position_embeddings = 131072;
  config.layers.resize(static_cast<size_t>(num_layers));
  config.cache_groups = {{0}};
  config.dtype = DType::kBF16;
  return config;
}
model::ModelConfig llama_8b() {
  return llama(32, 4096, 14336, 32);
}
model::ModelConfig llama_70b() {
  return llama(80, 8192, 28672, 64);
}

Hardware gpus(int world, int nodes = 1, int64_t memory = kGpu) {
  return {world, nodes, true, memory};
}

PlanRequest request_of(int dp = 0, int pp = 0, int tp = 0, int ep = 0) {
  PlanRequest request;
  request.ep = ep;
  request.dp = dp;
  request.pp = pp;
  request.tp = tp;
  request.block_size = 32;
  request.activation = DType::kBF16;
  return request;
}

MemoryPlan memory_of(const model::ModelConfig& config, const comm::Layout& layout,
                     const Hardware& hardware, const PlanRequest& request) {
  return plan_memory(config, layout, model::balance_stages(config, layout.pp, {}), hardware,
                     request);
}

std::string refusal_of(ExitCode code, const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& error) {
    CHECK(error.exit_code() == code);
    return error.what();
  }
  return "accepted";
}

bool has(const std::string& text, const std::string& part) {
  UNSCOPED_INFO(text);
  return text.find(part) != std::string::npos;
}

TEST_CASE("A model too large names its sum and a world that holds it") {
  const std::string refusal =
      refusal_of(ExitCode::kModelRefused, [] { choose_plan(llama_70b(), gpus(1), request_of()); });
  CHECK(has(refusal, "weights 141.1 GB + workspace 0.0 GB > 80.7 GB: short 60.4 GB a rank"));
  CHECK(has(refusal, "works: -n 2 -dp 1 -pp 1 -tp 2"));
  // Sizes that were given stay as they are in what is suggested, as far as that can be.
  CHECK(has(refusal_of(ExitCode::kModelRefused,
                       [] { choose_plan(llama_70b(), gpus(1), request_of(0, 0, 1)); }),
            "-tp 1 (KV"));
}

TEST_CASE("A layout too small points to another of the same ranks") {
  const std::string refusal = refusal_of(
      ExitCode::kModelRefused, [] { choose_plan(llama_70b(), gpus(8), request_of(8, 1, 1)); });
  CHECK(has(refusal, "does not fit at -dp 8 -pp 1 -tp 1"));
  CHECK(has(refusal, "works: -n 8 "));
}

TEST_CASE("On hosts without GPUs more ranks on one host help nobody") {
  Hardware host{1, 1, false, int64_t{64} * 1000 * 1000 * 1000};
  PlanRequest request = request_of();
  request.activation = DType::kF32;
  const std::string refusal =
      refusal_of(ExitCode::kModelRefused, [&] { choose_plan(llama_70b(), host, request); });
  CHECK(has(refusal, "works: -n 3 on 3 hosts"));
}

TEST_CASE("Sizes that are not the world are refused with those that are") {
  const auto refusal = [](int world, const PlanRequest& request) {
    return refusal_of(ExitCode::kUsage, [&] { choose_plan(llama_8b(), gpus(world), request); });
  };
  CHECK(has(refusal(8, request_of(3, 0, 0)), "--dp 3 × --pp (any) × --tp (any)"));
  CHECK(has(refusal(4, request_of(2, 2, 2)), "-dp 1 -pp 2 -tp 2"));
  CHECK(has(refusal(3, request_of(0, 0, 2)), "-dp 3 -pp 1 -tp 1"));
  CHECK(has(refusal(8, request_of(0, 0, 3)), "valid: 1, 2, 4, 8, 16, 32"));
  CHECK(has(refusal(64, request_of(1, 64, 1)), "works: "));  // 32 layers
}

TEST_CASE("Stages as given must cover the layers") {
  PlanRequest request = request_of(1, 2, 1);
  request.pp_layers = {20, 11};
  CHECK(refusal_of(ExitCode::kUsage, [&] { choose_plan(llama_8b(), gpus(2), request); }) !=
        "accepted");
  request.pp_layers = {10, 11, 11};
  CHECK(has(refusal_of(ExitCode::kUsage, [&] { choose_plan(llama_8b(), gpus(2), request); }),
            "3 entries in --pp-layers"));
  request.pp_layers = {20, 12};
  const Plan plan = choose_plan(llama_8b(), gpus(2), request);
  CHECK(plan.stages[0].end == 20);
  CHECK(plan.stages[1].end == 32);
}

TEST_CASE("Weights are those of the published shapes") {
  // 8B: 8,030,261,248 parameters of two bytes; norms may be kept wider.
  const MemoryPlan whole = memory_of(llama_8b(), {1, 1, 1, 1}, gpus(1), request_of());
  CHECK(static_cast<double>(whole.weights) == Approx(16060522496.0).epsilon(1e-4));
  const MemoryPlan tp2 = memory_of(llama_8b(), {1, 1, 2, 1}, gpus(2), request_of());
  CHECK(static_cast<double>(tp2.weights) == Approx(16060522496.0 / 2).epsilon(1e-4));
  // 70B: 70,553,706,496 parameters, of them 161 norms of 8192, which every rank keeps in float32.
  // tp 16 holds half a KV head's share twice: 2 × 64 × 8192 more for K and V together, a layer.
  const MemoryPlan big = memory_of(llama_70b(), {1, 1, 16, 1}, gpus(16, 2), request_of());
  const int64_t norms = int64_t{161} * 8192;
  const int64_t matrices = (int64_t{70553706496} - norms) / 16 + int64_t{80} * 128 * 8192;
  CHECK(big.weights == 2 * matrices + 4 * norms);
}

TEST_CASE("KV takes what weights leave, 131072 bytes a token of the 8B model") {
  const MemoryPlan plan = memory_of(llama_8b(), {1, 1, 1, 1}, gpus(1), request_of());
  REQUIRE(plan.fits);
  const double expected = static_cast<double>(kGpu - plan.weights) / 131072;
  CHECK(static_cast<double>(plan.kv_tokens) == Approx(expected).epsilon(2e-3));
  CHECK(plan.kv <= plan.limit - plan.weights);
  CHECK(plan.num_blocks.at(0) * 32 == plan.kv_tokens);
  // Eight KV heads over tp 8: an eighth of the bytes a token; over tp 16 no less than that.
  const MemoryPlan tp8 = memory_of(llama_70b(), {1, 1, 8, 1}, gpus(8), request_of());
  const MemoryPlan tp16 = memory_of(llama_70b(), {1, 1, 16, 1}, gpus(16), request_of());
  CHECK(static_cast<double>(tp8.kv) / static_cast<double>(tp8.kv_tokens) == Approx(40960));
  CHECK(static_cast<double>(tp16.kv) / static_cast<double>(tp16.kv_tokens) == Approx(40960));
}

TEST_CASE("Workspace counts against KV") {
  PlanRequest request = request_of();
  const MemoryPlan without = memory_of(llama_8b(), {1, 1, 1, 1}, gpus(1), request);
  request.workspace_bytes = [](const comm::Layout&, int32_t, int64_t) { return int64_t{10} << 30; };
  const MemoryPlan with = memory_of(llama_8b(), {1, 1, 1, 1}, gpus(1), request);
  CHECK(with.workspace == int64_t{10} << 30);
  CHECK(static_cast<double>(without.kv - with.kv) == Approx(1.07374e10).epsilon(2e-3));
  CHECK(with.weights + with.workspace + with.kv <= with.limit);
}

TEST_CASE("A window group holds its window and one step, not the context") {
  model::ModelConfig config = llama_8b();
  config.cache_groups = {{0}, {1024}};
  for (size_t i = 0; i < config.layers.size(); i += 2) config.layers[i].cache_group = 1;
  PlanRequest request = request_of();
  request.max_num_batched_tokens = 2048;
  request.max_model_len = 131072;
  request.kv_cache_memory_bytes =
      (131072 / 32) * (int64_t{32} * 65536) + (3072 / 32 + 1) * (int64_t{32} * 65536);
  const MemoryPlan just = memory_of(config, {1, 1, 1, 1}, gpus(1), request);
  CHECK(just.fits);
  CHECK(just.num_blocks == std::vector<int32_t>{131072 / 32, 3072 / 32 + 1});
  request.kv_cache_memory_bytes -= 1;
  CHECK_FALSE(memory_of(config, {1, 1, 1, 1}, gpus(1), request).fits);
}

TEST_CASE("A context that does not fit is shortened unless it was asked for") {
  PlanRequest request = request_of();
  request.kv_cache_memory_bytes = int64_t{4096} * 131072;
  const MemoryPlan open = memory_of(llama_8b(), {1, 1, 1, 1}, gpus(1), request);
  CHECK(open.fits);
  CHECK(open.max_model_len == 4096);
  CHECK(open.kv_tokens == 4096);
  request.max_model_len = 8192;
  const MemoryPlan asked = memory_of(llama_8b(), {1, 1, 1, 1}, gpus(1), request);
  CHECK_FALSE(asked.fits);
  CHECK(has(asked.sum, "one sequence of 8192 tokens needs 1.1 GB; --max-model-len 4096 fits"));
}

TEST_CASE("Host memory: what the input needs, at most half") {
  PlanRequest request = request_of();
  request.activation = DType::kF32;
  request.max_model_len = 4096;
  request.lengths = {100, 28};
  const Hardware host{1, 1, false, int64_t{100} * 1000 * 1000 * 1000};
  const MemoryPlan small = memory_of(llama_8b(), {1, 1, 1, 1}, host, request);
  CHECK(small.max_num_seqs == 256);
  // 256 rows of 128 tokens and a quarter more, 262144 bytes a token.
  CHECK(static_cast<double>(small.kv) == Approx(256.0 * 128 * 1.25 * 262144).epsilon(0.02));
  request.lengths = {2000, 2000};
  const MemoryPlan large = memory_of(llama_8b(), {1, 1, 1, 1}, host, request);
  CHECK(large.kv <= host.memory_per_rank / 2);
  CHECK(large.kv > host.memory_per_rank / 2 * 9 / 10);
}

TEST_CASE("Few rows need little host memory and still run as replicas") {
  PlanRequest request = request_of();
  request.activation = DType::kF32;
  request.lengths = {2000, 2000};
  request.num_rows = 6;
  const Hardware host{2, 1, false, int64_t{40} * 1000 * 1000 * 1000};
  const Plan plan = choose_plan(llama_8b(), host, request);
  CHECK(plan.layout.dp == 2);
  PlanRequest more = request;
  more.num_rows = 600;
  more.max_model_len = request.max_model_len = 4096;
  const MemoryPlan few = memory_of(llama_8b(), {2, 1, 1, 1}, host, request);
  const MemoryPlan many = memory_of(llama_8b(), {2, 1, 1, 1}, host, more);
  // Three rows a replica and a quarter more, 262144 bytes a token.
  CHECK(static_cast<double>(few.kv) == Approx(3.0 * 4000 * 1.25 * 262144).epsilon(0.02));
  CHECK(many.kv > few.kv);
}

TEST_CASE("A model that fits one rank runs as replicas") {
  for (const int world : {1, 2, 6, 8}) {
    const Plan plan = choose_plan(llama_8b(), gpus(world), request_of());
    CHECK(plan.layout.dp == world);
    CHECK(plan.layout.replica() == 1);
  }
}

TEST_CASE("Given sizes are kept, the rest is filled up") {
  const Plan tp = choose_plan(llama_8b(), gpus(8), request_of(0, 0, 2));
  CHECK(tp.layout.tp == 2);
  CHECK(tp.layout.world() == 8);
  const Plan pp = choose_plan(llama_8b(), gpus(8), request_of(2, 4, 0));
  CHECK(pp.layout.dp == 2);
  CHECK(pp.layout.pp == 4);
  CHECK(pp.layout.tp == 1);
}

TEST_CASE("A model of two ranks spans two, with room for 64 rows") {
  const Plan two = choose_plan(llama_70b(), gpus(2), request_of());
  CHECK(two.layout.replica() == 2);
  CHECK(two.memory.kv_tokens >= 64 * 768);
  const Plan eight = choose_plan(llama_70b(), gpus(8), request_of());
  CHECK(eight.memory.fits);
  CHECK(eight.memory.kv_tokens >= 64 * 768);
}

TEST_CASE("Tensor parallelism stays inside a node unless it is asked for") {
  const int64_t small_gpu = int64_t{22} * 1000 * 1000 * 1000;
  for (const Plan& plan : rank_layouts(llama_70b(), gpus(16, 4, small_gpu), request_of())) {
    CHECK(plan.layout.tp <= 4);
  }
  CHECK(rank_layouts(llama_70b(), gpus(16, 4, small_gpu), request_of(0, 0, 8)).size() == 2);
}

TEST_CASE("Every layout of the world is listed once, the chosen first") {
  const auto plans = rank_layouts(llama_8b(), gpus(8), request_of());
  CHECK(plans.size() == 10);  // (dp, pp, tp) with product 8
  for (const Plan& plan : plans) {
    CHECK(plan.layout.world() == 8);
    CHECK(plan.stages.size() == static_cast<size_t>(plan.layout.pp));
  }
  const Plan chosen = choose_plan(llama_8b(), gpus(8), request_of());
  CHECK(chosen.layout.dp == plans.front().layout.dp);
}

model::ModelConfig sparse(model::ModelConfig config, int32_t experts, int32_t top_k,
                          int64_t intermediate) {
  config.moe.num_experts = experts;
  config.moe.top_k = top_k;
  config.moe.intermediate_size = intermediate;
  for (model::LayerConfig& layer : config.layers) layer.moe = true;
  return config;
}
// Qwen3-235B-A22B.
model::ModelConfig qwen3_235b() {
  model::ModelConfig config = llama(94, 4096, 12288, 64);
  config.architecture = "Qwen3MoeForCausalLM";
  config.num_key_value_heads = 4;
  config.vocab_size = 151936;
  config.max_position_embeddings = 40960;
  config.qk_norm = true;
  return sparse(config, 128, 8, 1536);
}
// gpt-oss-120b in bf16.
model::ModelConfig gpt_oss_120b() {
  model::ModelConfig config = llama(36, 2880, 2880, 64);
  config.architecture = "GptOssForCausalLM";
  config.head_dim = 64;
  config.vocab_size = 201088;
  config.qkv_bias = config.o_bias = config.sinks = true;
  config.cache_groups = {{0}, {128}};
  for (size_t i = 0; i < config.layers.size(); i += 2) config.layers[i].cache_group = 1;
  config = sparse(config, 128, 4, 2880);
  config.moe.router_bias = config.moe.expert_bias = true;
  config.moe.names = model::ExpertNames::kGptOss;
  return config;
}

int64_t weights_of(const model::ModelConfig& config, int dp, int tp, int ep) {
  return memory_of(config, {dp, 1, tp, ep}, gpus(dp * tp), request_of(dp, 1, tp)).weights;
}

TEST_CASE("Experts: weights of published shapes, cut by tp, whole, and over replicas") {
  // Qwen3-235B, elements of a layer: qkv (64 + 8) * 128 * 4096, o 8192 * 4096, router 128 * 4096,
  // experts 128 * 3 * 4096 * 1536; embedding and head 2 * 151936 * 4096; norms in f32.
  const int64_t norms = 4 * (94 * (2 * 4096 + 2 * 128) + 4096);
  CHECK(weights_of(qwen3_235b(), 1, 1, 1) == 2 * 235'092'836'352 + norms);
  // tp 8: a KV head on two ranks each; an eighth of the experts, however they are cut.
  CHECK(weights_of(qwen3_235b(), 1, 8, 1) == 2 * 29'479'010'304 + norms);
  CHECK(weights_of(qwen3_235b(), 1, 8, 8) == 2 * 29'479'010'304 + norms);
  // dp 2, tp 4: each replica has all experts, or the two share them.
  CHECK(weights_of(qwen3_235b(), 2, 4, 1) == 2 * 58'810'171'392 + norms);
  CHECK(weights_of(qwen3_235b(), 2, 4, 8) == 2 * 30'423'121'920 + norms);

  // gpt-oss-120b: qkv 80 * 64 * 2880, o 4096 * 2880, router 128 * 2880, experts 128 * 3 * 2880²,
  // embedding and head 2 * 201088 * 2880: 116.8 G elements; biases, norms and sinks in f32, each
  // vector rounded up to 256 bytes.
  CHECK(weights_of(gpt_oss_120b(), 1, 1, 1) / 1'000'000 == 233'738);
}

TEST_CASE("Experts are spread over replicas only where nothing else has room") {
  // 235B in bf16 on eight 80 GiB GPUs: tp 8 holds it, and so nobody waits for another replica.
  const Plan all = choose_plan(qwen3_235b(), gpus(8), request_of());
  CHECK(all.memory.fits);
  CHECK(all.layout.members() == 1);
  // With dp 2 and tp 4 asked for, only shared experts fit.
  const Plan shared = choose_plan(qwen3_235b(), gpus(8), request_of(2, 1, 4));
  CHECK(shared.layout.ep == 8);
  PlanRequest cut = request_of(2, 1, 4);
  cut.ep = 1;
  const std::string refusal =
      refusal_of(ExitCode::kModelRefused, [&] { choose_plan(qwen3_235b(), gpus(8), cut); });
  CHECK(refusal.find("weights 117.6 GB") != std::string::npos);
  PlanRequest spread = request_of(2, 1, 4);
  spread.spread_experts = true;
  CHECK(choose_plan(qwen3_235b(), gpus(8), spread).layout.ep == 8);
}

TEST_CASE("Rows for which arithmetic costs what reading the weights does") {
  // 6.5e14 operations and 4e12 bytes a second: two operations for two bytes of a dense model.
  const Plan dense = choose_plan(llama_8b(), gpus(1), request_of());
  CHECK(dense.break_even_seqs == 162);
  CHECK(choose_plan(llama_70b(), gpus(4), request_of(1, 4, 1)).break_even_seqs ==
        Approx(650).epsilon(0.01));
  // A step reads 235.1 G elements, a row takes those less 15 of 16 of 227.1 G in experts.
  const Plan sparse_plan = choose_plan(qwen3_235b(), gpus(8), request_of(1, 1, 8, 1));
  CHECK(static_cast<double>(sparse_plan.break_even_seqs) ==
        Approx(162.5 * 235.1 / (235.1 - 227.1 * 15 / 16)).epsilon(0.03));
  // Shared by two replicas: half of the reading for the same arithmetic a row.
  const Plan shared = choose_plan(qwen3_235b(), gpus(8), request_of(2, 1, 4, 8));
  CHECK(shared.break_even_seqs < sparse_plan.break_even_seqs * 6 / 10);
}

TEST_CASE("Expert parallelism that does not fit is refused with what would") {
  PlanRequest request = request_of(2, 1, 4);
  request.ep = 6;
  const std::string refusal =
      refusal_of(ExitCode::kUsage, [&] { choose_plan(qwen3_235b(), gpus(8), request); });
  CHECK(refusal.find("valid: 1, 4, 8") != std::string::npos);
  request.ep = 2;
  const std::string dense =
      refusal_of(ExitCode::kUsage, [&] { choose_plan(llama_8b(), gpus(8), request); });
  CHECK(dense.find("has no experts") != std::string::npos);
}

}  // namespace
}  // namespace mpinfer::planner
