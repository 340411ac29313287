// Automaton: a deterministic automaton over bytes, made of an Expr. From every state the end of a
// value can be reached, so a text that has not left the automaton can always be completed.
// Immutable.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "lib/core/result.h"
#include "lib/text/grammar/expr.h"

namespace mpinfer::text::grammar {

// What one row's grammar may cost. Beyond any of them it is refused as unsupported.
constexpr int32_t kMaxNodes = 1 << 16;        // of the nondeterministic automaton
constexpr int32_t kMaxStates = 32'000;        // of the deterministic one
constexpr int64_t kMaxTransitions = 1 << 21;  // states × classes of bytes: 4 MiB
constexpr int64_t kMaxWork = 40'000'000;      // nodes visited while it is made

class Automaton {
 public:
  using State = uint16_t;
  static constexpr State kDead = 0xFFFF;

  // param: the field that is named in a refusal.
  static Expected<Automaton> compile(const Expr& expr, const std::string& param);

  State start() const { return start_; }
  State step(State state, uint8_t byte) const {
    return transitions_[size_t{state} * num_classes_ + classes_[byte]];
  }
  bool may_end(State state) const { return may_end_[state]; }
  int64_t num_states() const { return static_cast<int64_t>(may_end_.size()); }
  int64_t bytes() const {
    return static_cast<int64_t>(transitions_.size() * sizeof(State) + plain_runs_.size());
  }
  bool matches(std::string_view text) const;
  // How many plain characters may follow, whichever they are (plain_runs.h).
  int plain_run(State state) const { return plain_runs_[state]; }

 private:
  friend class Determinizer;
  std::array<uint8_t, 256> classes_ = {};  // bytes that no state tells apart
  size_t num_classes_ = 0;
  std::vector<State> transitions_;  // [state][class]
  std::vector<bool> may_end_;
  std::vector<int8_t> plain_runs_;
  State start_ = 0;
};

}  // namespace mpinfer::text::grammar
