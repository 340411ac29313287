// GPT-2's map of bytes to printable characters, in which byte-level vocabularies are written.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mpinfer::text {

// Character of each byte.
const std::array<uint32_t, 256>& byte_level_characters();
// Raw bytes of a vocabulary entry; nothing if a character of it stands for no byte.
std::optional<std::string> bytes_of_byte_level(std::string_view entry);

}  // namespace mpinfer::text
