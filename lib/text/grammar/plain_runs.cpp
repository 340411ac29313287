#include "lib/text/grammar/plain_runs.h"

#include <algorithm>

#include "lib/text/utf8.h"

namespace mpinfer::text::grammar {
namespace {

constexpr int32_t kMixed = -1;  // of states: characters differ

bool is_plain(uint8_t byte) {
  return byte >= 0x20 && byte != '"' && byte != '\\';
}

// How many continuation bytes a lead byte asks for, and the range of the first (RFC 3629).
struct Lead {
  uint8_t low, high;
  int num_behind;
  uint8_t first_low, first_high;
};
constexpr Lead kLeads[] = {{0xC2, 0xDF, 1, 0x80, 0xBF}, {0xE0, 0xE0, 2, 0xA0, 0xBF},
                           {0xE1, 0xEC, 2, 0x80, 0xBF}, {0xED, 0xED, 2, 0x80, 0x9F},
                           {0xEE, 0xEF, 2, 0x80, 0xBF}, {0xF0, 0xF0, 3, 0x90, 0xBF},
                           {0xF1, 0xF3, 3, 0x80, 0xBF}, {0xF4, 0xF4, 3, 0x80, 0x8F}};

class Walker {
 public:
  explicit Walker(const ByteTable& table) : table_(table) {
    ascii_ = one_of_each([](uint8_t byte) { return byte < 0x80 && is_plain(byte); });
    for (const Lead& lead : kLeads) {
      leads_.push_back(one_of_each(between(lead.low, lead.high)));
      firsts_.push_back(one_of_each(between(lead.first_low, lead.first_high)));
    }
    behind_ = one_of_each(between(0x80, 0xBF));
  }

  // Where every plain character leads, or kMixed.
  int32_t target(uint16_t state) const {
    const uint16_t to = table_.step(state, ascii_.front());
    for (const uint8_t byte : ascii_) {
      if (table_.step(state, byte) != to) return kMixed;
    }
    for (size_t i = 0; i < leads_.size(); ++i) {
      for (const uint8_t lead : leads_[i]) {
        if (!all_lead(table_.step(state, lead), firsts_[i], kLeads[i].num_behind, to))
          return kMixed;
      }
    }
    return to;
  }

 private:
  static std::function<bool(uint8_t)> between(uint8_t low, uint8_t high) {
    return [=](uint8_t byte) { return byte >= low && byte <= high; };
  }

  std::vector<uint8_t> one_of_each(const std::function<bool(uint8_t)>& wanted) const {
    std::vector<uint8_t> bytes;
    std::array<bool, 256> seen = {};
    for (size_t byte = 0; byte < 256; ++byte) {
      if (!wanted(static_cast<uint8_t>(byte)) || seen[table_.classes[byte]]) continue;
      seen[table_.classes[byte]] = true;
      bytes.push_back(static_cast<uint8_t>(byte));
    }
    return bytes;
  }

  // Whether num_behind bytes, the first of them one of these, always lead from state to `to`.
  bool all_lead(uint16_t state, const std::vector<uint8_t>& bytes, int num_behind,
                uint16_t to) const {
    if (num_behind == 0 || state == table_.dead) return state == to;
    return std::all_of(bytes.begin(), bytes.end(), [&](uint8_t byte) {
      return all_lead(table_.step(state, byte), behind_, num_behind - 1, to);
    });
  }

  const ByteTable& table_;
  std::vector<uint8_t> ascii_;
  std::vector<std::vector<uint8_t>> leads_;
  std::vector<std::vector<uint8_t>> firsts_;  // behind leads_[i]
  std::vector<uint8_t> behind_;
};

}  // namespace

int num_plain(std::string_view text) {
  const auto* begin = reinterpret_cast<const uint8_t*>(text.data());
  if (!std::all_of(begin, begin + text.size(), is_plain)) return kNotPlainOnly;
  if (find_invalid_utf8(text) != std::string_view::npos) return kNotPlainOnly;
  return static_cast<int>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::vector<int8_t> plain_runs(const ByteTable& table) {
  const Walker walker(table);
  std::vector<int32_t> targets(table.num_states);
  for (size_t state = 0; state < table.num_states; ++state)
    targets[state] = walker.target(static_cast<uint16_t>(state));
  std::vector<int8_t> runs(table.num_states);
  for (size_t state = 0; state < table.num_states; ++state) {
    int8_t length = 0;
    auto at = static_cast<int32_t>(state);
    while (length < kMostPlain && targets[static_cast<size_t>(at)] != table.dead) {
      at = targets[static_cast<size_t>(at)];
      if (at == kMixed) break;
      ++length;
    }
    runs[state] = at == kMixed ? kNotPlainOnly : length;
  }
  return runs;
}

}  // namespace mpinfer::text::grammar
