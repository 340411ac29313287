// JSON text: strings written with valid escapes whatever the bytes, and UTF-8 checked in one pass.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mpinfer::job {

// Length of the valid UTF-8 prefix: text.size() when all of it is valid. Surrogates and overlong
// forms are invalid.
size_t valid_utf8_prefix(std::string_view text);
inline bool is_valid_utf8(std::string_view text) {
  return valid_utf8_prefix(text) == text.size();
}

// Appends text as a JSON string; each invalid byte becomes U+FFFD.
void append_json_string(std::string* out, std::string_view text);

}  // namespace mpinfer::job
