// Unicode classes of code points as Hugging Face's regex engine knows them (Unicode 16), whatever
// the installed PCRE2 and utf8proc know: what the matchers of well-known patterns test, and what
// patterns for PCRE2 are completed with.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lib/text/utf8.h"

namespace mpinfer::text {

// One bit a class; every code point has at most one.
enum ClassBits : uint16_t {
  kUpper = 1 << 1,
  kLower = 1 << 2,
  kTitle = 1 << 3,
  kModifier = 1 << 4,
  kOtherLetter = 1 << 5,
  kMark = 1 << 6,
  kNumber = 1 << 7,
  kPunctuation = 1 << 8,
  kSymbol = 1 << 9,
  kSpace = 1 << 10,    // White_Space but \r and \n
  kNewline = 1 << 11,  // \r and \n
  kLetter = kUpper | kLower | kTitle | kModifier | kOtherLetter,
  kAnySpace = kSpace | kNewline,
};

struct NewerRange {
  uint32_t first;
  uint32_t last;
  uint8_t kind;  // 1 << kind is the class
};

struct InertRange {
  uint32_t first;
  uint32_t last;
};

extern const uint32_t kClassRanges[];
extern const size_t kNumClassRanges;
extern const NewerRange kNewerRanges[];
extern const size_t kNumNewerRanges;
extern const InertRange kInertRanges[];
extern const size_t kNumInertRanges;

class UnicodeClasses {
 public:
  static const UnicodeClasses& table();
  // Class bits of the code point at text[at], valid UTF-8; *length gets its bytes.
  uint32_t at(std::string_view text, size_t at, size_t* length) const {
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte < 0x80) {
      *length = 1;
      return ascii_[byte];
    }
    *length = utf8_length(text[at]);
    return of(code_point_at(text, at));
  }
  uint32_t of(uint32_t code_point) const { return 1U << kinds_[code_point] & ~1U; }

 private:
  UnicodeClasses();
  std::array<uint16_t, 128> ascii_;
  std::vector<uint8_t> kinds_;  // [0x110000]
};

// Whether Hugging Face's normalisers know neither a decomposition nor a combining class of it.
bool is_inert(uint32_t code_point);

// Rewrites a pattern so that PCRE2 reads it as Hugging Face's engine does: \s, \S, \w, \W and
// \p{…} of the classes above, inside and outside of brackets.
std::string pattern_for_pcre2(const std::string& pattern);

}  // namespace mpinfer::text
