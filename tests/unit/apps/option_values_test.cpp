// Text to values: what is refused, and with which words; then units and lists.
#include "apps/option_values.h"

#include "lib/core/error.h"
#include "tests/support/catch.h"

namespace mpinfer::apps {
namespace {

template <class Fn>
std::string refusal_of(Fn fn) {
  try {
    fn();
  } catch (const Error& error) {
    CHECK(error.exit_code() == ExitCode::kUsage);
    return error.what();
  }
  return "accepted";
}

TEST_CASE("Whole numbers are refused with their range") {
  for (const char* text :
       {"", " 1", "1 ", "1.0", "0x10", "+1", "nan", "9223372036854775808", "１"}) {
    INFO(text);
    CHECK(refusal_of([&] { parse_integer(text, -5, 1 << 20); }) != "accepted");
  }
  CHECK(refusal_of([] { parse_integer("0", 1, 8); }) == "\"0\" is not a whole number in 1 … 8");
  CHECK(refusal_of([] { parse_integer("-1", 0, INT64_MAX); }) ==
        "\"-1\" is not a whole number of at least 0");
  CHECK(parse_integer("-5", -5, 8) == -5);
  CHECK(parse_integer("8", -5, 8) == 8);
  CHECK(parse_integer("9223372036854775807", 0, INT64_MAX) == INT64_MAX);
}

TEST_CASE("Seeds use all 64 bits") {
  CHECK(parse_seed("18446744073709551615") == UINT64_MAX);
  CHECK(refusal_of([] { parse_seed("18446744073709551616"); }) != "accepted");
  CHECK(refusal_of([] { parse_seed("-1"); }) != "accepted");
}

TEST_CASE("Numbers must be finite and in range") {
  for (const char* text : {"", "nan", "inf", "-inf", "1e999", "0,5", "1.5x", "2.0001", "-0.1"}) {
    INFO(text);
    CHECK(refusal_of([&] { parse_number(text, 0, 2); }) != "accepted");
  }
  CHECK(parse_number("2", 0, 2) == 2.0);
  CHECK(parse_number("1e-3", 0, 2) == 1e-3);
}

TEST_CASE("Sizes know decimal and binary units") {
  for (const char* text : {"", "GiB", "-1GiB", "80 parsecs", "1e30TB", "nan"}) {
    INFO(text);
    CHECK(refusal_of([&] { parse_bytes(text); }) != "accepted");
  }
  CHECK(parse_bytes("1024") == 1024);
  CHECK(parse_bytes("80GiB") == int64_t{80} << 30);
  CHECK(parse_bytes("80 gib") == int64_t{80} << 30);
  CHECK(parse_bytes("512MB") == 512'000'000);
  CHECK(parse_bytes("1.5k") == 1500);
}

TEST_CASE("Times know seconds, minutes and hours") {
  for (const char* text : {"", "s", "0", "-1s", "60 s", "5d", "1e9h"}) {
    INFO(text);
    CHECK(refusal_of([&] { parse_seconds(text); }) != "accepted");
  }
  CHECK(parse_seconds("90") == 90.0);
  CHECK(parse_seconds("60s") == 60.0);
  CHECK(parse_seconds("5m") == 300.0);
  CHECK(parse_seconds("1.5h") == 5400.0);
}

TEST_CASE("Choices are named, switches have the usual words") {
  CHECK(refusal_of([] {
          parse_choice("fair", {"balanced", "dynamic"});
        }) == "\"fair\" is not one of balanced, dynamic");
  CHECK(parse_choice("dynamic", {"balanced", "dynamic"}) == "dynamic");
  CHECK(refusal_of([] { parse_switch("maybe"); }) != "accepted");
  for (const char* text : {"true", "on", "1", "yes"}) CHECK(parse_switch(text));
  for (const char* text : {"false", "off", "0", "no"}) CHECK_FALSE(parse_switch(text));
}

TEST_CASE("Lists have no empty entries") {
  for (const char* text : {"", ",", "1,", ",1", "1,,2", "1, 2"}) {
    INFO(text);
    CHECK(refusal_of([&] { parse_integers(text, 0, 10); }) != "accepted");
  }
  CHECK(parse_integers("1,2,10", 0, 10) == std::vector<int32_t>{1, 2, 10});
}

TEST_CASE("Control bytes of a value are not repeated") {
  CHECK(refusal_of([] { parse_integer("\x1b[2J", 0, 1); }).find('\x1b') == std::string::npos);
}

}  // namespace
}  // namespace mpinfer::apps
