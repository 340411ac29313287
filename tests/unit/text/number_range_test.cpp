// Bounds of numbers: every short text against its value as the C library reads it.
#include <fmt/core.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "lib/text/grammar/automaton.h"
#include "lib/text/grammar/number_range.h"
#include "tests/support/catch.h"
#include "tests/unit/text/every_text.h"

namespace mpinfer::text::grammar::test {
namespace {

bool inside(const NumberRange& range, double value) {
  const auto low = static_cast<double>(range.low.value_or(-1'000'000));
  const auto high = static_cast<double>(range.high.value_or(1'000'000));
  const bool above = range.low_open ? value > low : value >= low;
  return above && (range.high_open ? value < high : value <= high);
}

std::vector<NumberRange> ranges() {
  std::vector<NumberRange> out;
  for (const std::optional<int64_t> low :
       {std::optional<int64_t>(), std::optional<int64_t>(-120), std::optional<int64_t>(-9),
        std::optional<int64_t>(0), std::optional<int64_t>(1), std::optional<int64_t>(21)}) {
    for (const std::optional<int64_t> high :
         {std::optional<int64_t>(), std::optional<int64_t>(-9), std::optional<int64_t>(0),
          std::optional<int64_t>(1), std::optional<int64_t>(21), std::optional<int64_t>(120)}) {
      if (low && high && *low > *high) continue;
      for (const int open : {0, 1, 2, 3})
        out.push_back({.low = low, .high = high, .low_open = open % 2 != 0, .high_open = open > 1});
    }
  }
  return out;
}

}  // namespace

TEST_CASE("number ranges: every short text is inside or outside as its value is") {
  for (const NumberRange& range : ranges()) {
    INFO(fmt::format("{} to {}, open {} {}", range.low.value_or(-999), range.high.value_or(999),
                     range.low_open, range.high_open));
    const auto integers = Automaton::compile(*integer_in(range, 3), "f");
    const auto numbers = Automaton::compile(*number_in(range, 18), "f");
    int num_integers = 0;
    for (int value = -1100; value <= 1100; ++value) {
      const bool fits = inside(range, value) && std::abs(value) < 1000;
      num_integers += fits ? 1 : 0;
      const bool matched = integers && integers->matches(std::to_string(value));
      if (fits != matched) FAIL(value);
    }
    // Nothing inside is refused when it is compiled.
    CHECK(integers.has_value() == (num_integers > 0));
    int num_numbers = 0;
    for_every_text("-0129.", 5, [&](const std::string& text) {
      const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
      const double value = std::strtod(text.c_str(), nullptr);
      const bool negative_zero = value == 0 && text.starts_with('-');
      const bool fits = json.is_number() && inside(range, value) && !negative_zero;
      num_numbers += fits ? 1 : 0;
      const bool matched = numbers && numbers->matches(text);
      if (fits != matched) FAIL(text);
    });
    CHECK((numbers.has_value() || num_numbers == 0));
  }
}

TEST_CASE("number ranges: at the ends of what 64 bits hold") {
  const auto all = Automaton::compile(*integer_in({}, 18), "f");
  const auto above = Automaton::compile(*integer_in({.low = 999'999'999'999'999}, 18), "f");
  REQUIRE((all && above));
  CHECK(all->matches("-999999999999999999"));
  CHECK(!all->matches("1000000000000000000"));
  CHECK(!all->matches("-0"));
  CHECK(above->matches("999999999999999999"));
  CHECK(!above->matches("999999999999998"));
  CHECK(above->num_states() < 700);
}

}  // namespace mpinfer::text::grammar::test
