// Admission: how many tokens a sequence is expected to generate. Reserving the rest of the context
// would collapse the batch, reserving nothing would preempt all day: the reserve is the smaller of
// max_tokens and a running quantile of the lengths of completions seen so far, raised after each
// preemption.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/engine/sequence.h"

namespace mpinfer::engine {

class Admission {
 public:
  // Completion tokens to reserve for, counted from the first: at least what is drawn already plus
  // one, at most max_tokens; exact with ignore_eos.
  int32_t expected_completion(const Sequence& sequence) const;
  void on_finished(const Sequence& sequence);
  void on_preempted();

 private:
  static constexpr int32_t kFirstGuess = 256;
  static constexpr size_t kHistory = 256;
  static constexpr double kQuantile = 0.8;

  std::vector<int32_t>
      lengths_;  // ring of the last kHistory completions that ended by themselves or by length
  size_t next_ = 0;
  int32_t quantile_ = kFirstGuess;
  double inflation_ = 1.0;
};

}  // namespace mpinfer::engine
