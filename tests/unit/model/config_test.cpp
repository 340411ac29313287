// RELIABILITY.md §5, case 26, and both spellings of config.json.
#include "lib/model/config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "lib/model/kv_cache.h"
#include "lib/model/rope.h"

#include "tests/support/catch.h"
#include "tests/unit/model/model_folder.h"

namespace mpinfer::model::test {
namespace {

using Json = nlohmann::json;

Json small(const std::string& architecture = "LlamaForCausalLM") {
  return {{"architectures", {architecture}},
          {"hidden_size", 64},
          {"intermediate_size", 128},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 8},
          {"num_key_value_heads", 2},
          {"vocab_size", 1000},
          {"max_position_embeddings", 256},
          {"torch_dtype", "bfloat16"}};
}

ModelConfig load(const Json& config, const Json& generation = nullptr) {
  const ModelFolder folder;
  folder.write("config.json", config.dump());
  if (!generation.is_null()) folder.write("generation_config.json", generation.dump());
  return load_model_config(folder.path());
}

std::string refusal(const Json& config) {
  return refusal_of([&] { load(config); });
}

std::string refusal(const std::string& field, const Json& value) {
  Json config = small();
  config[field] = value;
  return refusal(config);
}

TEST_CASE("numbers that lie are refused by field, value and range") {
  CHECK(refusal(small()).empty());
  CHECK_THAT(refusal("num_attention_heads", 0),
             Contains("num_attention_heads is 0") && Contains("from 1 to 4096"));
  CHECK_THAT(refusal("hidden_size", 2147483648), Contains("hidden_size is 2147483648"));
  CHECK_THAT(refusal("hidden_size", -64), Contains("-64"));
  CHECK_THAT(refusal("hidden_size", 18446744073709551615ULL), Contains("18446744073709551615"));
  CHECK_THAT(refusal("hidden_size", 64.5), Contains("64.5"));
  CHECK_THAT(refusal("hidden_size", "64"), Contains("not an integer"));
  CHECK_THAT(refusal("hidden_size", true), Contains("not an integer"));
  CHECK_THAT(refusal("hidden_size", nullptr), Contains("hidden_size is missing"));
  CHECK_THAT(refusal("hidden_size", 65), Contains("no multiple of num_attention_heads"));
  CHECK_THAT(refusal("num_key_value_heads", 3), Contains("does not divide"));
  CHECK_THAT(refusal("num_key_value_heads", 16), Contains("does not divide"));
  CHECK_THAT(refusal("head_dim", 7), Contains("7 rotary dimensions"));
  CHECK_THAT(refusal("head_dim", 100000), Contains("from 2 to 1024"));
  CHECK_THAT(refusal("num_hidden_layers", 100000), Contains("num_hidden_layers"));
  CHECK_THAT(refusal("vocab_size", 0), Contains("vocab_size"));
  CHECK_THAT(refusal("rms_norm_eps", 0), Contains("rms_norm_eps is 0"));
  CHECK_THAT(refusal("rms_norm_eps", "1e-6"), Contains("not a number"));
  CHECK_THAT(refusal("max_position_embeddings", 1e9), Contains("max_position_embeddings"));
  CHECK_THAT(refusal("rope_theta", -1), Contains("rope_theta is -1"));
  CHECK_THAT(refusal("eos_token_id", 1000), Contains("eos_token_id is 1000"));
  CHECK_THAT(refusal("eos_token_id", {1, -5}), Contains("-5"));
  CHECK_THAT(refusal("tie_word_embeddings", 1), Contains("not true or false"));
}

TEST_CASE("names that are not known list the ones that are") {
  CHECK_THAT(refusal(small("GPT2LMHeadModel")),
             Contains("GPT2LMHeadModel") && Contains("LlamaForCausalLM, MistralForCausalLM"));
  CHECK_THAT(refusal("architectures", Json::array()), Contains("empty list"));
  CHECK_THAT(refusal("architectures", "LlamaForCausalLM"), Contains("not a list"));
  CHECK_THAT(refusal("hidden_act", "relu"), Contains("relu") && Contains("silu"));
  CHECK_THAT(refusal("torch_dtype", "int8"), Contains("int8") && Contains("bfloat16"));
  CHECK_THAT(refusal("quantization_config", {{"bits", 4}}), Contains("quantised"));
  CHECK_THAT(refusal("rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}),
             Contains("dynamic") && Contains("default, linear, llama3, yarn, longrope"));
  CHECK_THAT(refusal("rope_scaling", "linear"), Contains("not an object"));
  CHECK_THAT(refusal("rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}),
             Contains("differ by layer type"));
}

TEST_CASE("rope fields that are missing or lie") {
  CHECK_THAT(refusal("rope_scaling", {{"type", "linear"}}), Contains("factor is missing"));
  CHECK_THAT(refusal("rope_scaling", {{"type", "linear"}, {"factor", 0}}),
             Contains("rope_scaling: factor is 0"));
  CHECK_THAT(refusal("rope_scaling", {{"rope_type", "llama3"},
                                      {"factor", 8},
                                      {"low_freq_factor", 4},
                                      {"high_freq_factor", 1}}),
             Contains("not above low_freq_factor"));
  CHECK_THAT(
      refusal("rope_scaling",
              {{"rope_type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 0}}),
      Contains("original_max_position_embeddings is 0"));
  Json longrope = {{"rope_type", "longrope"},
                   {"original_max_position_embeddings", 128},
                   {"short_factor", {1, 1, 1, 1}},
                   {"long_factor", {1, 2, 3}}};
  CHECK_THAT(refusal("rope_scaling", longrope),
             Contains("long_factor has 3 items for 4 rotary pairs"));
  longrope["long_factor"] = {1, 2, 3, 0};
  CHECK_THAT(refusal("rope_scaling", longrope), Contains("long_factor is 0"));
  CHECK_THAT(refusal("partial_rotary_factor", 2.0), Contains("partial_rotary_factor is 2"));
}

Json deepseek(const std::string& version) {
  Json json = small("Deepseek" + version + "ForCausalLM");
  for (const auto& [field, value] :
       std::vector<std::pair<std::string, int>>{{"kv_lora_rank", 32},
                                                {"q_lora_rank", 24},
                                                {"qk_nope_head_dim", 16},
                                                {"qk_rope_head_dim", 8},
                                                {"v_head_dim", 12},
                                                {"n_routed_experts", 8},
                                                {"num_experts_per_tok", 2},
                                                {"moe_intermediate_size", 24},
                                                {"n_group", 4},
                                                {"topk_group", 2}}) {
    json[field] = value;
  }
  json["num_key_value_heads"] = 8;
  return json;
}

std::string deepseek_refusal(const std::string& version, const std::string& field,
                             const Json& value) {
  Json config = deepseek(version);
  config[field] = value;
  return refusal(config);
}

TEST_CASE("latent attention: fields that lie, and rules that are others") {
  CHECK(refusal(deepseek("V2")).empty());
  CHECK(refusal(deepseek("V3")).empty());
  for (const std::string version : {"V2", "V3"}) {
    CHECK_THAT(deepseek_refusal(version, "kv_lora_rank", 0), Contains("kv_lora_rank is 0"));
    CHECK_THAT(deepseek_refusal(version, "kv_lora_rank", 1020),
               Contains("a row of 1028; the limit is 1024"));
    CHECK_THAT(deepseek_refusal(version, "qk_rope_head_dim", 7), Contains("7 rotary dimensions"));
    CHECK_THAT(deepseek_refusal(version, "v_head_dim", -1), Contains("v_head_dim is -1"));
    CHECK_THAT(deepseek_refusal(version, "partial_rotary_factor", 0.5),
               Contains("partial_rotary_factor"));
    CHECK_THAT(deepseek_refusal(version, "attention_bias", true),
               Contains("attention_bias is true"));
    CHECK_THAT(deepseek_refusal(version, "moe_layer_freq", 2), Contains("moe_layer_freq"));
    CHECK_THAT(deepseek_refusal(version, "n_group", 3), Contains("does not divide 8 experts"));
    CHECK_THAT(deepseek_refusal(version, "topk_group", 5), Contains("topk_group is 5"));
  }
  CHECK_THAT(deepseek_refusal("V3", "scoring_func", "softmax"),
             Contains("scoring_func is \"softmax\"") && Contains("\"sigmoid\""));
  CHECK_THAT(deepseek_refusal("V3", "topk_method", "greedy"), Contains("\"noaux_tc\""));
  CHECK_THAT(deepseek_refusal("V2", "topk_method", "noaux_tc"),
             Contains("greedy, group_limited_greedy"));
  CHECK_THAT(deepseek_refusal("V2", "norm_topk_prob", true), Contains("norm_topk_prob is true"));
  CHECK_THAT(deepseek_refusal("V3", "quantization_config",
                              {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}),
             Contains("is set (fp8)") && Contains("block scales multiplied in"));
}

TEST_CASE("latent attention: the cache has one row a token, scores have YaRN's scale") {
  Json json = deepseek("V3");
  json["max_position_embeddings"] = 163840;
  json["rope_scaling"] = {{"type", "yarn"},
                          {"factor", 40},
                          {"mscale", 0.707},
                          {"mscale_all_dim", 0.707},
                          {"original_max_position_embeddings", 4096}};
  const ModelConfig config = load(json);
  CHECK(config.is_latent());
  REQUIRE(config.cache_groups.size() == 1);
  CHECK(config.cache_groups[0].latent);
  CHECK(config.head_dim == 40);
  CHECK(config.rope.rotary_dim == 8);
  CHECK(config.rope.attention_factor == Approx(1.0));
  CHECK(config.attention_scale ==
        Approx(std::pow(0.0707 * std::log(40.0) + 1.0, 2) / std::sqrt(24.0)));
  // Two bytes an element, four layers, blocks of 16 tokens: tp does not cut it.
  for (const int tp : {1, 2, 8}) {
    CHECK(kv_block_bytes(config, {0, 4}, tp, 0, 16, DType::kBF16) == 4 * 16 * 40 * 2);
  }
  CHECK(valid_tp(config, 8) == std::vector<int>{1, 2, 4, 8});

  json["q_lora_rank"] = nullptr;
  CHECK(load(json).latent.q_rank == 0);
  Json second = deepseek("V2");
  second["topk_method"] = "greedy";
  CHECK(load(second).moe.num_groups == 1);
  second["topk_method"] = "group_limited_greedy";
  CHECK(load(second).moe.num_groups == 4);
  CHECK(load(second).moe.best_of_group == 1);
  CHECK(load(second).moe.score == backend::RouterScore::kSoftmax);
}

TEST_CASE("longrope takes the long factors where contexts may pass the original maximum") {
  Json json = small("Phi3ForCausalLM");
  json["original_max_position_embeddings"] = 64;
  json["rope_scaling"] = {
      {"type", "su"}, {"short_factor", {1, 1, 1, 1}}, {"long_factor", {2, 2, 2, 2}}};
  const RopeConfig rope = load(json).rope;
  CHECK(rope.attention_factor == Approx(std::sqrt(1.0 + std::log(4.0) / std::log(64.0))));
  CHECK(inverse_frequencies(rope, 64)[0] == 1.0F);
  CHECK(inverse_frequencies(rope, 65)[0] == 0.5F);
}

TEST_CASE("files that are no JSON object") {
  const ModelFolder folder;
  const auto refused = [&](const std::string& text) {
    folder.write("config.json", text);
    return refusal_of([&] { load_model_config(folder.path()); });
  };
  CHECK_THAT(refusal_of([&] { load_model_config(folder.path()); }), Contains("config.json"));
  CHECK_THAT(refused(""), Contains("not valid JSON"));
  CHECK_THAT(refused("[]"), Contains("is array, not an object"));
  CHECK_THAT(refused("{\"a\":\"\xff\"}"), Contains("not valid JSON"));
  CHECK_THAT(refused(std::string(100'000, '[')), Contains("nested deeper than 64"));
  CHECK_THAT(refused(R"({"hidden_size":1e999})"), Contains("not valid JSON"));
  std::filesystem::resize_file(folder.path() + "/config.json", 5 << 20);
  CHECK_THAT(refusal_of([&] { load_model_config(folder.path()); }), Contains("the limit is"));
}

TEST_CASE("old and new spelling give the same config") {
  Json older = small();
  older["rope_theta"] = 500000.0;
  older["rope_scaling"] = {{"type", "llama3"},
                           {"factor", 8.0},
                           {"low_freq_factor", 1.0},
                           {"high_freq_factor", 4.0},
                           {"original_max_position_embeddings", 128}};
  Json newer = small();
  newer.erase("torch_dtype");
  newer["dtype"] = "bfloat16";
  newer["rope_parameters"] = older["rope_scaling"];
  newer["rope_parameters"].erase("type");
  newer["rope_parameters"]["rope_type"] = "llama3";
  newer["rope_parameters"]["rope_theta"] = 500000.0;
  for (const Json& spelling : {older, newer}) {
    const ModelConfig config = load(spelling);
    CHECK(config.rope.kind == RopeKind::kLlama3);
    CHECK(config.rope.theta == 500000.0);
    CHECK(config.rope.factor == 8.0);
    CHECK(config.rope.original_max_positions == 128);
    CHECK(config.rope.rotary_dim == 8);
    CHECK(config.dtype == DType::kBF16);
  }
}

TEST_CASE("what is silent takes the architecture's default") {
  Json json = small();
  json.erase("num_key_value_heads");
  const ModelConfig llama = load(json);
  CHECK(llama.num_key_value_heads == 8);
  CHECK(llama.head_dim == 8);
  CHECK_FALSE(llama.tie_word_embeddings);
  CHECK(llama.rope.theta == 10000.0);
  CHECK(llama.cache_groups.size() == 1);
  const ModelConfig smol = load(small("SmolLM3ForCausalLM"));
  CHECK(smol.tie_word_embeddings);
  CHECK(smol.rope.theta == 2000000.0);
  CHECK(smol.layers[2].rope);
  CHECK_FALSE(smol.layers[3].rope);
  CHECK(load(small("Qwen2ForCausalLM")).qkv_bias);
  CHECK(load(small("Qwen3ForCausalLM")).qk_norm);
}

TEST_CASE("windows make cache groups") {
  Json mistral = small("MistralForCausalLM");
  mistral["sliding_window"] = 32;
  const ModelConfig all = load(mistral);
  REQUIRE(all.cache_groups.size() == 1);
  CHECK(all.cache_groups[0].window == 32);
  mistral["sliding_window"] = nullptr;
  CHECK(load(mistral).cache_groups[0].window == 0);
  mistral["sliding_window"] = 256;  // never hides a position
  CHECK(load(mistral).cache_groups[0].window == 0);

  Json qwen = small("Qwen2ForCausalLM");
  qwen["sliding_window"] = 32;
  qwen["max_window_layers"] = 3;
  CHECK(load(qwen).cache_groups.size() == 1);
  qwen["use_sliding_window"] = true;
  const ModelConfig mixed = load(qwen);
  REQUIRE(mixed.cache_groups.size() == 2);
  CHECK(mixed.cache_groups[1].window == 32);
  CHECK(mixed.layers[2].cache_group == 0);
  CHECK(mixed.layers[3].cache_group == 1);
  qwen["layer_types"] = {"sliding_attention", "full_attention", "full_attention", "full_attention"};
  CHECK(load(qwen).layers[0].cache_group == 1);
  qwen["layer_types"] = {"sliding_attention"};
  CHECK_THAT(refusal(qwen), Contains("1 items for 4 layers"));
  qwen["layer_types"] = {"a", "b", "c", "d"};
  CHECK_THAT(refusal(qwen), Contains("layer_types holds \"a\""));
}

TEST_CASE("generation_config's ids come before config's") {
  Json json = small();
  json["eos_token_id"] = 7;
  CHECK(load(json).eos_token_ids == std::vector<int32_t>{7});
  CHECK(load(json, {{"eos_token_id", {8, 9}}}).eos_token_ids == std::vector<int32_t>{8, 9});
  CHECK(load(json, {{"temperature", 0.5}}).eos_token_ids == std::vector<int32_t>{7});
}

TEST_CASE("generation defaults say what was given") {
  const ModelFolder folder;
  folder.write("g.json", R"({"temperature": 0.6, "top_k": 20, "top_p": null})");
  const GenerationDefaults defaults = load_generation_defaults(folder.path() + "/g.json");
  CHECK(defaults.has_temperature);
  CHECK(defaults.temperature == Approx(0.6));
  CHECK(defaults.has_top_k);
  CHECK_FALSE(defaults.has_top_p);
  folder.write("g.json", R"({"temperature": -1})");
  CHECK_THAT(refusal_of([&] { load_generation_defaults(folder.path() + "/g.json"); }),
             Contains("temperature is -1"));
}

TEST_CASE("an invalid tp lists the valid ones") {
  const ModelConfig config = load(small());  // 8 heads, 2 KV heads
  CHECK(valid_tp(config, 16) == std::vector<int>{1, 2, 4, 8});
  require_valid_tp(config, 4);
  CHECK_THAT(refusal_of([&] { require_valid_tp(config, 3); }, ExitCode::kUsage),
             Contains("--tp 3") && Contains("valid: 1, 2, 4, 8"));
  CHECK_FALSE(refusal_of([&] { require_valid_tp(config, 0); }, ExitCode::kUsage).empty());
  Json json = small();
  json["vocab_size"] = 10;  // ceil(10 / 8) = 2 rows a rank leave ranks 5 to 7 without any
  CHECK(valid_tp(load(json), 8) == std::vector<int>{1, 2, 4});
}

}  // namespace
}  // namespace mpinfer::model::test
