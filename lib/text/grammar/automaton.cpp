#include "lib/text/grammar/automaton.h"

#include <fmt/core.h>

#include <algorithm>
#include <string>
#include <unordered_map>

#include "lib/text/grammar/nfa.h"
#include "lib/text/grammar/plain_runs.h"

namespace mpinfer::text::grammar {

// Subset construction: a state is the set of nodes that read a byte (or end) behind some text.
class Determinizer {
 public:
  explicit Determinizer(const Nfa& nfa) : nfa_(nfa), seen_(nfa.nodes.size(), 0) {}

  // False: a limit was passed.
  bool run() {
    classify_bytes();
    close({nfa_.start});
    state_of_set();
    std::vector<std::vector<int32_t>> targets(out_.num_classes_);
    for (size_t state = 0; state < sets_.size(); ++state) {
      if (!in_limits()) return false;
      out_.transitions_.resize((state + 1) * out_.num_classes_, Automaton::kDead);
      spread(sets_[state], targets);
      for (size_t c = 0; c < targets.size(); ++c) {
        if (targets[c].empty()) continue;
        close(targets[c]);
        out_.transitions_[state * out_.num_classes_ + c] = state_of_set();
        targets[c].clear();
      }
    }
    return true;
  }

  Automaton take() {
    trim();
    out_.plain_runs_ =
        plain_runs({.step = [this](uint16_t state, uint8_t byte) { return out_.step(state, byte); },
                    .classes = out_.classes_,
                    .num_states = sets_.size(),
                    .dead = Automaton::kDead});
    return std::move(out_);
  }

 private:
  bool in_limits() const {
    return work_ <= kMaxWork && sets_.size() <= size_t{kMaxStates} &&
           static_cast<int64_t>(sets_.size() * out_.num_classes_) <= kMaxTransitions;
  }

  void classify_bytes() {
    std::array<bool, 257> begins = {};
    begins[0] = true;
    for (const NfaNode& node : nfa_.nodes) {
      if (node.kind != NfaNode::Kind::kByte) continue;
      begins[node.low] = true;
      begins[size_t{node.high} + 1] = true;
    }
    size_t count = 0;
    for (size_t byte = 0; byte < 256; ++byte) {
      if (begins[byte]) ++count;
      out_.classes_[byte] = static_cast<uint8_t>(count - 1);
    }
    out_.num_classes_ = count;
  }

  // Puts in set_ what is reached from these without a byte, in ascending order.
  void close(const std::vector<int32_t>& from) {
    ++round_;
    set_.clear();
    stack_.assign(from.begin(), from.end());
    while (!stack_.empty()) {
      const int32_t at = stack_.back();
      stack_.pop_back();
      if (at < 0 || seen_[static_cast<size_t>(at)] == round_) continue;
      seen_[static_cast<size_t>(at)] = round_;
      ++work_;
      const NfaNode& node = nfa_.nodes[static_cast<size_t>(at)];
      if (node.kind == NfaNode::Kind::kSplit) {
        stack_.push_back(node.next);
        stack_.push_back(node.other);
      } else {
        set_.push_back(at);
      }
    }
    std::sort(set_.begin(), set_.end());
  }

  Automaton::State state_of_set() {
    std::string key(reinterpret_cast<const char*>(set_.data()), set_.size() * sizeof(int32_t));
    const auto [found, fresh] = states_.try_emplace(std::move(key), sets_.size());
    if (fresh) {
      work_ += static_cast<int64_t>(set_.size());
      sets_.push_back(set_);
      out_.may_end_.push_back(std::any_of(set_.begin(), set_.end(), [this](int32_t node) {
        return nfa_.nodes[static_cast<size_t>(node)].kind == NfaNode::Kind::kEnd;
      }));
    }
    return static_cast<Automaton::State>(found->second);
  }

  void spread(const std::vector<int32_t>& nodes, std::vector<std::vector<int32_t>>& targets) {
    for (const int32_t at : nodes) {
      const NfaNode& node = nfa_.nodes[static_cast<size_t>(at)];
      if (node.kind != NfaNode::Kind::kByte) continue;
      const size_t last = out_.classes_[node.high];
      for (size_t c = out_.classes_[node.low]; c <= last; ++c) {
        targets[c].push_back(node.next);
        ++work_;
      }
    }
  }

  // Transitions to states from which no end is reached go nowhere.
  void trim() {
    const size_t count = sets_.size();
    std::vector<std::vector<Automaton::State>> before(count);
    for (size_t i = 0; i < out_.transitions_.size(); ++i) {
      const Automaton::State to = out_.transitions_[i];
      if (to != Automaton::kDead)
        before[to].push_back(static_cast<Automaton::State>(i / out_.num_classes_));
    }
    std::vector<bool> ends = out_.may_end_;
    std::vector<size_t> open;
    for (size_t state = 0; state < count; ++state) {
      if (ends[state]) open.push_back(state);
    }
    while (!open.empty()) {
      const size_t state = open.back();
      open.pop_back();
      for (const Automaton::State from : before[state]) {
        if (!ends[from]) open.push_back(from);
        ends[from] = true;
      }
    }
    for (Automaton::State& to : out_.transitions_) {
      if (to != Automaton::kDead && !ends[to]) to = Automaton::kDead;
    }
    out_.start_ = ends[0] ? Automaton::State{0} : Automaton::kDead;
  }

  const Nfa& nfa_;
  Automaton out_;
  std::vector<int32_t> seen_;  // round that visited a node last
  int32_t round_ = 0;
  int64_t work_ = 0;
  std::vector<int32_t> stack_;
  std::vector<int32_t> set_;
  std::vector<std::vector<int32_t>> sets_;
  std::unordered_map<std::string, size_t> states_;
};

Expected<Automaton> Automaton::compile(const Expr& expr, const std::string& param) {
  const Nfa nfa = build_nfa(expr, kMaxNodes);
  Determinizer determinizer(nfa);
  if (nfa.too_large || !determinizer.run()) {
    return tl::unexpected(RowError{
        "unsupported",
        fmt::format("{} is too large: it needs an automaton of more than {} nodes or {} states; "
                    "smaller counts, fewer properties or less nesting fit",
                    param, kMaxNodes, kMaxStates),
        param});
  }
  Automaton automaton = determinizer.take();
  if (automaton.start_ == kDead) {
    return tl::unexpected(
        RowError{"invalid_param", fmt::format("{} allows no text at all", param), param});
  }
  return automaton;
}

bool Automaton::matches(std::string_view text) const {
  State state = start_;
  for (const char c : text) {
    state = step(state, static_cast<uint8_t>(c));
    if (state == kDead) return false;
  }
  return may_end(state);
}

}  // namespace mpinfer::text::grammar
