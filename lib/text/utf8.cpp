#include "lib/text/utf8.h"

#include <utf8proc.h>

#include <cstring>

namespace mpinfer::text {
namespace {

bool continuation(unsigned char byte) {
  return (byte & 0xC0) == 0x80;
}

// Length of the well-formed sequence at text[at]; else 0, with *bad the length of the maximal
// ill-formed subpart and *cut whether it only lacks bytes at the end of text.
size_t well_formed(std::string_view text, size_t at, size_t* bad, bool* cut) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  *cut = false;
  *bad = 1;
  const unsigned char lead = byte(at);
  if (lead < 0x80) return 1;
  size_t length = 0;
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  for (size_t i = 1; i < length; ++i) {
    if (at + i == text.size()) {
      *cut = true;
      *bad = i;
      return 0;
    }
    const unsigned char next = byte(at + i);
    if (i == 1 ? (next < low || next > high) : !continuation(next)) {
      *bad = i;
      return 0;
    }
  }
  return length;
}

}  // namespace

size_t find_invalid_utf8(std::string_view text) {
  size_t bad = 0;
  bool cut = false;
  for (size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      uint64_t eight = 0;
      if (text.size() - at >= sizeof(eight)) std::memcpy(&eight, text.data() + at, sizeof(eight));
      constexpr uint64_t kHighBits = 0x8080808080808080U;
      at += text.size() - at >= sizeof(eight) && (eight & kHighBits) == 0 ? sizeof(eight) : 1;
      continue;
    }
    const size_t length = well_formed(text, at, &bad, &cut);
    if (length == 0) return at;
    at += length;
  }
  return std::string_view::npos;
}

uint32_t code_point_at(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) {
    return static_cast<uint32_t>(static_cast<unsigned char>(text[at + i]));
  };
  switch (utf8_length(text[at])) {
    case 1:
      return byte(0);
    case 2:
      return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
    case 3:
      return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    default:
      return (byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 |
             (byte(3) & 0x3F);
  }
}

void append_utf8(std::string& out, uint32_t c) {
  const auto put = [&out](uint32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

size_t last_code_point(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && continuation(static_cast<unsigned char>(text[at]))) --at;
  return at;
}

size_t append_lossy(std::string& out, std::string_view bytes, bool more_may_follow) {
  size_t bad = 0;
  bool cut = false;
  for (size_t at = 0; at < bytes.size();) {
    const size_t length = well_formed(bytes, at, &bad, &cut);
    if (length > 0) {
      out.append(bytes, at, length);
      at += length;
    } else if (cut && more_may_follow) {
      return bytes.size() - at;
    } else {
      out += "\xEF\xBF\xBD";
      at += bad;
    }
  }
  return 0;
}

bool is_white_space(uint32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word(uint32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      // join controls and letters in circles and squares
      return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
             (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
             (c >= 0x1F170 && c <= 0x1F189);
  }
}

}  // namespace mpinfer::text
