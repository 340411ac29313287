#include "lib/job/json_text.h"

#include <fmt/core.h>

#include <cstdint>
#include <cstring>

namespace mpinfer::job {
namespace {

constexpr uint64_t kHighBits = 0x8080808080808080ULL;

bool is_continuation(char c) {
  return (static_cast<unsigned char>(c) & 0xc0U) == 0x80U;
}

// Bytes of the character at the front of text, 0 when it is invalid (Unicode, table 3-7).
size_t character_bytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  size_t length = 0;
  unsigned char low = 0x80;
  unsigned char high = 0xbf;
  if (first >= 0xc2 && first <= 0xdf) {
    length = 2;
  } else if (first >= 0xe0 && first <= 0xef) {
    length = 3;
    if (first == 0xe0) low = 0xa0;
    if (first == 0xed) high = 0x9f;
  } else if (first >= 0xf0 && first <= 0xf4) {
    length = 4;
    if (first == 0xf0) low = 0x90;
    if (first == 0xf4) high = 0x8f;
  }
  if (length == 0 || text.size() < length || byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if (!is_continuation(text[i])) return 0;
  }
  return length;
}

void append_escaped(std::string* out, char c) {
  switch (c) {
    case '"':
      *out += "\\\"";
      return;
    case '\\':
      *out += "\\\\";
      return;
    case '\n':
      *out += "\\n";
      return;
    case '\r':
      *out += "\\r";
      return;
    case '\t':
      *out += "\\t";
      return;
    default:
      *out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
  }
}

bool needs_escape(char c) {
  return static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\';
}

}  // namespace

size_t valid_utf8_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t word = 0;
    if (text.size() - at >= sizeof(word)) {
      std::memcpy(&word, text.data() + at, sizeof(word));
      if ((word & kHighBits) == 0) {
        at += sizeof(word);
        continue;
      }
    }
    const size_t length = character_bytes(text.substr(at));
    if (length == 0) return at;
    at += length;
  }
  return at;
}

void append_json_string(std::string* out, std::string_view text) {
  *out += '"';
  while (!text.empty()) {
    const std::string_view valid = text.substr(0, valid_utf8_prefix(text));
    size_t plain = 0;
    for (size_t i = 0; i < valid.size(); ++i) {
      if (!needs_escape(valid[i])) continue;
      *out += valid.substr(plain, i - plain);
      append_escaped(out, valid[i]);
      plain = i + 1;
    }
    *out += valid.substr(plain);
    text.remove_prefix(valid.size());
    if (text.empty()) break;
    *out += "\xef\xbf\xbd";
    text.remove_prefix(1);
  }
  *out += '"';
}

}  // namespace mpinfer::job
