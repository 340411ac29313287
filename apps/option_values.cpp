#include "apps/option_values.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::apps {
namespace {

[[noreturn]] void refuse(const std::string& text, const std::string& wanted) {
  throw Error(ExitCode::kUsage, fmt::format("\"{}\" is not {}", printable(text), wanted));
}

template <class T>
bool parse_whole(const std::string& text, T* value) {
  const char* end = text.data() + text.size();
  const auto [stop, status] = std::from_chars(text.data(), end, *value);
  return status == std::errc() && stop == end && !text.empty();
}

}  // namespace

int64_t parse_integer(const std::string& text, int64_t least, int64_t most) {
  int64_t value = 0;
  if (!parse_whole(text, &value) || value < least || value > most) {
    refuse(text, most == INT64_MAX ? fmt::format("a whole number of at least {}", least)
                                   : fmt::format("a whole number in {} … {}", least, most));
  }
  return value;
}

uint64_t parse_seed(const std::string& text) {
  uint64_t value = 0;
  if (!parse_whole(text, &value)) refuse(text, "a whole number in 0 … 2^64 - 1");
  return value;
}

double parse_number(const std::string& text, double least, double most) {
  double value = 0;
  if (!parse_whole(text, &value) || !std::isfinite(value) || value < least || value > most) {
    refuse(text, fmt::format("a number in {:g} … {:g}", least, most));
  }
  return value;
}

bool parse_switch(const std::string& text) {
  if (text == "true" || text == "on" || text == "1" || text == "yes") return true;
  if (text == "false" || text == "off" || text == "0" || text == "no") return false;
  refuse(text, "true or false");
}

int64_t parse_bytes(const std::string& text) {
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, status] = std::from_chars(text.data(), end, number);
  std::string unit(stop, end);
  std::transform(unit.begin(), unit.end(), unit.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  unit.erase(std::remove(unit.begin(), unit.end(), ' '), unit.end());
  const std::pair<const char*, double> units[] = {
      {"", 1},         {"b", 1},        {"k", 1e3},      {"kb", 1e3},     {"m", 1e6},
      {"mb", 1e6},     {"g", 1e9},      {"gb", 1e9},     {"t", 1e12},     {"tb", 1e12},
      {"kib", 0x1p10}, {"mib", 0x1p20}, {"gib", 0x1p30}, {"tib", 0x1p40},
  };
  for (const auto& [name, factor] : units) {
    if (status == std::errc() && unit == name && number >= 0 && number * factor < 0x1p60) {
      return static_cast<int64_t>(number * factor);
    }
  }
  refuse(text, "a size such as 80GiB, 512MB or 1048576");
}

double parse_seconds(const std::string& text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, status] = std::from_chars(text.data(), end, value);
  const std::string unit(stop, end);
  const std::pair<const char*, double> units[] = {
      {"", 1}, {"s", 1}, {"m", 60}, {"min", 60}, {"h", 3600}};
  for (const auto& [name, factor] : units) {
    const double seconds = value * factor;
    if (status == std::errc() && unit == name && seconds >= 0.1 && seconds <= 1e6) return seconds;
  }
  refuse(text, "a time of 0.1s … 1000000s, such as 60s or 5m");
}

std::string parse_choice(const std::string& text, const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), text) != choices.end()) return text;
  std::string all;
  for (const auto& choice : choices) all += (all.empty() ? "" : ", ") + choice;
  refuse(text, "one of " + all);
}

std::vector<int32_t> parse_integers(const std::string& comma_separated, int64_t least,
                                    int64_t most) {
  std::vector<int32_t> values;
  for (size_t at = 0; at <= comma_separated.size();) {
    const size_t comma = std::min(comma_separated.find(',', at), comma_separated.size());
    values.push_back(
        checked_cast<int32_t>(parse_integer(comma_separated.substr(at, comma - at), least, most)));
    at = comma + 1;
  }
  return values;
}

}  // namespace mpinfer::apps
