// Sampler: the host's part of drawing tokens: keys and parameters of each row, the masks of rows
// with allowed tokens, and the few logits that bans, biases, penalties and min_tokens change.
// Counts follow the drawn ids as they arrive, ahead of their commit; only rows that ask cost
// anything.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "lib/backend/backend.h"
#include "lib/core/token_grammar.h"
#include "lib/engine/sequence.h"
#include "lib/model/lm_head.h"

namespace mpinfer::engine {

class Sampler {
 public:
  // grammars: borrowed; null where no row has a grammar.
  Sampler(backend::Backend& backend, uint64_t run_seed, std::vector<int32_t> eos_token_ids,
          int64_t vocab_size, int32_t max_rows, int32_t ring, TokenGrammars* grammars);

  // Whether a row of the plan needs the ids of every earlier plan of its sequence on the host.
  static bool needs_history(const StepPlan& plan);
  // The ids that plan drew; in plan order.
  void observe(const StepPlan& plan, std::span<const int32_t> ids);
  // Device arrays for rows [num_greedy, num_logit_rows) of the plan.
  model::SamplingInput prepare(backend::Stream stream, const StepPlan& plan);

 private:
  struct Change {
    float bias = 0.0F;
    bool banned = false;
  };
  using Bits = std::shared_ptr<const std::vector<uint32_t>>;
  std::map<int32_t, Change> changes_of(const PlanEntry& entry) const;
  void add_adjustments(std::vector<backend::LogitAdjustment>& out, const PlanEntry& entry,
                       const Bits& allowed) const;
  Bits allowed_bits(Sequence& sequence) const;
  TokenMatcher& matcher_of(Sequence& sequence) const;

  struct Staging {
    backend::Buffer host;
    backend::Buffer device;
  };
  backend::Backend& backend_;
  uint64_t run_seed_;
  std::vector<int32_t> eos_token_ids_;
  int64_t vocab_size_;
  std::vector<Staging> ring_;
  TokenGrammars* grammars_;
};

}  // namespace mpinfer::engine
