// A regular expression of a tokenizer.json, by PCRE2 with JIT and limits. The file is untrusted: a
// pattern that does not compile is Error(kModelRefused), one that backtracks beyond the limits
// gives a RowError for that text.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/core/result.h"
#include "lib/text/json_fields.h"

namespace mpinfer::text {

struct Span {  // [begin, end) of a text
  size_t begin = 0;
  size_t end = 0;
};

class Regex {
 public:
  // where: file and field, for the refusal. \s means White_Space as in Hugging Face's engine (PCRE2
  // adds U+180E).
  Regex(const std::string& pattern, const std::string& where);
  static Regex literal(const std::string& text, const std::string& where);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // All matches from left to right, without overlap; empty ones are left out. text: valid UTF-8.
  Expected<std::vector<Span>> find_all(std::string_view text) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// {"Regex": pattern} or {"String": text} of a tokenizer.json.
Regex pattern_of(const Field& field);

}  // namespace mpinfer::text
