// Masks over the small tokenizers' vocabularies, token by token against the automaton; drawing any
// allowed token leads to a text that the grammar has and the decoder gives back.
#include <nlohmann/json.hpp>

#include "lib/text/grammar/grammars.h"
#include "tests/support/catch.h"
#include "tests/unit/text/tokenizer_folder.h"

namespace mpinfer::text::grammar::test {
namespace {

using Kind = GrammarSpec::Kind;
using text::test::small_tokenizer_path;

bool allowed(const std::vector<uint32_t>& bits, int32_t id) {
  return (bits[static_cast<size_t>(id / 32)] >> (id % 32) & 1) != 0;
}

// The completion's tokens by bits of a counter, the end-of-text token first where it is allowed and
// the text is long.
std::vector<int32_t> draw(TokenMatcher& matcher, int32_t vocab_size, int32_t eos, uint32_t seed,
                          size_t longest) {
  std::vector<int32_t> ids;
  while (ids.size() < 10 * longest) {
    const auto bits = matcher.allowed();
    std::vector<int32_t> open;
    for (int32_t id = 0; id < vocab_size; ++id) {
      if (allowed(*bits, id)) open.push_back(id);
    }
    REQUIRE(!open.empty());
    const bool may_end = allowed(*bits, eos);
    seed = seed * 1664525U + 1013904223U;
    int32_t id = open[(seed >> 8) % open.size()];
    if (may_end && ids.size() > longest) id = eos;
    matcher.advance(id);
    if (id == eos) {
      const auto after = matcher.allowed();
      for (int32_t other = 0; other < vocab_size; ++other)
        REQUIRE(allowed(*after, other) == (other == eos));
      return ids;
    }
    ids.push_back(id);
  }
  return {};
}

TEST_CASE("masks: what is drawn through them is what the grammar has, as the decoder writes it") {
  const std::string name =
      GENERATE(as<std::string>(), "gpt2", "llama", "llama3", "qwen2", "smollm");
  INFO(name);
  const auto tokenizer = Tokenizer::load(small_tokenizer_path(name));
  const int32_t eos = tokenizer->vocab_size();  // a token of the model alone
  const int32_t vocab_size = eos + 40;
  Grammars grammars(*tokenizer, vocab_size, {eos});
  const std::vector<GrammarSpec> specs = {
      {Kind::kRegex, "[a-z ]{3,9}(é|x)\\d*"},
      {Kind::kRegex, " ?[ab]{1,4}"},
      {Kind::kChoice, R"(["yes","no"," maybe","ja"])"},
      {Kind::kJsonSchema, R"({"type":"object","properties":{"a b":{"type":"integer"},
        "c":{"type":"array","items":{"type":"string","maxLength":4},"maxItems":2}},
        "required":["a b","c"]})"}};
  for (const GrammarSpec& spec : specs) {
    REQUIRE(grammars.check(spec, "f"));
    const auto made = compile(spec, "f");
    REQUIRE(made);
    int finished = 0;
    for (uint32_t seed = 0; seed < 15; ++seed) {
      const auto matcher = grammars.start(spec);
      const std::vector<int32_t> ids = draw(*matcher, vocab_size, eos, seed, 20);
      if (ids.empty()) continue;
      ++finished;
      const std::string text = tokenizer->decode(ids, true);
      INFO(text);
      CHECK(made->matches(text));
      for (const int32_t id : ids) CHECK(!tokenizer->is_special(id));
    }
    CHECK(finished >= 12);
  }
}

TEST_CASE("masks: every token, against the automaton byte by byte") {
  const auto tokenizer = Tokenizer::load(small_tokenizer_path("gpt2"));
  const int32_t size = tokenizer->vocab_size();
  Grammars grammars(*tokenizer, size + 1, {size});
  struct Case {
    std::string pattern;
    std::vector<std::string> prefixes;
  };
  // Strings of JSON as a schema writes them, of few characters and of many; then characters that
  // are not all alike, at once or later.
  const std::string character = R"([^\x00-\x1f"\\])";
  const Case cases[] = {
      {"[^e]*(the|in)+", {"", "t", "th", "the", "in th", "\xC3"}},
      {"\"" + character + "{0,4}\"", {"", "\"", "\"ab", "\"abcd", "\"\xC3"}},
      {"\"" + character + "*\"", {"", "\"", "\"abc\xE2\x82"}},
      {"\"(" + character + "|\\\\[nt]){0,90}\"", {"\"", "\"a\\", "\"abcdefghijklmn"}},
      {character + "{3}[a-m]*", {"", "a", "ab", "abc"}},
      {".{2,40}", {"", "a", "ab"}},
      {"(.|\n){5}x?", {"", "abc", "abcde"}},
      {"[ -~]{0,60}", {"", "a"}},
      {"[^é]*", {"", "\xC3"}},
  };
  for (const Case& each : cases) {
    const GrammarSpec spec{Kind::kRegex, each.pattern};
    INFO(each.pattern);
    const auto made = compile(spec, "f");
    REQUIRE(made);
    for (const std::string& prefix : each.prefixes) {
      const auto matcher = grammars.start(spec);
      Automaton::State state = made->start();
      for (const char c : prefix) {
        const std::string byte(1, c);
        for (int32_t id = 0; id < size; ++id) {
          if (tokenizer->bytes_of(id, false) != byte) continue;
          matcher->advance(id);
          break;
        }
        state = made->step(state, static_cast<uint8_t>(c));
      }
      const auto bits = matcher->allowed();
      int wrong = 0;
      for (int32_t id = 0; id < size; ++id) {
        const std::string bytes = tokenizer->bytes_of(id, false);
        Automaton::State at = state;
        for (const char c : bytes) {
          if (at != Automaton::kDead) at = made->step(at, static_cast<uint8_t>(c));
        }
        const bool fits = !bytes.empty() && at != Automaton::kDead;
        wrong += allowed(*bits, id) != fits ? 1 : 0;
      }
      INFO(prefix);
      CHECK(wrong == 0);
      CHECK(allowed(*bits, size) == made->may_end(state));
      CHECK(grammars.start(spec)->allowed()->size() == bits->size());
    }
  }
}

TEST_CASE("grammars: without an end-of-text token none is served") {
  const auto tokenizer = Tokenizer::load(small_tokenizer_path("gpt2"));
  Grammars grammars(*tokenizer, tokenizer->vocab_size(), {});
  const auto checked = grammars.check({Kind::kJsonObject, ""}, "response_format");
  REQUIRE(!checked);
  CHECK(checked.error().code == "unsupported");
  CHECK(checked.error().message.find("eos_token_id") != std::string::npos);
}

}  // namespace
}  // namespace mpinfer::text::grammar::test
