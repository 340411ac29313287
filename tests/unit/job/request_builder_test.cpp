// Rows to requests: every way a row can be bad, and what good ones mean.
#include "lib/job/request_builder.h"

#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "lib/core/error.h"
#include "tests/support/catch.h"
#include "tests/unit/job/byte_tokenizer.h"

using namespace mpinfer;
using namespace mpinfer::job;

namespace {

constexpr int64_t kVocab = 259;

struct Fixture {
  std::unique_ptr<text::Tokenizer> tokenizer = tests::byte_tokenizer();
  BuilderOptions options{.max_model_len = 64, .vocab_size = kVocab};

  Expected<Request> build(const std::string& line) const {
    return RequestBuilder(options, tokenizer.get()).build(7, line);
  }
  std::string code(const std::string& line) const {
    const auto request = build(line);
    return request ? "" : request.error().code;
  }
  std::string param(const std::string& line) const {
    const auto request = build(line);
    return request ? "" : request.error().param;
  }
};

std::string with(const std::string& field) {
  return R"({"prompt": "x", )" + field + "}";
}

}  // namespace

TEST_CASE("what is no JSON object is invalid_json") {
  const Fixture f;
  for (const std::string line : {"",
                                 "x",
                                 "[1]",
                                 "[]",
                                 "null",
                                 "true",
                                 "1",
                                 "\"a\"",
                                 "{",
                                 "{\"prompt\":\"x\"",
                                 "{\"prompt\":\"x\"}}",
                                 "{\"prompt\":\"x\"} x",
                                 "{'prompt':'x'}",
                                 "{\"prompt\":\"x\",}",
                                 "{\"prompt\":\"tab\there\"}",
                                 "{\"prompt\":\"x\",\"temperature\":NaN}",
                                 "{\"prompt\":\"x\",\"temperature\":Infinity}",
                                 "{\"prompt\":\"x\",\"seed\":01}",
                                 "{\"prompt\":\"x\",\"a\":1e999}",
                                 "{\"prompt\":\"x\",\"a\":-1e999}",
                                 "{\"prompt\":\"bad \\q escape\"}",
                                 "// comment",
                                 "{\"prompt\":\"x\"} // c"}) {
    INFO(line);
    CHECK(f.code(line) == "invalid_json");
  }
  CHECK(f.code(std::string("{\"prompt\":\"x\"}\0", 15)) == "invalid_json");
  CHECK(f.code(std::string("{\"prompt\":\"x\"}\0 trailing", 24)) == "invalid_json");
}

TEST_CASE("deep nesting and endless numbers are invalid_json, in linear time") {
  const Fixture f;
  const std::string deep(100000, '[');
  CHECK(f.code(deep) == "invalid_json");
  CHECK(f.code(with("\"a\":" + deep + std::string(100000, ']'))) == "invalid_json");
  CHECK(f.code(with("\"a\":" + std::string(100, '[') + std::string(100, ']'))).empty());
  CHECK(f.code(with("\"seed\":" + std::string(1000000, '9'))) == "invalid_json");
  CHECK(f.code(with("\"a\":0." + std::string(1000000, '9'))) == "invalid_json");
  CHECK(f.code(with("\"a\":-0." + std::string(1000000, '0') + "1")) == "invalid_json");
}

TEST_CASE("invalid UTF-8 and lone surrogates are invalid_utf8; an escaped NUL is text") {
  const Fixture f;
  for (const std::string bytes :
       {"\xff", "\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf5\x80\x80\x80", "\xe2\x82"}) {
    CHECK(f.code("{\"prompt\":\"" + bytes + "\"}") == "invalid_utf8");
    CHECK(f.code(with("\"other\":\"" + bytes + "\"")) == "invalid_utf8");
  }
  CHECK(f.code(R"({"prompt":"\ud800"})") == "invalid_utf8");
  CHECK(f.code(R"({"prompt":"\udc00 x"})") == "invalid_utf8");
  CHECK(f.code(R"({"prompt":"\ud800A"})") == "invalid_utf8");
  CHECK(f.build(R"({"prompt":"a\u0000b"})")->prompt_token_ids.size() == 3);
  CHECK(f.build(R"({"prompt":"\ud83d\ude00"})")->prompt_token_ids.size() == 4);
}

TEST_CASE("forms: the first that matches") {
  const Fixture f;
  CHECK(f.param(R"({"custom_id":"a","url":"/v1/completions","prompt":"x"})") == "body");
  CHECK(f.code(R"({"custom_id":"a","prompt":"x"})").empty());
  CHECK(f.code(R"({"messages":[{"role":"user","content":"x"}],"prompt":"x"})") == "template_error");
  CHECK(f.code(R"({"messages":null,"prompt":"x"})").empty());
  CHECK(f.build(R"({"prompt_token_ids":[5,6],"prompt":"x"})")->prompt_token_ids ==
        std::vector<int32_t>{5, 6});
  CHECK(f.code(R"({"text":"x"})") == "invalid_param");
  CHECK(f.param(R"({"text":"x"})") == "prompt");
}

TEST_CASE("prompts of a wrong type or empty") {
  const Fixture f;
  CHECK(f.code(R"({"prompt":""})") == "empty_prompt");
  CHECK(f.code(R"({"prompt_token_ids":[]})") == "empty_prompt");
  for (const char* value :
       {"1", "1.5", "null", "true", "[\"x\"]", "{\"a\":1}", "18446744073709551615"}) {
    INFO(value);
    CHECK(f.code(std::string("{\"prompt\":") + value + "}") == "invalid_param");
  }
  for (const char* value : {"[1.5]", "[\"1\"]", "[-1]", "[259]", "[18446744073709551615]", "[[1]]",
                            "[1,null]", "7", "\"1 2\"", "[9223372036854775807]"}) {
    INFO(value);
    CHECK(f.code(std::string("{\"prompt_token_ids\":") + value + "}") == "invalid_param");
    CHECK(f.param(std::string("{\"prompt_token_ids\":") + value + "}") == "prompt_token_ids");
  }
}

TEST_CASE("prompts that leave no room are prompt_too_long, or cut as asked") {
  Fixture f;
  const std::string ids63 = "{\"prompt\":\"" + std::string(63, 'a') + "\"}";
  const std::string ids64 = "{\"prompt\":\"" + std::string(63, 'a') + "b\"}";
  CHECK(f.code(ids63).empty());
  CHECK(f.build(ids63)->sampling.max_tokens == 1);
  CHECK(f.code(ids64) == "prompt_too_long");
  f.options.too_long = TooLong::kTruncateLeft;
  const auto left = f.build(R"({"max_tokens":10,"prompt":")" + std::string(100, 'a') + "b\"}");
  CHECK(left->prompt_token_ids.size() == 54);
  CHECK(left->prompt_token_ids.back() == tests::ids_of(*f.tokenizer, "b")[0]);
  CHECK(left->sampling.max_tokens == 10);
  f.options.too_long = TooLong::kTruncateRight;
  const auto right = f.build(R"({"max_tokens":10,"prompt":"b)" + std::string(100, 'a') + "\"}");
  CHECK(right->prompt_token_ids.size() == 54);
  CHECK(right->prompt_token_ids.front() == tests::ids_of(*f.tokenizer, "b")[0]);
  f.options.too_long = TooLong::kTruncateLeft;
  std::string special = "{\"prompt_token_ids\":[1";
  for (int i = 0; i < 100; ++i) special += ",5";
  CHECK(f.build(special + "]}")->prompt_token_ids.front() == 1);
}

TEST_CASE("sampling fields out of type or range name the field") {
  const Fixture f;
  for (const auto& [name, value] : std::vector<std::pair<std::string, std::string>>{
           {"temperature", "-0.1"},
           {"temperature", "2.1"},
           {"temperature", "\"NaN\""},
           {"temperature", "true"},
           {"temperature", "[1]"},
           {"top_p", "0"},
           {"top_p", "1.01"},
           {"top_p", "-1"},
           {"min_p", "-0.5"},
           {"min_p", "1.5"},
           {"top_k", "-2"},
           {"top_k", "1.0"},
           {"top_k", "4294967296"},
           {"repetition_penalty", "0"},
           {"repetition_penalty", "-1"},
           {"repetition_penalty", "1e300"},
           {"frequency_penalty", "2.5"},
           {"presence_penalty", "-2.5"},
           {"max_tokens", "0"},
           {"max_tokens", "-1"},
           {"max_tokens", "1e3"},
           {"max_tokens", "99999999999"},
           {"max_tokens", "18446744073709551615"},
           {"max_tokens", "\"5\""},
           {"min_tokens", "-1"},
           {"seed", "1.5"},
           {"seed", "\"1\""},
           {"stop", "1"},
           {"stop", "[1]"},
           {"stop", "\"\""},
           {"stop", "[\"a\",\"\"]"},
           {"stop", "[\"a\",[\"b\"]]"},
           {"stop", "{}"},
           {"stop_token_ids", "5"},
           {"stop_token_ids", "[-1]"},
           {"stop_token_ids", "[259]"},
           {"stop_token_ids", "[1.5]"},
           {"ignore_eos", "1"},
           {"ignore_eos", "\"true\""},
           {"skip_special_tokens", "0"},
           {"include_stop_str_in_output", "[]"},
           {"stop", "\"" + std::string(257, 's') + "\""},
           {"stop",
            "[\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\","
            "\"a\",\"a\",\"a\"]"}}) {
    INFO(name << " " << value);
    for (const std::string& line : {with("\"" + name + "\":" + value),
                                    with("\"sampling_params\":{\"" + name + "\":" + value + "}")}) {
      CHECK(f.code(line) == "invalid_param");
      CHECK(f.param(line) == name);
    }
  }
  CHECK(f.code(with("\"max_tokens\":2,\"min_tokens\":3")) == "invalid_param");
  CHECK(f.code(with("\"sampling_params\":[1]")) == "invalid_param");
}

TEST_CASE("unknown nested fields are unsupported; null is absent") {
  const Fixture f;
  CHECK(f.code(with("\"sampling_params\":{\"max_new_tokens\":5}")) == "unsupported");
  CHECK(f.param(with("\"sampling_params\":{\"stream\":true}")) == "stream");
  CHECK(f.code(with("\"sampling_params\":{\"user\":\"me\",\"metadata\":{}}")).empty());
  CHECK(f.code(with("\"n\":1,\"logprobs\":null,\"temperature\":null,\"stop\":null,\"sampling_"
                    "params\":null"))
            .empty());
  CHECK(f.code(with("\"max_new_tokens\":5,\"unknown\":{}")).empty());
}

TEST_CASE("n, log-probabilities, biases and word lists: ranges and types") {
  const Fixture f;
  for (const char* field : {"\"n\":0",
                            "\"n\":1025",
                            "\"n\":\"2\"",
                            "\"n\":2,\"temperature\":0",
                            "\"logprobs\":21",
                            "\"logprobs\":-1",
                            "\"logprobs\":\"1\"",
                            "\"top_logprobs\":2",
                            "\"top_logprobs\":21,\"logprobs\":true",
                            "\"prompt_logprobs\":1.5",
                            "\"logit_bias\":[1]",
                            "\"logit_bias\":{\"a\":1}",
                            "\"logit_bias\":{\"259\":1}",
                            "\"logit_bias\":{\"-1\":1}",
                            "\"logit_bias\":{\"5\":100.5}",
                            "\"logit_bias\":{\"5\":\"1\"}",
                            "\"logit_bias\":{\"5\":{\"6\":1}}",
                            "\"allowed_token_ids\":[]",
                            "\"allowed_token_ids\":[259]",
                            "\"allowed_token_ids\":[1.5]",
                            "\"bad_words\":\"a\"",
                            "\"bad_words\":[1]",
                            "\"bad_words\":[\"\"]",
                            "\"max_tokens\":0",
                            "\"max_tokens\":0,\"logprobs\":1"}) {
    INFO(field);
    CHECK(f.code(with(field)) == "invalid_param");
    CHECK(f.code(with("\"sampling_params\":{" + std::string(field) + "}")) == "invalid_param");
  }
  const auto request = f.build(with(
      R"("n":3,"logprobs":true,"top_logprobs":5,"prompt_logprobs":0,"logit_bias":{"7":-100,"4":1.5},
      "allowed_token_ids":[9,4,9],"bad_words":["ab"," c"])"));
  REQUIRE(request.has_value());
  const SamplingParams& s = request->sampling;
  CHECK(s.n == 3);
  CHECK(s.num_logprobs == 5);
  CHECK(s.num_prompt_logprobs == 0);
  REQUIRE(s.logit_bias.size() == 2);
  CHECK(s.logit_bias[0].token_id == 4);
  CHECK(s.logit_bias[0].bias == 1.5F);
  CHECK(s.allowed_token_ids == std::vector<int32_t>{4, 9});
  const auto& t = *f.tokenizer;
  CHECK(s.bad_words ==
        std::vector<std::vector<int32_t>>{tests::ids_of(t, "ab"), tests::ids_of(t, "c")});
  CHECK(
      f.build(with("\"sampling_params\":{\"logit_bias\":{\"3\":2}}"))->sampling.logit_bias.size() ==
      1);
  const auto nothing = f.build(with("\"max_tokens\":0,\"prompt_logprobs\":1,\"stop\":\"a\""));
  REQUIRE(nothing.has_value());
  CHECK(nothing->sampling.prompt_only);
  CHECK(nothing->sampling.stop.empty());
}

TEST_CASE("continuations: the tokens of each behind the prompt's") {
  const Fixture f;
  const auto request = f.build(R"({"prompt":"ab","continuations":["c","de"]})");
  REQUIRE(request.has_value());
  CHECK(request->prompt_token_ids == tests::ids_of(*f.tokenizer, "ab"));
  CHECK(request->continuations ==
        std::vector<std::vector<int32_t>>{tests::ids_of(*f.tokenizer, "c"),
                                          tests::ids_of(*f.tokenizer, "de")});
  CHECK(request->sampling.n == 2);
  CHECK(request->sampling.prompt_logprobs_from == 2);
  for (const char* given : {"[]", "\"c\"", "[1]", "[\"\"]", "[[\"a\"]]", "{}"}) {
    INFO(given);
    CHECK(f.param(std::string(R"({"prompt":"ab","continuations":)") + given + "}") ==
          "continuations");
  }
  CHECK(f.code(R"({"prompt":"ab","continuations":[")" + std::string(63, 'x') + "\"]}") ==
        "prompt_too_long");
  CHECK(f.code(R"({"prompt_token_ids":[5],"continuations":["x"]})") == "unsupported");
}

TEST_CASE("every field arrives") {
  const Fixture f;
  const auto request = f.build(with(
      R"("max_tokens":9,"min_tokens":2,"temperature":0.5,"top_p":0.25,"top_k":7,"min_p":0.125,"repetition_penalty":1.5,
      "frequency_penalty":-2,"presence_penalty":2,"seed":18446744073709551615,"stop":["a","b"],"stop_token_ids":[4],
      "ignore_eos":true,"include_stop_str_in_output":true,"skip_special_tokens":false)"));
  REQUIRE(request);
  const SamplingParams& s = request->sampling;
  CHECK(request->index == 7);
  CHECK(s.max_tokens == 9);
  CHECK(s.min_tokens == 2);
  CHECK(s.temperature == 0.5F);
  CHECK(s.top_p == 0.25F);
  CHECK(s.top_k == 7);
  CHECK(s.min_p == 0.125F);
  CHECK(s.repetition_penalty == 1.5F);
  CHECK(s.frequency_penalty == -2.0F);
  CHECK(s.presence_penalty == 2.0F);
  CHECK(s.seed == ~uint64_t{0});
  CHECK(s.stop == std::vector<std::string>{"a", "b"});
  CHECK(s.stop_token_ids == std::vector<int32_t>{4});
  CHECK(s.ignore_eos);
  CHECK(s.include_stop_str_in_output);
  CHECK_FALSE(s.skip_special_tokens);
}

TEST_CASE("defaults: neutral, the rest of the context; a row wins") {
  Fixture f;
  CHECK(f.build(R"({"prompt":"abcd"})")->sampling.max_tokens == 60);
  CHECK(f.build(R"({"prompt":"abcd","max_tokens":1000})")->sampling.max_tokens == 60);
  CHECK(f.build(R"({"prompt":"x"})")->sampling.temperature == 1.0F);
  f.options.defaults.temperature = 0.25;
  f.options.defaults.max_tokens = 5;
  CHECK(f.build(R"({"prompt":"x"})")->sampling.temperature == 0.25F);
  CHECK(f.build(R"({"prompt":"x"})")->sampling.max_tokens == 5);
  CHECK(f.build(R"({"prompt":"x","temperature":0,"max_completion_tokens":6})")->sampling.greedy());
  CHECK(f.build(R"({"prompt":"x","max_completion_tokens":6})")->sampling.max_tokens == 6);
}

TEST_CASE("row-params: what is a parameter and what is data") {
  Fixture f;
  const std::string line = with(R"("temperature":"warm","sampling_params":{"temperature":0.5})");
  CHECK(f.code(line) == "invalid_param");
  f.options.row_params = RowParams::kNested;
  CHECK(f.build(line)->sampling.temperature == 0.5F);
  f.options.row_params = RowParams::kNone;
  CHECK(f.build(line)->sampling.temperature == 1.0F);
}

TEST_CASE("nested fields win over top-level ones") {
  const Fixture f;
  CHECK(f.build(with(R"("sampling_params":{"top_k":3},"top_k":5)"))->sampling.top_k == 3);
}

TEST_CASE("the last of duplicate keys wins") {
  const Fixture f;
  const auto a = tests::ids_of(*f.tokenizer, "b");
  CHECK(f.build(R"({"prompt":1,"prompt":"b"})")->prompt_token_ids == a);
  CHECK(f.code(R"({"prompt":"b","prompt":1})") == "invalid_param");
  CHECK(f.build(with(R"("top_k":"x","top_k":5)"))->sampling.top_k == 5);
  CHECK(f.build(with(R"("sampling_params":{"top_k":"x"},"sampling_params":{"top_p":0.5})"))
            ->sampling.top_k == 0);
  CHECK(f.build(R"({"prompt_token_ids":[1,2],"prompt_token_ids":[3]})")->prompt_token_ids ==
        std::vector<int32_t>{3});
}

TEST_CASE("--field: a name, a name with dots, a path") {
  Fixture f;
  const auto b = tests::ids_of(*f.tokenizer, "b");
  f.options.field = "text";
  CHECK(f.build(R"({"text":"b","prompt":"x"})")->prompt_token_ids == b);
  f.options.field = "a.b.c";
  CHECK(f.build(R"({"a":{"b":{"c":"b"},"c":"x"}})")->prompt_token_ids == b);
  CHECK(f.build(R"({"a":{"b":{"c":"x"}},"a.b.c":"b"})")->prompt_token_ids == b);
  CHECK(f.code(R"({"a":[{"b":{"c":"b"}}]})") == "invalid_param");
  CHECK(f.code(R"({"a":{"b":"c"}})") == "invalid_param");
  CHECK(f.build(R"({"a":{"b":{"c":"x"}},"a":{"b":{"c":"b"}}})")->prompt_token_ids == b);
  CHECK(f.code(R"({"a":{"b":{"c":"x"}},"a":{}})") == "invalid_param");
  f.options.field = "stop";
  CHECK(f.build(R"({"stop":"b"})")->sampling.stop == std::vector<std::string>{"b"});
}

TEST_CASE("without a tokenizer only token ids run") {
  Fixture f;
  f.tokenizer.reset();
  CHECK(f.code(R"({"prompt":"x"})") == "unsupported");
  CHECK(f.code(R"({"prompt_token_ids":[1],"stop":"x"})") == "unsupported");
  CHECK(f.code(R"({"prompt_token_ids":[1],"stop":[]})").empty());
}

TEST_CASE("a tokenizer larger than the model is a tokenizer_error of the row that shows it") {
  Fixture f;
  f.options.vocab_size = 10;
  CHECK(f.code(R"({"prompt":"zzz"})") == "tokenizer_error");
  CHECK(f.code(R"({"prompt":"!"})").empty());
}

TEST_CASE("add_special_tokens must be a boolean") {
  const Fixture f;
  CHECK(f.code(with("\"add_special_tokens\":0")) == "invalid_param");
  CHECK(f.code(with("\"add_special_tokens\":false")).empty());
}

TEST_CASE("--replica-sampling") {
  const auto fields =
      parse_replica_sampling("0:temperature=0.5,seed=3;2:top_p=0.9,ignore_eos=true", 3, kVocab);
  CHECK(fields[0].temperature == 0.5);
  CHECK(fields[0].seed == 3U);
  CHECK_FALSE(fields[1].top_p);
  CHECK(fields[2].top_p == 0.9);
  CHECK(fields[2].ignore_eos == true);
  CHECK(parse_replica_sampling("", 2, kVocab).size() == 2);
  for (const char* bad : {"3:top_p=0.5", "-1:top_p=0.5", "x:top_p=0.5", "top_p=0.5", "0:top_p",
                          "0:top_p=2", "0:topp=0.5", "0:temperature=warm"}) {
    INFO(bad);
    CHECK_THROWS_AS(parse_replica_sampling(bad, 3, kVocab), Error);
  }
}

TEST_CASE("generation_config: what it says, unless a flag says otherwise") {
  model::GenerationDefaults generation;
  generation.has_temperature = generation.has_top_k = true;
  generation.temperature = 0.5F;
  generation.top_k = 9;
  SamplingFields flags;
  flags.top_k = 3;
  const SamplingFields both = overlay(flags, from_generation_config(generation));
  CHECK(both.temperature == 0.5);
  CHECK(both.top_k == 3);
  generation.do_sample = false;
  CHECK(from_generation_config(generation).temperature == 0.0);
}

TEST_CASE("random damage of a good row is a value, never an exception") {
  const Fixture f;
  const std::string good =
      R"({"id":"a","prompt":"hello","prompt_token_ids":null,"max_tokens":5,"stop":["x","y"],"sampling_params":{"top_k":4}})";
  std::mt19937 random(17);
  for (int round = 0; round < 20000; ++round) {
    std::string line = good;
    for (auto n = 1 + random() % 3; n > 0; --n) {
      const size_t at = random() % line.size();
      switch (random() % 3) {
        case 0:
          line[at] = static_cast<char>(random() % 256);
          break;
        case 1:
          line.erase(at, 1 + random() % 8);
          break;
        default:
          line.insert(at, 1, "\"{}[],:\\0e-"[random() % 11]);
      }
      if (line.empty()) line = "x";
    }
    const auto request = f.build(line);
    if (request) {
      CHECK(request->sampling.max_tokens >= 1);
      CHECK(!request->prompt_token_ids.empty());
    } else {
      CHECK(!request.error().code.empty());
      CHECK(!request.error().message.empty());
    }
  }
}
