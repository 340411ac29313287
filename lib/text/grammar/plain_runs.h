// Plain characters: all but controls, quotes and backslashes. Inside a JSON string (and behind a .
// of a pattern) any of them may come, so that most of a vocabulary need not be looked at token by
// token: how many of its characters may come is all there is to know.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

namespace mpinfer::text::grammar {

constexpr int kMostPlain = 32;        // longer runs are not told apart
constexpr int8_t kNotPlainOnly = -1;  // characters differ in where they lead

// Number of characters, or kNotPlainOnly where one is not plain or not whole.
int num_plain(std::string_view text);

// Where a transition table of bytes leads; num_states states, dead: nowhere.
struct ByteTable {
  std::function<uint16_t(uint16_t state, uint8_t byte)> step;
  std::array<uint8_t, 256> classes = {};  // bytes that no state tells apart
  size_t num_states = 0;
  uint16_t dead = 0;
};

// A state's number of plain characters that may follow, whichever they are, before none may
// (kMostPlain: at least so many); kNotPlainOnly: not all may, or not to the same place.
std::vector<int8_t> plain_runs(const ByteTable& table);

}  // namespace mpinfer::text::grammar
