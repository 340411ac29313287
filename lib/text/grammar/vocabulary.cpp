#include "lib/text/grammar/vocabulary.h"

#include <algorithm>

namespace mpinfer::text::grammar {

Vocabulary::Vocabulary(std::vector<std::string> bytes_by_id) : bytes_(std::move(bytes_by_id)) {
  for (size_t id = 0; id < bytes_.size(); ++id) {
    if (!bytes_[id].empty()) order_.push_back(static_cast<int32_t>(id));
  }
  const auto of = [this](int32_t id) -> const std::string& { return bytes_of(id); };
  std::sort(order_.begin(), order_.end(),
            [&](int32_t a, int32_t b) { return of(a) != of(b) ? of(a) < of(b) : a < b; });
  std::vector<size_t> path;  // nodes from the root to the token before
  const auto leave = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back())
      nodes_[path.back()].skip = static_cast<int32_t>(nodes_.size());
  };
  std::string before;
  for (size_t i = 0; i < order_.size(); ++i) {
    const std::string& bytes = of(order_[i]);
    const auto common = static_cast<size_t>(
        std::mismatch(bytes.begin(), bytes.end(), before.begin(), before.end()).first -
        bytes.begin());
    leave(common);
    while (path.size() < bytes.size()) {
      const auto at = static_cast<int32_t>(i);
      nodes_.push_back({.byte = static_cast<uint8_t>(bytes[path.size()]),
                        .depth = static_cast<int32_t>(path.size()) + 1,
                        .first_token = at,
                        .end_token = at});
      path.push_back(nodes_.size() - 1);
    }
    nodes_[path.back()].end_token = static_cast<int32_t>(i) + 1;
    longest_ = std::max(longest_, bytes.size());
    before = bytes;
  }
  leave(0);
}

void Vocabulary::allow(std::vector<uint32_t>& bits, const Automaton& automaton,
                       Automaton::State state) const {
  std::vector<Automaton::State> states(longest_ + 1);
  states[0] = state;
  for (size_t i = 0; i < nodes_.size();) {
    const Node& node = nodes_[i];
    const auto depth = static_cast<size_t>(node.depth);
    states[depth] = automaton.step(states[depth - 1], node.byte);
    if (states[depth] == Automaton::kDead) {
      i = static_cast<size_t>(node.skip);
      continue;
    }
    for (int32_t t = node.first_token; t < node.end_token; ++t) {
      const int32_t id = order_[static_cast<size_t>(t)];
      bits[static_cast<size_t>(id / 32)] |= 1U << (id % 32);
    }
    ++i;
  }
}

}  // namespace mpinfer::text::grammar
