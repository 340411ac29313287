#include "lib/text/unicode_classes.h"

#include <fmt/core.h>

#include <algorithm>

namespace mpinfer::text {
namespace {

constexpr std::string_view kSpaces = "\\t-\\r\\x{85}\\p{Z}";
constexpr uint32_t kNumCodePoints = 0x110000;

// Bits of what stands in \p{…}; 0 for names that PCRE2 may read alone.
uint32_t bits_of_name(std::string_view name) {
  struct Name {
    std::string_view name;
    uint32_t bits;
  };
  constexpr Name kNames[] = {
      {"L", kLetter},       {"Lu", kUpper}, {"Ll", kLower}, {"Lt", kTitle},      {"Lm", kModifier},
      {"Lo", kOtherLetter}, {"M", kMark},   {"N", kNumber}, {"P", kPunctuation}, {"S", kSymbol},
  };
  for (const Name& known : kNames) {
    if (known.name == name) return known.bits;
  }
  return 0;
}

std::string newer(uint32_t bits) {
  std::string out;
  for (size_t i = 0; i < kNumNewerRanges; ++i) {
    const NewerRange& range = kNewerRanges[i];
    if ((1U << range.kind & bits) != 0)
      out += fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", range.first, range.last);
  }
  return out;
}

// Members of a bracket that mean the escape at pattern[at] (after the backslash), with *used the
// bytes it takes; "" if PCRE2 reads it as it is.
std::string members_of(std::string_view pattern, size_t at, size_t* used) {
  *used = 1;
  const char letter = pattern[at];
  if (letter == 's' || letter == 'S') return std::string(kSpaces);
  if (letter == 'w' || letter == 'W') {
    return "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"
           "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}" +
           newer(kLetter | kMark);
  }
  if (letter != 'p' && letter != 'P') return "";
  std::string_view name = pattern.substr(at + 1, 1);
  *used = 2;
  if (name == "{") {
    const size_t end = pattern.find('}', at);
    if (end == std::string_view::npos) return "";
    name = pattern.substr(at + 2, end - at - 2);
    *used = end + 1 - at;
  }
  const uint32_t bits = bits_of_name(name);
  return bits == 0 ? "" : fmt::format("\\p{{{}}}", name) + newer(bits);
}

}  // namespace

UnicodeClasses::UnicodeClasses() : kinds_(kNumCodePoints, 0) {
  for (size_t i = 0; i < kNumClassRanges; ++i) {
    const uint32_t first = kClassRanges[i] >> 8;
    const uint32_t end = i + 1 < kNumClassRanges ? kClassRanges[i + 1] >> 8 : kNumCodePoints;
    std::fill(kinds_.begin() + first, kinds_.begin() + end,
              static_cast<uint8_t>(kClassRanges[i] & 0xFF));
  }
  constexpr uint32_t kLastSpace = 0x3000;
  for (uint32_t c = 0; c <= kLastSpace; ++c) {
    if (is_white_space(c)) kinds_[c] = c == '\r' || c == '\n' ? 11 : 10;
  }
  for (uint32_t c = 0; c < ascii_.size(); ++c) ascii_[c] = static_cast<uint16_t>(of(c));
}

const UnicodeClasses& UnicodeClasses::table() {
  static const UnicodeClasses classes;
  return classes;
}

bool is_inert(uint32_t code_point) {
  const InertRange* end = kInertRanges + kNumInertRanges;
  const InertRange* range =
      std::lower_bound(kInertRanges, end, code_point,
                       [](const InertRange& entry, uint32_t value) { return entry.last < value; });
  return range != end && range->first <= code_point;
}

std::string pattern_for_pcre2(const std::string& pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      size_t used = 1;
      const std::string members = members_of(pattern, i + 1, &used);
      const char letter = pattern[i + 1];
      const bool negated = letter == 'S' || letter == 'W' || letter == 'P';
      if (members.empty() || (negated && in_class)) {
        out.append(pattern, i, 2);
        ++i;
        continue;
      }
      out += in_class ? members : fmt::format("[{}{}]", negated ? "^" : "", members);
      i += used;
      continue;
    }
    if (c == '[' && !in_class) {
      in_class = true;
      out += c;
      // A bracket right after the opening is a member.
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += pattern[++i];
      continue;
    }
    if (c == ']' && in_class) in_class = false;
    out += c;
  }
  return out;
}

}  // namespace mpinfer::text
