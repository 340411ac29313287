// Decimal numbers between two bounds as Exprs: what minimum and maximum leave of an integer or a
// number of limited digits.
#pragma once

#include <cstdint>
#include <optional>

#include "lib/text/grammar/expr.h"

namespace mpinfer::text::grammar {

// Bounds are whole numbers of at most num_digits digits; without one the digits are the limit.
struct NumberRange {
  std::optional<int64_t> low = {};
  std::optional<int64_t> high = {};
  bool low_open = false;  // low itself is outside
  bool high_open = false;
};

// Without a bound on either side: every integer of num_digits digits. Nothing in the range: an
// Expr that nothing matches. num_digits is at most 18, so that all values fit 64 bits.
ExprPtr integer_in(NumberRange range, int num_digits);
// With a point and digits behind it where that is inside, without an exponent.
ExprPtr number_in(NumberRange range, int num_digits);

}  // namespace mpinfer::text::grammar
