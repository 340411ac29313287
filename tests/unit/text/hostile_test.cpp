// tokenizer.json that lies is refused with file, field and rule; texts that are no UTF-8 or make a
// pattern backtrack are row errors; long monotonous texts stay linear.
#include <nlohmann/json.hpp>

#include "lib/core/error.h"
#include "tests/support/catch.h"
#include "tests/unit/text/tokenizer_folder.h"

namespace mpinfer::text::test {
namespace {

using nlohmann::json;

json gpt2() {
  return json::parse(read_file(small_tokenizer_path("gpt2") + "/tokenizer.json"));
}

json llama() {
  return json::parse(read_file(small_tokenizer_path("llama") + "/tokenizer.json"));
}

// The refusal of a file, or "" if it is read.
std::string refusal(const std::string& bytes) {
  const TokenizerFolder folder;
  try {
    folder.load(bytes);
  } catch (const Error& error) {
    CHECK(error.exit_code() == ExitCode::kModelRefused);
    return error.what();
  }
  return "";
}

void check_refused(const json& file, const std::string& word, const std::string& other = "") {
  const std::string message = refusal(file.dump());
  INFO(message << " | wanted: " << word);
  CHECK(message.find("tokenizer.json") != std::string::npos);
  CHECK(message.find(word) != std::string::npos);
  CHECK(message.find(other) != std::string::npos);
}

json nested(int depth) {
  json inner = {{"type", "NFC"}};
  for (int i = 0; i < depth; ++i) inner = {{"type", "Sequence"}, {"normalizers", {inner}}};
  return inner;
}

}  // namespace

TEST_CASE("files that are no tokenizer are refused") {
  CHECK(refusal("").find("tokenizer.json") != std::string::npos);
  CHECK(refusal("[]").find("must be an object") != std::string::npos);
  CHECK(refusal("{\"model\": ").find("tokenizer.json") != std::string::npos);
  CHECK(refusal("{\"model\": {\"vocab\": {\"\xFF\": 1}}}").find("tokenizer.json") !=
        std::string::npos);
  CHECK(refusal(std::string(100000, '[')).find("nested deeper") != std::string::npos);
  CHECK_FALSE(refusal("{}").empty());
  const TokenizerFolder empty;
  CHECK_THROWS_AS(Tokenizer::load(empty.path()), Error);
}

TEST_CASE("a vocabulary that lies is refused") {
  json file = gpt2();
  file["model"]["vocab"]["far"] = 4000000000;
  check_refused(file, "model.vocab", "whole number");
  file = gpt2();
  file["model"]["vocab"]["far"] = 15000000;
  check_refused(file, "15000000");
  file = gpt2();
  file["model"]["vocab"]["far"] = -1;
  check_refused(file, "model.vocab");
  file = gpt2();
  file["model"]["vocab"]["far"] = 1.5;
  check_refused(file, "model.vocab");
  file = gpt2();
  file["model"]["vocab"] = json::array({"a", "b"});
  check_refused(file, "model.vocab", "object");
  file = gpt2();
  file["model"]["vocab"].erase("a");
  file["model"]["merges"] = json::array();
  check_refused(file, "model.vocab", "byte 0x61");
  file = llama();
  file["model"]["vocab"].erase("<0x0A>");
  check_refused(file, "model.vocab", "<0x0A>");
  file = gpt2();
  file["model"]["vocab"]["b"] = file["model"]["vocab"]["a"];
  check_refused(file, "model.vocab", "twice");
}

TEST_CASE("merges that lie are refused") {
  for (const json& merge : {json("nothing here"), json("onlyone"), json("a b c"), json(7),
                            json::array({"a"}), json::array({"a", 1}), json(nullptr)}) {
    json file = gpt2();
    file["model"]["merges"].push_back(merge);
    check_refused(file, fmt::format("model.merges[{}]", file["model"]["merges"].size() - 1));
  }
  json file = gpt2();
  file["model"]["merges"] = {{"a", "b"}};
  CHECK_FALSE(refusal(file.dump()).empty());
  file["model"]["merges"] = "a b";
  check_refused(file, "model.merges", "list");
  file["model"].erase("merges");
  check_refused(file, "merges");
}

TEST_CASE("unknown parts are refused by name") {
  json file = gpt2();
  file["model"]["type"] = "Unigram";
  check_refused(file, "Unigram");
  file = gpt2();
  file["model"]["end_of_word_suffix"] = "</w>";
  check_refused(file, "end_of_word_suffix");
  for (const char* part : {"normalizer", "pre_tokenizer", "post_processor", "decoder"}) {
    file = gpt2();
    file[part] = {{"type", "Telepathy"}};
    check_refused(file, part, "Telepathy");
    file[part] = {{"kind", 1}};
    check_refused(file, part, "type");
    file[part] = "ByteLevel";
    check_refused(file, part);
  }
  file = gpt2();
  file["normalizer"] = nested(20);
  check_refused(file, "normalizer", "deep");
  file["normalizer"] = nested(3);
  CHECK(refusal(file.dump()).empty());
}

TEST_CASE("patterns that do not compile are refused") {
  json file = gpt2();
  for (const char* pattern : {"(", "[a", "a{2,1}", "(?<n>a)(?<n>b)", "\\C"}) {
    file["pre_tokenizer"] = {{"type", "Split"},
                             {"pattern", {{"Regex", pattern}}},
                             {"behavior", "Isolated"},
                             {"invert", false}};
    INFO(pattern);
    check_refused(file, "pre_tokenizer", "compile");
  }
  file["pre_tokenizer"]["pattern"] = {{"Regex", std::string(70000, 'a')}};
  check_refused(file, "pre_tokenizer", "64 KiB");
  file["pre_tokenizer"]["pattern"] = "a";
  check_refused(file, "pattern");
  file["pre_tokenizer"]["pattern"] = {{"Regex", "a"}};
  file["pre_tokenizer"]["behavior"] = "Sideways";
  check_refused(file, "Sideways");
}

TEST_CASE("special tokens that lie are refused") {
  json file = llama();
  file["post_processor"]["special_tokens"]["<s>"]["ids"] = {999999};
  check_refused(file, "post_processor", "beyond the vocabulary");
  file = llama();
  file["post_processor"]["special_tokens"].erase("<s>");
  check_refused(file, "post_processor", "<s>");
  file = llama();
  file["added_tokens"][0]["id"] = -1;
  check_refused(file, "added_tokens[0].id");
  file = llama();
  file["added_tokens"][0]["id"] = 2000000000;
  check_refused(file, "2000000000");
  file = llama();
  file["added_tokens"][0]["lstrip"] = "yes";
  check_refused(file, "added_tokens[0].lstrip", "true or false");
  file = llama();
  file["decoder"]["decoders"][3]["start"] = -1;
  check_refused(file, "decoder");
}

TEST_CASE("text that is no UTF-8 is a row error") {
  const auto tokenizer = Tokenizer::load(small_tokenizer_path("gpt2"));
  for (const char* bad : {"ok \xFF", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE6\x9D",
                          "\x80", "\xF0\x80\x80\x80"}) {
    const auto ids = tokenizer->encode(bad, false);
    REQUIRE_FALSE(ids);
    CHECK(ids.error().code == "invalid_utf8");
  }
  CHECK(tokenizer->encode("ok \xFF", false).error().message.find("byte 3") != std::string::npos);
}

TEST_CASE("a pattern that backtracks without end is a row error") {
  json file = gpt2();
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"},
                              {"pattern", {{"Regex", "(?:a|a|aa)+(?=c)"}}},
                              {"behavior", "Isolated"},
                              {"invert", false}},
                             {{"type", "ByteLevel"}, {"use_regex", false}}}}};
  const TokenizerFolder folder;
  const auto tokenizer = folder.load(file.dump());
  const auto ids = tokenizer->encode(std::string(3000, 'a') + "b", false);
  REQUIRE_FALSE(ids);
  CHECK(ids.error().code == "tokenizer_error");
  const auto good = tokenizer->encode("aac", false);
  CHECK(good);
}

TEST_CASE("a million equal characters are tokenised") {
  for (const char* name :
       {"gpt2", "smollm", "llama3", "qwen2", "o200k", "deepseek", "llama", "metaspace_first"}) {
    const auto tokenizer = Tokenizer::load(small_tokenizer_path(name));
    for (const char* unit : {"a", "^", " ", "1", "\n", "\xCC\x81", "A", "\xE6\x9D\xB1"}) {
      INFO(name << " " << unit);
      std::string text;
      for (int i = 0; i < 1000000 / 8; ++i) text += unit;
      const auto ids = tokenizer->encode(text, false);
      REQUIRE(ids);
      const std::string back = tokenizer->decode(*ids, false);
      if (name[0] != 'm' && std::string(name) != "qwen2") CHECK(back == text);
    }
  }
}

}  // namespace mpinfer::text::test
