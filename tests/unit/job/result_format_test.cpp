// Output lines: pass-through byte for byte, valid JSON whatever the text.
#include "lib/job/result_format.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "lib/job/json_text.h"
#include "tests/support/catch.h"

using namespace mpinfer;
using namespace mpinfer::job;

namespace {

// One row and what stands in its answer, to be changed before it is written.
struct Row {
  std::vector<Completion> completions = std::vector<Completion>(1);
  SamplingParams sampling;
  FormatOptions options;
  std::optional<std::string> text = "x";

  Row() {
    completions[0].token_ids = {4, 5};
    completions[0].finish_reason = FinishReason::kStop;
    completions[0].stop_reason = 2;
  }
  std::string line(std::string_view input = "{}") const {
    Answer answer{.index = 3, .samples = {}, .sampling = &sampling, .num_prompt_tokens = 9};
    answer.token_text = [](int32_t id) { return "t" + std::to_string(id); };
    for (const Completion& completion : completions) answer.samples.push_back({&completion, text});
    return format_answer(input, answer, options);
  }
  nlohmann::json json(std::string_view input = "{}") const {
    return nlohmann::json::parse(line(input));
  }
};

std::string answer_line(std::string_view input, const std::string& output, bool ids = false) {
  Row row;
  row.text = output;
  row.options.token_ids = ids;
  return row.line(input);
}

}  // namespace

TEST_CASE("the whole line, byte for byte") {
  CHECK(
      answer_line(R"( { "id" : 1.10 ,"prompt":"a\u0041", "big":18446744073709551616,"l":[ 1 ] } )",
                  "x") ==
      R"({"id" : 1.10, "prompt":"a\u0041", "big":18446744073709551616, "l":[ 1 ], "index": 3, "output": "x", )"
      R"("finish_reason": "stop", "stop_reason": 2, "prompt_tokens": 9, "completion_tokens": 2, "error": null})");
  CHECK(
      answer_line("{}", "x", true) ==
      R"({"index": 3, "output": "x", "finish_reason": "stop", "stop_reason": 2, "prompt_tokens": 9, )"
      R"("completion_tokens": 2, "error": null, "output_token_ids": [4, 5]})");
}

TEST_CASE("members named like ours are dropped, duplicates of others stay") {
  const std::string line = answer_line(
      R"({"index":9,"a":1,"output":"old","\u0065rror":{"b":2},"a":2,"output_token_ids":[1],"indexes":4})",
      "x");
  CHECK(line.find("old") == std::string::npos);
  CHECK(line.find("\"b\"") == std::string::npos);
  CHECK(line.substr(0, 30) == R"({"a":1, "a":2, "indexes":4, "i)");
  CHECK(nlohmann::json::parse(line).at("index") == 3);
}

TEST_CASE("any output text gives valid JSON, with invalid bytes replaced") {
  std::string all;
  for (int c = 0; c < 256; ++c) all += static_cast<char>(c);
  const auto json = nlohmann::json::parse(answer_line("{}", all));
  const auto text = json.at("output").get<std::string>();
  CHECK(text.substr(0, 128) == all.substr(0, 128));
  CHECK(is_valid_utf8(text));
  for (const std::string good : {"é", "日本", "😀", "\u007f", "a\"b\\c\n"}) {
    CHECK(nlohmann::json::parse(answer_line("{}", good)).at("output") == good);
  }
}

TEST_CASE("stop reasons: an id, a string, none") {
  Row row;
  row.completions[0].stop_reason = {};
  CHECK(row.json().at("stop_reason").is_null());
  row.completions[0].stop_reason = std::string("a\"b");
  CHECK(row.json().at("stop_reason") == "a\"b");
  row.text = std::nullopt;
  CHECK(row.json().at("output").is_null());
  CHECK(row.json().at("output_token_ids") == std::vector<int>{4, 5});
}

TEST_CASE("samples: lists whose tokens are summed, or a line each") {
  Row row;
  row.completions.push_back(row.completions[0]);
  row.completions[1].sample = 1;
  row.completions[1].finish_reason = FinishReason::kLength;
  row.completions[1].stop_reason = {};
  row.options.token_ids = true;
  auto json = row.json(R"({"id": 7})");
  CHECK(json.at("output") == std::vector<std::string>{"x", "x"});
  CHECK(json.at("finish_reason") == std::vector<std::string>{"stop", "length"});
  CHECK(json.at("stop_reason") == nlohmann::json::parse("[2, null]"));
  CHECK(json.at("output_token_ids") == nlohmann::json::parse("[[4, 5], [4, 5]]"));
  CHECK(json.at("completion_tokens") == 4);
  CHECK(json.at("prompt_tokens") == 9);
  row.options.line_a_sample = true;
  const std::string lines = row.line(R"({"id": 7, "sample": "mine"})");
  const size_t border = lines.find(kLineSeparator);
  REQUIRE(border != std::string::npos);
  CHECK(lines.find(kLineSeparator, border + 1) == std::string::npos);
  const auto second = nlohmann::json::parse(lines.substr(border + 1));
  CHECK(second.at("sample") == 1);
  CHECK(second.at("id") == 7);
  CHECK(second.at("output") == "x");
  CHECK(second.at("completion_tokens") == 2);
}

TEST_CASE("log-probabilities, of the completion and of the prompt, and their names in the input") {
  Row row;
  row.sampling.num_logprobs = 1;
  row.sampling.num_prompt_logprobs = 0;
  row.completions[0].logprobs = {{4, -0.5F, 2, {{9, -0.25F}}}, {5, -HUGE_VALF, 7, {{9, -1.0F}}}};
  row.completions[0].prompt_logprobs = {{6, -2.0F, 1, {}}};
  const auto json = row.json(R"({"logprobs": 1, "prompt_logprobs": 0, "cumulative_logprob": 3})");
  CHECK(json.at("cumulative_logprob") == -9999.0);
  CHECK(json.at("logprobs").at(0) ==
        nlohmann::json::parse(
            R"({"token_id": 4, "token": "t4", "logprob": -0.5, "rank": 2, "top": [[9, -0.25]]})"));
  CHECK(json.at("logprobs").at(1).at("logprob") == -9999.0);
  CHECK(json.at("prompt_logprobs").at(0).is_null());
  CHECK(json.at("prompt_logprobs").at(1).at("token_id") == 6);
  row.sampling.num_logprobs = -1;
  CHECK(row.json(R"({"logprobs": null})").at("logprobs").is_null());
}

TEST_CASE("another field for the answer leaves the input's output alone") {
  Row row;
  row.options.output_field = "answer \"1\"";
  const auto json = row.json(R"({"output": "theirs"})");
  CHECK(json.at("output") == "theirs");
  CHECK(json.at("answer \"1\"") == "x");
}

TEST_CASE("scores: sums, lengths and whether every token is the likeliest") {
  Row row;
  row.sampling.prompt_only = true;
  row.sampling.prompt_logprobs_from = 9;
  row.sampling.num_prompt_logprobs = 0;
  row.completions[0].prompt_logprobs = {{6, -2.0F, 1, {}}, {7, -1.0F, 1, {}}};
  row.completions.push_back(row.completions[0]);
  row.completions[1].prompt_logprobs = {{6, -4.0F, 2, {}}};
  CHECK(row.json(R"({"scores": "old"})").at("scores") ==
        nlohmann::json::parse(R"([{"logprob": -3, "num_tokens": 2, "is_greedy": true},
                                  {"logprob": -4, "num_tokens": 1, "is_greedy": false}])"));
}

TEST_CASE("openai lines: for rows of that form, or for all") {
  Row row;
  row.options.model_name = "served";
  const std::string chat =
      R"({"custom_id":"c1","url":"/v1/chat/completions","body":{"model":"m","messages":[]}})";
  auto json = row.json(chat);
  CHECK(json.at("custom_id") == "c1");
  CHECK(json.at("error").is_null());
  CHECK(json.at("response").at("status_code") == 200);
  const auto& body = json.at("response").at("body");
  CHECK(body.at("object") == "chat.completion");
  CHECK(body.at("model") == "m");
  CHECK(body.at("choices").at(0).at("message").at("content") == "x");
  CHECK(body.at("usage").at("total_tokens") == 11);
  CHECK(row.json(R"({"custom_id":"c1","prompt":"x"})").at("output") == "x");
  CHECK(row.line(chat) == row.line(chat));
  row.options.format = OutputFormat::kFlat;
  CHECK(row.json(chat).at("output") == "x");
  row.options.format = OutputFormat::kOpenAi;
  json = row.json(R"({"prompt":"x"})");
  CHECK(json.at("custom_id") == "row-3");
  CHECK(json.at("response").at("body").at("object") == "text_completion");
  CHECK(json.at("response").at("body").at("model") == "served");
  const RowError error{"unsupported", "no", "url"};
  const auto refused = nlohmann::json::parse(
      format_refusal(chat, {.index = 4, .error = &error, .file = "in", .line = 8}, row.options));
  CHECK(refused.at("response").is_null());
  CHECK(refused.at("custom_id") == "c1");
  CHECK(refused.at("error").at("code") == "unsupported");
  CHECK(refused.at("error").at("line") == 8);
}

TEST_CASE("an error row: values null, the object where and why; unreadable lines pass nothing on") {
  const RowError error{"invalid_param", "top_p \"2\"", "top_p"};
  const std::string line = format_refusal(
      R"({"id":1,"error":5})", {.index = 4, .error = &error, .file = "in.jsonl", .line = 8}, {});
  const auto json = nlohmann::json::parse(line);
  CHECK(json.at("id") == 1);
  for (const char* name :
       {"output", "finish_reason", "stop_reason", "prompt_tokens", "completion_tokens"}) {
    CHECK(json.at(name).is_null());
  }
  CHECK(json.at("error").at("code") == "invalid_param");
  CHECK(json.at("error").at("message") == "top_p \"2\"");
  CHECK(json.at("error").at("param") == "top_p");
  CHECK(json.at("error").at("file") == "in.jsonl");
  CHECK(json.at("error").at("line") == 8);
  for (const char* code : {"invalid_json", "invalid_utf8", "line_too_long"}) {
    const RowError unreadable{code, "why", ""};
    const auto bare = nlohmann::json::parse(format_refusal(
        "{\"id\":1, \xff", {.index = 4, .error = &unreadable, .file = "in\xff", .line = 8}, {}));
    CHECK_FALSE(bare.contains("id"));
    CHECK(bare.at("index") == 4);
    CHECK(bare.at("error").at("param").is_null());
  }
}

TEST_CASE("UTF-8: the valid prefix of every kind of damage") {
  CHECK(valid_utf8_prefix("") == 0);
  CHECK(valid_utf8_prefix("abcdefghij") == 10);
  CHECK(valid_utf8_prefix("abcdefgh\xff") == 8);
  CHECK(valid_utf8_prefix("a\xc3") == 1);
  CHECK(valid_utf8_prefix("\xe0\x80\x80") == 0);
  CHECK(valid_utf8_prefix("\xed\x9f\xbf\xed\xa0\x80") == 3);
  CHECK(valid_utf8_prefix("\xf4\x8f\xbf\xbf\xf4\x90\x80\x80") == 4);
  CHECK(valid_utf8_prefix("\xf0\x80\x80\x80") == 0);
}
