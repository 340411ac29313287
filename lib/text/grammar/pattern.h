// A regular expression as an Expr. The whole text has to match: a leading ^ and a closing $ say
// what holds anyway.
//
// Literals, ., classes with ranges and negation, \d \w \s and \D \W \S (ASCII, as are their
// opposites' exceptions), \n \t \r \f \v \0 \xHH \uHHHH, groups (…) and (?:…), |, * + ? {m} {m,}
// {m,n} with a following ? that changes nothing. Anything else is unsupported by name:
// back-references, look-around, \b, \p, flags, anchors inside.
#pragma once

#include <string>
#include <string_view>

#include "lib/core/result.h"
#include "lib/text/grammar/expr.h"

namespace mpinfer::text::grammar {

constexpr size_t kMaxPatternBytes = 16 << 10;
constexpr int32_t kMaxRepeat = 4096;

// param: the field that is named in a refusal.
Expected<ExprPtr> read_pattern(std::string_view pattern, const std::string& param);

}  // namespace mpinfer::text::grammar
