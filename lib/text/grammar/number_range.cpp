#include "lib/text/grammar/number_range.h"

#include <algorithm>
#include <string>

namespace mpinfer::text::grammar {
namespace {

int64_t power_of_ten(int exponent) {
  int64_t power = 1;
  for (int i = 0; i < exponent; ++i) power *= 10;
  return power;
}

ExprPtr digits(char low, char high, size_t count) {
  const ExprPtr one = set({{static_cast<uint32_t>(low), static_cast<uint32_t>(high)}});
  const auto times = static_cast<int32_t>(count);
  return repeat(one, times, times);
}

// low and high have equally many digits, low ≤ high.
ExprPtr between(const std::string& low, const std::string& high) {
  if (low.empty()) return text("");
  const size_t rest = low.size() - 1;
  if (low.front() == high.front())
    return concat({text(low.substr(0, 1)), between(low.substr(1), high.substr(1))});
  std::vector<ExprPtr> parts;
  char first = low.front();
  char last = high.front();
  if (low.find_first_not_of('0', 1) != std::string::npos) {
    parts.push_back(
        concat({digits(first, first, 1), between(low.substr(1), std::string(rest, '9'))}));
    ++first;
  }
  if (high.find_first_not_of('9', 1) != std::string::npos) {
    parts.push_back(
        concat({digits(last, last, 1), between(std::string(rest, '0'), high.substr(1))}));
    --last;
  }
  if (first <= last) parts.push_back(concat({digits(first, last, 1), digits('0', '9', rest)}));
  return choice(std::move(parts));
}

// 0 ≤ low; nothing where low > high.
ExprPtr magnitudes(int64_t low, int64_t high, int num_digits) {
  std::vector<ExprPtr> parts;
  for (int length = 1; length <= num_digits; ++length) {
    const int64_t least = std::max(low, length == 1 ? 0 : power_of_ten(length - 1));
    const int64_t most = std::min(high, power_of_ten(length) - 1);
    if (least <= most) parts.push_back(between(std::to_string(least), std::to_string(most)));
  }
  return choice(std::move(parts));
}

struct Side {
  int64_t low;
  int64_t high;
  bool low_open;
  bool high_open;
};

// Numbers of one sign between two magnitudes.
ExprPtr decimals(const Side& side, int num_digits) {
  if (side.low > side.high) return choice({});
  const ExprPtr digit = digits('0', '9', 1);
  const ExprPtr zero = text("0");
  const auto optional = [](ExprPtr part) { return repeat(std::move(part), 0, 1); };
  const ExprPtr fraction = concat({text("."), repeat(digit, 1, num_digits)});
  const ExprPtr zeros = concat({text("."), repeat(zero, 1, num_digits)});
  // Zeros, a digit that is none, digits.
  const ExprPtr above_zero = concat({text("."), repeat(zero, 0, num_digits / 2 - 1),
                                     digits('1', '9', 1), repeat(digit, 0, num_digits / 2)});
  std::vector<ExprPtr> parts;
  if (side.low < side.high) {
    const int64_t whole_from = side.low + (side.low_open ? 1 : 0);
    parts.push_back(
        concat({magnitudes(whole_from, side.high - 1, num_digits), optional(fraction)}));
    if (side.low_open) parts.push_back(concat({text(std::to_string(side.low)), above_zero}));
  }
  const bool high_inside = !side.high_open && (side.low < side.high || !side.low_open);
  if (high_inside) parts.push_back(concat({text(std::to_string(side.high)), optional(zeros)}));
  return choice(std::move(parts));
}

}  // namespace

ExprPtr integer_in(NumberRange range, int num_digits) {
  const int64_t limit = power_of_ten(num_digits) - 1;
  const int64_t low = range.low ? *range.low + (range.low_open ? 1 : 0) : -limit;
  const int64_t high = range.high ? *range.high - (range.high_open ? 1 : 0) : limit;
  return choice({magnitudes(std::max<int64_t>(low, 0), high, num_digits),
                 concat({text("-"), magnitudes(std::max<int64_t>(-high, 1), -low, num_digits)})});
}

ExprPtr number_in(NumberRange range, int num_digits) {
  range.low_open = range.low && range.low_open;
  range.high_open = range.high && range.high_open;
  const int64_t limit = power_of_ten(num_digits) - 1;
  const int64_t low = range.low.value_or(-limit);
  const int64_t high = range.high.value_or(limit);
  std::vector<ExprPtr> parts;
  if (high >= 0)
    parts.push_back(decimals({.low = std::max<int64_t>(low, 0),
                              .high = high,
                              .low_open = low >= 0 && range.low_open,
                              .high_open = range.high_open},
                             num_digits));
  // No -0: its magnitude is outside whatever the bound says.
  if (low < 0)
    parts.push_back(concat({text("-"), decimals({.low = std::max<int64_t>(-high, 0),
                                                 .high = -low,
                                                 .low_open = high >= 0 || range.high_open,
                                                 .high_open = range.low_open},
                                                num_digits)}));
  return choice(std::move(parts));
}

}  // namespace mpinfer::text::grammar
