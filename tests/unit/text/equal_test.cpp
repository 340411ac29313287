// The small tokenizers give the ids and texts that Hugging Face `tokenizers` gave
// (make_tokenizers.py), whole and token by token, in one thread and in several.
#include <atomic>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "tests/support/catch.h"
#include "tests/unit/text/tokenizer_folder.h"

namespace mpinfer::text::test {
namespace {

std::vector<nlohmann::json> expected_rows(const std::string& name) {
  std::vector<nlohmann::json> rows;
  std::istringstream lines(read_file(small_tokenizer_path(name) + "/expected.jsonl"));
  for (std::string line; std::getline(lines, line);) rows.push_back(nlohmann::json::parse(line));
  return rows;
}

std::string streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                     bool skip_special_tokens, bool& whole_characters) {
  Detokenizer detokenizer(tokenizer, skip_special_tokens);
  std::string out;
  for (size_t i = 0; i <= ids.size(); ++i) {
    const std::string part = i < ids.size() ? detokenizer.push(ids[i]) : detokenizer.finish();
    if (!part.empty() && (static_cast<unsigned char>(part[0]) & 0xC0) == 0x80)
      whole_characters = false;
    out += part;
  }
  return out;
}

}  // namespace

TEST_CASE("ids and decoded text equal Hugging Face tokenizers") {
  const auto names = small_tokenizers();
  REQUIRE(names.size() >= 20);
  for (const std::string& name : names) {
    const auto tokenizer = Tokenizer::load(small_tokenizer_path(name));
    const auto rows = expected_rows(name);
    REQUIRE(rows.size() >= 40);
    for (const auto& row : rows) {
      INFO(name << ": " << row["text"]);
      const auto text = row["text"].get<std::string>();
      const auto ids = tokenizer->encode(text, false);
      const auto special = tokenizer->encode(text, true);
      REQUIRE(ids);
      REQUIRE(special);
      CHECK(*ids == row["ids"].get<std::vector<int32_t>>());
      CHECK(*special == row["special"].get<std::vector<int32_t>>());
      CHECK(tokenizer->decode(*special, false) == row["decoded"].get<std::string>());
      CHECK(tokenizer->decode(*special, true) == row["shown"].get<std::string>());
      bool whole_characters = true;
      CHECK(streamed(*tokenizer, *special, false, whole_characters) ==
            row["decoded"].get<std::string>());
      CHECK(streamed(*tokenizer, *special, true, whole_characters) ==
            row["shown"].get<std::string>());
      CHECK(whole_characters);
    }
  }
}

TEST_CASE("a tokenizer is shared by threads") {
  const auto tokenizer = Tokenizer::load(small_tokenizer_path("llama3"));
  const auto rows = expected_rows("llama3");
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 20 * rows.size(); ++i) {
        const auto& row = rows[(i * (t + 1)) % rows.size()];
        const auto ids = tokenizer->encode(row["text"].get<std::string>(), false);
        if (!ids || *ids != row["ids"].get<std::vector<int32_t>>()) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("the detokenizer holds back an unfinished character") {
  const auto tokenizer = Tokenizer::load(small_tokenizer_path("gpt2"));
  const auto ids = tokenizer->encode("\xF0\x9F\x91\x8D!", false);
  REQUIRE(ids);
  REQUIRE(ids->size() == 5);
  Detokenizer detokenizer(*tokenizer, false);
  for (size_t i = 0; i < 3; ++i) CHECK(detokenizer.push((*ids)[i]).empty());
  CHECK(detokenizer.push((*ids)[3]) == "\xF0\x9F\x91\x8D");
  CHECK(detokenizer.push((*ids)[4]) == "!");
  CHECK(detokenizer.push((*ids)[0]).empty());
  CHECK(detokenizer.finish() == "\xEF\xBF\xBD");
}

TEST_CASE("ids that are no tokens give no text") {
  const auto tokenizer = Tokenizer::load(small_tokenizer_path("gpt2"));
  const int32_t beyond = tokenizer->vocab_size();
  CHECK(tokenizer->decode(std::vector<int32_t>{-1, beyond, INT32_MAX, INT32_MIN}, false).empty());
  CHECK(tokenizer->token_of(beyond).empty());
  CHECK(tokenizer->token_of(-5).empty());
  CHECK_FALSE(tokenizer->is_special(beyond));
  CHECK(tokenizer->ids_of_token("no such token").empty());
  const auto end = tokenizer->ids_of_token("<|end|>");
  REQUIRE(end.size() == 1);
  CHECK(tokenizer->is_special(end[0]));
  CHECK(tokenizer->token_of(end[0]) == "<|end|>");
}

}  // namespace mpinfer::text::test
