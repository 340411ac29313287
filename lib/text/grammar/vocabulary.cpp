#include "lib/text/grammar/vocabulary.h"

#include <algorithm>

#include "lib/text/grammar/plain_runs.h"

namespace mpinfer::text::grammar {

namespace {

std::vector<int32_t> in_order(const std::vector<std::string>& bytes, bool with_plain) {
  std::vector<int32_t> ids;
  for (size_t id = 0; id < bytes.size(); ++id) {
    const int length = with_plain ? 0 : num_plain(bytes[id]);
    const bool wanted = with_plain || length == kNotPlainOnly || length > kMostPlain;
    if (!bytes[id].empty() && wanted) ids.push_back(static_cast<int32_t>(id));
  }
  const auto of = [&](int32_t id) -> const std::string& { return bytes[static_cast<size_t>(id)]; };
  std::sort(ids.begin(), ids.end(),
            [&](int32_t a, int32_t b) { return of(a) != of(b) ? of(a) < of(b) : a < b; });
  return ids;
}

void set_bit(std::vector<uint32_t>& bits, int32_t id) {
  bits[static_cast<size_t>(id / 32)] |= 1U << (id % 32);
}

}  // namespace

Vocabulary::Trie::Trie(const std::vector<std::string>& bytes_by_id, std::vector<int32_t> ids)
    : ids_(std::move(ids)) {
  std::vector<size_t> path;  // nodes from the root to the token before
  const auto leave = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back())
      nodes_[path.back()].skip = static_cast<int32_t>(nodes_.size());
  };
  std::string before;
  for (size_t i = 0; i < ids_.size(); ++i) {
    const std::string& bytes = bytes_by_id[static_cast<size_t>(ids_[i])];
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

void Vocabulary::Trie::allow(std::vector<uint32_t>& bits, const Automaton& automaton,
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
    for (int32_t t = node.first_token; t < node.end_token; ++t)
      set_bit(bits, ids_[static_cast<size_t>(t)]);
    ++i;
  }
}

Vocabulary::Vocabulary(std::vector<std::string> bytes_by_id)
    : bytes_(std::move(bytes_by_id)),
      all_(bytes_, in_order(bytes_, /*with_plain=*/true)),
      not_plain_(bytes_, in_order(bytes_, /*with_plain=*/false)),
      plain_(kMostPlain + 1, std::vector<uint32_t>((bytes_.size() + 31) / 32)) {
  for (size_t id = 0; id < bytes_.size(); ++id) {
    const int length = num_plain(bytes_[id]);
    if (bytes_[id].empty() || length == kNotPlainOnly) continue;
    for (auto n = static_cast<size_t>(length); n < plain_.size(); ++n)
      set_bit(plain_[n], static_cast<int32_t>(id));
  }
}

void Vocabulary::allow(std::vector<uint32_t>& bits, const Automaton& automaton,
                       Automaton::State state) const {
  const int run = automaton.plain_run(state);
  if (run == kNotPlainOnly) return all_.allow(bits, automaton, state);
  const std::vector<uint32_t>& plain = plain_[static_cast<size_t>(run)];
  for (size_t i = 0; i < plain.size(); ++i) bits[i] |= plain[i];
  not_plain_.allow(bits, automaton, state);
}

}  // namespace mpinfer::text::grammar
