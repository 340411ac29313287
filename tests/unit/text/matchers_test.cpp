// The hand-written matchers cut every text where PCRE2 cuts it with the pattern itself.
#include "lib/text/matchers.h"

#include <algorithm>
#include <random>

#include "lib/text/regex.h"
#include "lib/text/unicode_classes.h"
#include "tests/support/catch.h"

namespace mpinfer::text::test {
namespace {

const std::vector<std::string>& patterns() {
  static const std::string tail = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  static const std::string head = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})";
  static const std::string suffix = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)";
  static const std::string upper_lower =
      R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)";
  static const std::string upper_maybe_lower =
      R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)";
  static const std::string o200k_tail = R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  static const std::vector<std::string> list = {
      R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
      head + "{1,3}" + tail,
      head + tail,
      upper_lower + suffix + upper_maybe_lower + suffix + R"(\p{N}{1,3})" + o200k_tail,
      upper_lower + "|" + upper_maybe_lower + R"(|\p{N})" + o200k_tail,
      R"(\p{N}{1,3})",
      R"(\p{N})",
      "[一-龥\u3040-ゟ゠-ヿ]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
      "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"};
  return list;
}

// Few characters of every class, so that their meetings are frequent.
std::string text_of_classes(std::mt19937_64& random) {
  static const std::vector<std::string> parts = {
      "a",      "z",      "A",      "Z",      "ll",     "'",      "'s",     "'RE", "1",  "²",
      "Ⅷ",      " ",      " ",      "  ",     "\n",     "\r",     "\t",     "/",   "!",  "$",
      "_",      "é",      "É",      "ǅ",      "ʰ",      "東",     "\u0301", "ſ",   "K",  "\u00A0",
      "\u3000", "\u180E", "\u200B", "👍",      "",       "\u0001", "\x7F",   "ー",  "龥", "鿿",
      "\u0E31", "𝒜",      "\u2028", "\u0085", "\u20DD", "①",      "\u0378"};
  std::string out;
  for (size_t n = random() % 14; n > 0; --n) out += parts[random() % parts.size()];
  if (random() % 4 == 0) {
    uint32_t c = static_cast<uint32_t>(random() % 0x110000);
    if (c >= 0xD800 && c <= 0xDFFF) c = 'x';
    append_utf8(out, c);
    out += parts[random() % parts.size()];
  }
  return out;
}

}  // namespace

TEST_CASE("matchers cut as PCRE2 does") {
  std::mt19937_64 random(3);
  for (const std::string& pattern : patterns()) {
    INFO(pattern);
    REQUIRE(matcher_of(pattern) != nullptr);
    const Regex fast(pattern, "test");
    const Regex slow(pattern, "test", false);
    std::vector<Span> ours;
    std::vector<Span> theirs;
    int different = 0;
    for (int round = 0; round < 4000; ++round) {
      const std::string text = text_of_classes(random);
      REQUIRE(fast.find_all(ours, text));
      REQUIRE(slow.find_all(theirs, text));
      const bool equal = std::equal(
          ours.begin(), ours.end(), theirs.begin(), theirs.end(),
          [](const Span& a, const Span& b) { return a.begin == b.begin && a.end == b.end; });
      if (!equal && ++different < 4) {
        INFO(text);
        CHECK(equal);
      }
    }
    CHECK(different == 0);
  }
}

TEST_CASE("patterns that are not known exactly have no matcher") {
  CHECK(matcher_of("") == nullptr);
  CHECK(matcher_of(R"(\p{N}{1,2})") == nullptr);
  CHECK(matcher_of(patterns()[0] + " ") == nullptr);
}

TEST_CASE("classes of single characters") {
  const UnicodeClasses& classes = UnicodeClasses::table();
  CHECK(classes.of('a') == kLower);
  CHECK(classes.of('7') == kNumber);
  CHECK(classes.of('\r') == kNewline);
  CHECK(classes.of(0x3000) == kSpace);
  CHECK(classes.of(0x180E) == 0);  // no White_Space since Unicode 6.3, whatever PCRE2 says
  CHECK(classes.of(0x01C5) == kTitle);
  CHECK(classes.of(0x0301) == kMark);
  CHECK(classes.of(0x10D50) == kUpper);  // Garay, Unicode 16
  CHECK(classes.of(0x10FFFF) == 0);
}

TEST_CASE("patterns for PCRE2 know newer letters and no U+180E") {
  const auto count = [](const char* pattern, const std::string& text) {
    std::vector<Span> spans;
    REQUIRE(Regex(pattern, "test", false).find_all(spans, text));
    return spans.size();
  };
  const std::string garay = "\xF0\x90\xB5\x90";
  CHECK(count(R"(\p{L})", garay) == 1);
  CHECK(count(R"(\pL)", garay) == 1);
  CHECK(count(R"([a\p{Lu}])", garay) == 1);
  CHECK(count(R"(\P{L})", garay) == 0);
  CHECK(count(R"([^\p{L}])", garay) == 0);
  CHECK(count(R"(\w)", garay) == 1);
  CHECK(count(R"(\s)", "\u180E") == 0);
  CHECK(count(R"(\S)", "\u180E") == 1);
  CHECK(count(R"([\s])", "\u2003\u0085\u3000") == 3);
  CHECK(count(R"([]\s]x)", "]x") == 1);
  CHECK(count(R"(\\s)", "\\s") == 1);
}

}  // namespace mpinfer::text::test
