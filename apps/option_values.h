// Text of an option's value → a number in its range. Errors say the value and the range; the caller
// adds the option.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mpinfer::apps {

int64_t parse_integer(const std::string& text, int64_t least, int64_t most);
uint64_t parse_seed(const std::string& text);
double parse_number(const std::string& text, double least, double most);
bool parse_switch(const std::string& text);     // true, false, on, off, 1, 0, yes, no
int64_t parse_bytes(const std::string& text);   // 1024, 80GiB, 512MB, 4k
double parse_seconds(const std::string& text);  // 90, 60s, 5m, 1h
std::string parse_choice(const std::string& text, const std::vector<std::string>& choices);
std::vector<int32_t> parse_integers(const std::string& comma_separated, int64_t least,
                                    int64_t most);

}  // namespace mpinfer::apps
