// Admission: how many tokens a sequence is expected to generate. Reserving the rest of the context
// would collapse the batch, reserving nothing would preempt all day: the reserve is the smaller of
// max_tokens and a running quantile of the lengths of completions seen so far, raised after each
// preemption. Where reading the weights is most of a step, a sequence may start without its
// reserve: the rows it adds are nearly free, and computing it again after a preemption is cheap
// beside them.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/engine/sequence.h"

namespace mpinfer::engine {

class Admission {
 public:
  // break_even: how many rows' arithmetic costs as much as reading the weights for a step; 0: no
  // sequence starts without its reserve.
  explicit Admission(int64_t break_even) : break_even_(break_even) {}

  // Completion tokens to reserve for, counted from the first: at least what is drawn already plus
  // one, at most max_tokens; exact with ignore_eos.
  int32_t expected_completion(const Sequence& sequence) const;
  // Whether a sequence should start without its reserve. num_running: with it. num_tokens: what it
  // will draw until the cache is full and it is preempted; num_again: rows of it, these tokens not
  // counted, that are computed again then. Each token saves its share of the weights' reading,
  // break_even / num_running rows' arithmetic; num_again + num_tokens rows are the price.
  bool pays_without_reserve(int64_t num_running, int64_t num_tokens, int64_t num_again) const {
    return num_tokens * (break_even_ - num_running) > num_again * num_running;
  }
  void on_finished(const Sequence& sequence);
  void on_preempted();

 private:
  static constexpr int32_t kFirstGuess = 256;
  static constexpr size_t kHistory = 256;
  static constexpr double kQuantile = 0.8;

  int64_t break_even_;
  std::vector<int32_t>
      lengths_;  // ring of the last kHistory completions that ended by themselves or by length
  size_t next_ = 0;
  int32_t quantile_ = kFirstGuess;
  double inflation_ = 1.0;
};

}  // namespace mpinfer::engine
