#include "lib/text/matchers.h"

#include <cstdint>

#include "lib/text/unicode_classes.h"

namespace mpinfer::text {
namespace {

constexpr uint32_t kWordy = kLetter | kNumber | kAnySpace;  // what [^\s\p{L}\p{N}] leaves out

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text), classes_(UnicodeClasses::table()) {}

  size_t size() const { return text_.size(); }
  char byte(size_t at) const { return at < text_.size() ? text_[at] : '\0'; }
  // Bits of the character at `at` with *next behind it; 0 at the end.
  uint32_t bits(size_t at, size_t* next) const {
    if (at >= text_.size()) return 0;
    size_t length = 0;
    const uint32_t found = classes_.at(text_, at, &length);
    *next = at + length;
    return found;
  }
  // End of the run of characters with one of `bits` from at on.
  size_t run(size_t at, uint32_t any_of) const {
    size_t next = at;
    while (at < text_.size() && (bits(at, &next) & any_of) != 0) at = next;
    return at;
  }
  size_t run_without(size_t at, uint32_t none_of) const {
    size_t next = at;
    while (at < text_.size() && (bits(at, &next) & none_of) == 0) at = next;
    return at;
  }
  std::string_view text() const { return text_; }

 private:
  std::string_view text_;
  const UnicodeClasses& classes_;
};

// \s+(?!\S)|\s+, and before it, if asked for, \s*[\r\n]+: a run of white space keeps its last
// character back for what follows.
size_t white_space(const Scanner& scan, size_t at, bool newlines_first) {
  size_t last = at;
  size_t after_newline = 0;
  size_t end = at;
  for (size_t next = at; end < scan.size(); end = next) {
    const uint32_t bits = scan.bits(end, &next);
    if ((bits & kAnySpace) == 0) break;
    last = end;
    if ((bits & kNewline) != 0) after_newline = next;
  }
  if (newlines_first && after_newline != 0) return after_newline;
  return end == scan.size() || last == at ? end : last;
}

// 's|'t|'re|'ve|'m|'ll|'d behind the text so far → its end, or at.
template <bool AnyCase>
size_t contraction(const Scanner& scan, size_t at) {
  if (scan.byte(at) != '\'') return at;
  const auto letter = [&](size_t i) {
    const char c = scan.byte(i);
    return AnyCase && c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
  };
  const char first = letter(at + 1);
  const char second = letter(at + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
  if ((second == 'e' && (first == 'r' || first == 'v')) || (first == 'l' && second == 'l'))
    return at + 3;
  // U+017F is an s too when case does not matter.
  if (AnyCase && scan.text().substr(at + 1, 2) == "\xC5\xBF") return at + 3;
  return at;
}

size_t digits(const Scanner& scan, size_t at, int most) {
  size_t next = at;
  for (int i = 0; i < most && (scan.bits(at, &next) & kNumber) != 0; ++i) at = next;
  return at;
}

// ` ?[^\s\p{L}\p{N}]+` → its end, or at.
size_t others(const Scanner& scan, size_t at) {
  const size_t begin = at + (scan.byte(at) == ' ' ? 1 : 0);
  const size_t end = scan.run_without(begin, kWordy);
  return end > begin ? end : at;
}

size_t newlines(const Scanner& scan, size_t at, bool slash) {
  for (char c = scan.byte(at); at < scan.size() && (c == '\r' || c == '\n' || (slash && c == '/'));
       c = scan.byte(at)) {
    ++at;
  }
  return at;
}

size_t gpt2(std::string_view text, size_t at) {
  const Scanner scan(text);
  if (const size_t end = contraction<false>(scan, at); end > at) return end;
  size_t next = at;
  const size_t begin = at + (text[at] == ' ' ? 1 : 0);
  const uint32_t bits = scan.bits(begin, &next);
  if ((bits & kLetter) != 0) return scan.run(next, kLetter);
  if ((bits & kNumber) != 0) return scan.run(next, kNumber);
  if (begin < scan.size() && (bits & kAnySpace) == 0) return scan.run_without(next, kWordy);
  return white_space(scan, at, false);
}

// cl100k and its like: at most Digits numbers in a piece.
template <int Digits>
size_t cl100k(std::string_view text, size_t at) {
  const Scanner scan(text);
  if (const size_t end = contraction<true>(scan, at); end > at) return end;
  size_t next = at;
  const uint32_t bits = scan.bits(at, &next);
  if ((bits & kLetter) != 0) return scan.run(next, kLetter);
  if ((bits & kNumber) != 0) return digits(scan, at, Digits);
  if ((bits & kNewline) == 0) {
    size_t after = next;
    if ((scan.bits(next, &after) & kLetter) != 0) return scan.run(after, kLetter);
    if (const size_t end = others(scan, at); end > at) return newlines(scan, end, false);
  }
  return white_space(scan, at, true);
}

constexpr uint32_t kUpperLike = kUpper | kTitle | kModifier | kOtherLetter | kMark;
constexpr uint32_t kLowerLike = kLower | kModifier | kOtherLetter | kMark;

// [Lu Lt Lm Lo M]*[Ll Lm Lo M]+ from at on → its end, or 0. The first run may have to give back.
size_t upper_then_lower(const Scanner& scan, size_t at) {
  size_t end = at;
  size_t given_back = 0;
  for (size_t next = at; end < scan.size(); end = next) {
    const uint32_t bits = scan.bits(end, &next);
    if ((bits & kUpperLike) == 0) break;
    if ((bits & kLowerLike) != 0) given_back = next;
  }
  const size_t lower = scan.run(end, kLowerLike);
  return lower > end ? lower : given_back;
}

// [Lu Lt Lm Lo M]+[Ll Lm Lo M]* from at on → its end, or 0.
size_t upper_maybe_lower(const Scanner& scan, size_t at) {
  const size_t end = scan.run(at, kUpperLike);
  return end > at ? scan.run(end, kLowerLike) : 0;
}

size_t o200k_word(const Scanner& scan, size_t at) {
  size_t behind = at;
  const bool prefix = (scan.bits(at, &behind) & (kNewline | kLetter | kNumber)) == 0;
  size_t end = prefix ? upper_then_lower(scan, behind) : 0;
  if (end == 0) end = upper_then_lower(scan, at);
  if (end == 0 && prefix) end = upper_maybe_lower(scan, behind);
  if (end == 0) end = upper_maybe_lower(scan, at);
  return end;
}

template <int Digits, bool Contractions>
size_t o200k(std::string_view text, size_t at) {
  const Scanner scan(text);
  if (const size_t end = o200k_word(scan, at); end > 0)
    return Contractions ? contraction<true>(scan, end) : end;
  if (const size_t end = digits(scan, at, Digits); end > at) return end;
  if (const size_t end = others(scan, at); end > at) return newlines(scan, end, true);
  return white_space(scan, at, true);
}

template <int Digits>
size_t digits_only(std::string_view text, size_t at) {
  const size_t end = digits(Scanner(text), at, Digits);
  return end > at ? end : 0;
}

size_t deepseek_cjk(std::string_view text, size_t at) {
  const auto inside = [&](size_t i) {
    if (i >= text.size() || static_cast<unsigned char>(text[i]) < 0xE3) return false;
    const uint32_t c = code_point_at(text, i);
    return (c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF);
  };
  size_t end = at;
  while (inside(end)) end += utf8_length(text[end]);
  return end > at ? end : 0;
}

size_t deepseek_words(std::string_view text, size_t at) {
  const Scanner scan(text);
  const auto ascii_letter = [&](size_t i) {
    const char c = scan.byte(i);
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  };
  constexpr uint32_t kSigns = kPunctuation | kSymbol;
  size_t next = at;
  const uint32_t bits = scan.bits(at, &next);
  if ((bits & kSigns) != 0 && next == at + 1 && static_cast<unsigned char>(text[at]) < 0x80 &&
      ascii_letter(next)) {
    size_t end = next;
    while (ascii_letter(end)) ++end;
    return end;
  }
  if ((bits & (kLetter | kMark)) != 0) return scan.run(next, kLetter | kMark);
  if ((bits & (kNewline | kSigns)) == 0) {
    if (const size_t end = scan.run(next, kLetter | kMark); end > next) return end;
  }
  const size_t begin = at + (text[at] == ' ' ? 1 : 0);
  if (const size_t end = scan.run(begin, kSigns); end > begin) return newlines(scan, end, false);
  return (bits & kAnySpace) != 0 ? white_space(scan, at, true) : 0;
}

struct Known {
  std::string_view pattern;
  Matcher matcher;
};

#define CL100K_TAIL R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"
#define CL100K_HEAD R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)"
#define O200K_1 R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
#define O200K_2 R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
#define O200K_TAIL R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"
#define CONTRACTIONS R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)"

constexpr Known kKnown[] = {
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", gpt2},
    {CL100K_HEAD R"(\p{N}{1,3})" CL100K_TAIL, cl100k<3>},
    {CL100K_HEAD R"(\p{N})" CL100K_TAIL, cl100k<1>},
    {O200K_1 CONTRACTIONS "|" O200K_2 CONTRACTIONS R"(|\p{N}{1,3})" O200K_TAIL, o200k<3, true>},
    {O200K_1 "|" O200K_2 R"(|\p{N})" O200K_TAIL, o200k<1, false>},
    {R"(\p{N}{1,3})", digits_only<3>},
    {R"(\p{N})", digits_only<1>},
    {"[一-龥\u3040-ゟ゠-ヿ]+", deepseek_cjk},
    {"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
     "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
     deepseek_words},
};

#undef CL100K_TAIL
#undef CL100K_HEAD
#undef O200K_1
#undef O200K_2
#undef O200K_TAIL
#undef CONTRACTIONS

}  // namespace

Matcher matcher_of(std::string_view pattern) {
  for (const Known& known : kKnown) {
    if (known.pattern == pattern) return known.matcher;
  }
  return nullptr;
}

}  // namespace mpinfer::text
