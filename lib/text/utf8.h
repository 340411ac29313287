// UTF-8 and the few Unicode properties the tokenizers need; tables come from utf8proc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mpinfer::text {

// Byte offset of the first invalid sequence (overlong, surrogate, > U+10FFFF, cut short), or npos
// if text is valid.
size_t find_invalid_utf8(std::string_view text);
// Length of the sequence that starts with this byte of valid UTF-8: 1 to 4.
inline size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}
// Code point at text[at], valid UTF-8.
uint32_t code_point_at(std::string_view text, size_t at);
void append_utf8(std::string& out, uint32_t code_point);
// Start of the last code point of text, which is not empty and valid.
size_t last_code_point(std::string_view text);

// As Rust's String::from_utf8_lossy: each maximal ill-formed subpart becomes U+FFFD. When more may
// follow, an unfinished sequence at the end is left over: its length is returned.
size_t append_lossy(std::string& out, std::string_view bytes, bool more_may_follow);

bool is_white_space(uint32_t code_point);  // property White_Space
bool is_word(uint32_t code_point);  // \w: alphabetic, mark, decimal number, connector punctuation

}  // namespace mpinfer::text
