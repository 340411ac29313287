#include "lib/text/byte_level.h"

#include "lib/text/utf8.h"

namespace mpinfer::text {

const std::array<uint32_t, 256>& byte_level_characters() {
  static const std::array<uint32_t, 256> characters = [] {
    std::array<uint32_t, 256> out{};
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      out[byte] = printable ? byte : next++;
    }
    return out;
  }();
  return characters;
}

std::optional<std::string> bytes_of_byte_level(std::string_view entry) {
  static const std::array<int, 512> bytes = [] {
    std::array<int, 512> out{};
    out.fill(-1);
    for (size_t byte = 0; byte < 256; ++byte)
      out[byte_level_characters()[byte]] = static_cast<int>(byte);
    return out;
  }();
  std::string raw;
  for (size_t at = 0; at < entry.size(); at += utf8_length(entry[at])) {
    const uint32_t character = code_point_at(entry, at);
    if (character >= bytes.size() || bytes[character] < 0) return std::nullopt;
    raw += static_cast<char>(bytes[character]);
  }
  return raw;
}

}  // namespace mpinfer::text
