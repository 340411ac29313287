// What JSON Schema calls format, as patterns. Every text that a pattern matches is of its format;
// not every text of the format is matched.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace mpinfer::text::grammar {

// In the syntax of pattern.h; nothing where the format is not known.
std::optional<std::string> pattern_of_format(std::string_view name);
std::string known_formats();  // for people

}  // namespace mpinfer::text::grammar
