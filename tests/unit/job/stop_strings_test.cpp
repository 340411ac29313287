// Stop strings over the detokenised text of a byte-level tokenizer.
#include "lib/job/stop_strings.h"

#include "tests/support/catch.h"
#include "tests/unit/job/byte_tokenizer.h"

using namespace mpinfer;
using namespace mpinfer::job;

namespace {

struct Outcome {
  std::string matched;
  int32_t num_tokens = 0;
  std::string text;
};

Outcome scan(const std::string& text, SamplingParams sampling) {
  static const auto kTokenizer = tests::byte_tokenizer();
  StopScan stop_scan(*kTokenizer, sampling);
  Outcome outcome;
  for (const int32_t id : tests::ids_of(*kTokenizer, text)) {
    ++outcome.num_tokens;
    if (const std::string* matched = stop_scan.push(id, outcome.num_tokens)) {
      outcome.matched = *matched;
      break;
    }
  }
  outcome.text = stop_scan.text();
  return outcome;
}

SamplingParams stops(std::vector<std::string> strings) {
  SamplingParams sampling;
  sampling.stop = std::move(strings);
  return sampling;
}

}  // namespace

TEST_CASE("no match: the whole text") {
  const Outcome outcome = scan("hello", stops({"x", "lo!"}));
  CHECK(outcome.matched.empty());
  CHECK(outcome.text == "hello");
}

TEST_CASE("a match is seen at its last token and cut off, or kept when asked") {
  SamplingParams sampling = stops({"lo w"});
  const Outcome cut = scan("hello world", sampling);
  CHECK(cut.matched == "lo w");
  CHECK(cut.num_tokens == 7);
  CHECK(cut.text == "hel");
  sampling.include_stop_str_in_output = true;
  CHECK(scan("hello world", sampling).text == "hello w");
}

TEST_CASE("the earliest end wins, of two that end together the longer") {
  CHECK(scan("abcdef", stops({"bcde", "cd"})).matched == "cd");
  CHECK(scan("abcdef", stops({"cd", "bcd"})).matched == "bcd");
  CHECK(scan("abcdef", stops({"cd", "bcd"})).text == "a");
  CHECK(scan("aab", stops({"ab"})).text == "a");
}

TEST_CASE("text of the first min_tokens is not searched, but a match may begin there") {
  SamplingParams sampling = stops({"ab"});
  sampling.min_tokens = 2;
  CHECK(scan("abxab", sampling).num_tokens == 5);
  sampling.min_tokens = 1;
  CHECK(scan("abxab", sampling).num_tokens == 2);
}

TEST_CASE("a character of several tokens is matched when it is whole") {
  const Outcome outcome = scan("a€b", stops({"€"}));
  CHECK(outcome.num_tokens == 4);
  CHECK(outcome.text == "a");
}

TEST_CASE("the matcher keeps rows apart and forgets ended ones") {
  const auto tokenizer = tests::byte_tokenizer();
  StopStrings matcher(*tokenizer);
  Request a{.index = 1, .prompt_token_ids = {}, .sampling = stops({"xy"})};
  Request b{.index = 2, .prompt_token_ids = {}, .sampling = stops({"xy"})};
  const int32_t x = tests::ids_of(*tokenizer, "x")[0];
  const int32_t y = tests::ids_of(*tokenizer, "y")[0];
  CHECK_FALSE(matcher.push(a, x, 1));
  CHECK_FALSE(matcher.push(b, y, 1));
  CHECK(matcher.push(a, y, 2) == "xy");
  matcher.forget({.index = 1, .prompt_token_ids = {}, .sampling = {}});
  CHECK_FALSE(matcher.push(a, y, 1));
}
