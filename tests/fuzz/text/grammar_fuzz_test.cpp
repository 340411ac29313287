// Random and mutated patterns and schemas: each compiles or is refused by a row error, in bounded
// time, and what compiles can be walked to an end from every state that a walk reaches.
// MPINFER_FUZZ_ROUNDS asks for more rounds.
#include <chrono>
#include <cstdlib>
#include <random>

#include "lib/text/grammar/grammars.h"
#include "tests/support/catch.h"

namespace mpinfer::text::grammar::test {
namespace {

using Kind = GrammarSpec::Kind;
using Random = std::mt19937_64;

int rounds(int by_default) {
  const char* asked = std::getenv("MPINFER_FUZZ_ROUNDS");
  return asked == nullptr ? by_default : std::atoi(asked);
}

std::string pieced(const std::vector<std::string>& pieces, size_t count, Random& random) {
  std::string out;
  for (size_t i = 0; i < count; ++i) out += pieces[random() % pieces.size()];
  return out;
}

// Some byte that the automaton takes is always there, or the value may end.
void walk(const Automaton& automaton, Random& random) {
  Automaton::State state = automaton.start();
  for (int i = 0; i < 60; ++i) {
    std::vector<uint8_t> open;
    for (int byte = 0; byte < 256; ++byte) {
      if (automaton.step(state, static_cast<uint8_t>(byte)) != Automaton::kDead)
        open.push_back(static_cast<uint8_t>(byte));
    }
    if (open.empty()) {
      REQUIRE(automaton.may_end(state));
      return;
    }
    state = automaton.step(state, open[random() % open.size()]);
  }
}

void try_one(Kind kind, const std::string& text, Random& random, int* compiled) {
  INFO(text);
  const auto start = std::chrono::steady_clock::now();
  const auto made = compile({kind, text}, "f");
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  CHECK(took.count() < 5.0);  // a tenth of it, but for sanitizers and a busy machine
  if (made) {
    ++*compiled;
    walk(*made, random);
  } else {
    CHECK((made.error().code == "unsupported" || made.error().code == "invalid_param"));
    CHECK(made.error().param == "f");
  }
}

TEST_CASE("patterns of random pieces compile or are refused") {
  const std::vector<std::string> pieces = {
      "a",   "b",    "(",     ")",       "[",      "]",        "|",   "*",    "+",
      "?",   "{2}",  "{1,",   "}",       "\\d",    ".",        "^",   "$",    "(?:",
      "(?=", "\\",   "[^a]",  "é",       "-",      "{0,40}",   "9",   "\xFF", "[a-z]",
      "\\W", "{3,}", "\\x41", "\\u20ac", "(a|b)*", "(.|a){9}", "\\1", " "};
  Random random(1);
  int compiled = 0;
  const int count = rounds(1500);
  for (int i = 0; i < count; ++i)
    try_one(Kind::kRegex, pieced(pieces, 1 + random() % 14, random), random, &compiled);
  CHECK(compiled > count / 20);
}

TEST_CASE("mutated schemas compile or are refused") {
  const std::string seed =
      R"({"type":"object","properties":{"a":{"type":"array","items":{"$ref":"#/$defs/s"},"minItems":1,)"
      R"("maxItems":3},"b":{"anyOf":[{"enum":["x",1]},{"type":["integer","null"]}]}},"required":["a"],)"
      R"("additionalProperties":false,"$defs":{"s":{"type":"string","pattern":"[a-z]{1,9}\\d"}}})";
  const std::vector<std::string> words = {
      "{}",        "[]",         "null",        "true",   "false",     "\"type\"",
      "\"items\"", "-1",         "1e999",       "4000",   "\"",        "\"#/$defs/s\"",
      "\"#\"",     "\"string\"", "{",           "]",      "\"const\"", ":",
      ",",         "\"object\"", "\"pattern\"", "\"((\"", "\"anyOf\"", "\xFF"};
  Random random(2);
  int compiled = 0;
  const int count = rounds(600);
  for (int i = 0; i < count; ++i) {
    std::string text = seed;
    for (uint64_t change = random() % 3; change-- > 0;) {
      const size_t at = random() % text.size();
      const size_t length = std::min<size_t>(random() % 12, text.size() - at);
      text.replace(at, length, random() % 3 == 0 ? "" : words[random() % words.size()]);
    }
    try_one(Kind::kJsonSchema, text, random, &compiled);
  }
  CHECK(compiled > count / 20);
}

TEST_CASE("schemas and patterns made to be large are refused in bounded time") {
  Random random(3);
  int compiled = 0;
  std::string many = R"({"anyOf":[{})";
  for (int i = 0; i < 15000; ++i) many += ",{}";
  try_one(Kind::kJsonSchema, many + "]}", random, &compiled);
  // Each definition names the next one twenty times.
  std::string chain =
      R"({"$ref":"#/$defs/d0","$defs":{"d9":{"const":")" + std::string(9000, 'x') + "\"}";
  for (int i = 0; i < 9; ++i) {
    chain += ",\"d" + std::to_string(i) + R"(":{"anyOf":[{})";
    for (int k = 0; k < 20; ++k) chain += R"(,{"$ref":"#/$defs/d)" + std::to_string(i + 1) + "\"}";
    chain += "]}";
  }
  try_one(Kind::kJsonSchema, chain + "}}", random, &compiled);
  try_one(Kind::kJsonSchema,
          R"({"enum":[)" + std::string(30000, '[') + std::string(30000, ']') + "]}", random,
          &compiled);
  try_one(Kind::kRegex, "(.{0,4000}){0,4000}", random, &compiled);
  try_one(Kind::kRegex, "(.*a){0,40}.{0,900}", random, &compiled);
  try_one(Kind::kRegex, "(a|b)*a(a|b){60}", random, &compiled);
  try_one(Kind::kRegex, "[ab]*a.{12}", random, &compiled);
  CHECK(compiled <= 1);
}

}  // namespace
}  // namespace mpinfer::text::grammar::test
