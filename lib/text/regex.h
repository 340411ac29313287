// A pattern of a tokenizer.json: a literal, one of the well-known patterns (matchers.h), or a
// regular expression by PCRE2 with JIT and limits. The file is untrusted: a pattern that does not
// compile is Error(kModelRefused), one that backtracks beyond the limits gives a RowError for that
// text.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/core/result.h"
#include "lib/text/json_fields.h"
#include "lib/text/matchers.h"

namespace mpinfer::text {

struct Span {  // [begin, end) of a text
  size_t begin = 0;
  size_t end = 0;
};

class Regex {
 public:
  // where: file and field, for the refusal. Classes mean what they mean in Hugging Face's engine
  // (pattern_for_pcre2). With use_matchers false a well-known pattern goes to PCRE2 too.
  Regex(const std::string& pattern, const std::string& where, bool use_matchers = true);
  static Regex literal(const std::string& text);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // Puts in spans all matches from left to right, without overlap; empty ones are left out. text:
  // valid UTF-8. May run in several threads.
  Expected<void> find_all(std::vector<Span>& spans, std::string_view text) const;

 private:
  struct State;
  Regex();
  void find_literals(std::vector<Span>& spans, std::string_view text) const;
  Expected<void> find_by_pcre2(std::vector<Span>& spans, std::string_view text) const;

  bool is_literal_ = false;
  std::string literal_;
  Matcher matcher_ = nullptr;
  std::unique_ptr<State> state_;  // PCRE2
};

// {"Regex": pattern} or {"String": text} of a tokenizer.json.
Regex pattern_of(const Field& field);

}  // namespace mpinfer::text
