// Output lines: pass-through byte for byte, valid JSON whatever the text.
#include "lib/job/result_format.h"

#include <nlohmann/json.hpp>

#include "lib/job/json_text.h"
#include "tests/support/catch.h"

using namespace mpinfer;
using namespace mpinfer::job;

namespace {

std::string answer_line(std::string_view input, const std::string& output, bool ids = false) {
  const std::vector<int32_t> tokens = {4, 5};
  return format_answer(input, {.index = 3,
                               .output = &output,
                               .finish_reason = FinishReason::kStop,
                               .stop_reason = 2,
                               .num_prompt_tokens = 9,
                               .token_ids = &tokens,
                               .write_token_ids = ids});
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
  const std::vector<int32_t> tokens;
  const std::string output = "x";
  Answer answer{.output = &output, .stop_reason = {}, .token_ids = &tokens};
  CHECK(nlohmann::json::parse(format_answer("{}", answer)).at("stop_reason").is_null());
  answer.stop_reason = std::string("a\"b");
  CHECK(nlohmann::json::parse(format_answer("{}", answer)).at("stop_reason") == "a\"b");
  answer.output = nullptr;
  CHECK(nlohmann::json::parse(format_answer("{}", answer)).at("output").is_null());
}

TEST_CASE("an error row: values null, the object where and why; unreadable lines pass nothing on") {
  const RowError error{"invalid_param", "top_p \"2\"", "top_p"};
  const std::string line = format_refusal(
      R"({"id":1,"error":5})", {.index = 4, .error = &error, .file = "in.jsonl", .line = 8});
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
        "{\"id\":1, \xff", {.index = 4, .error = &unreadable, .file = "in\xff", .line = 8}));
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
