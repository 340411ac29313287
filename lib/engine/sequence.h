// Sequence: the engine's state of one request, and StepPlan: what one numbered step computes. Both
// are the same on every rank of a replica; neither holds anything of a device, a clock or a rank.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "lib/core/request.h"
#include "lib/core/result.h"
#include "lib/core/token_grammar.h"

namespace mpinfer::engine {

enum class SequenceState : uint8_t { kWaiting, kRunning, kPreempted, kFinished };

struct BlockHash {  // of all tokens up to a block's end
  uint64_t low = 0;
  uint64_t high = 0;
  bool operator==(const BlockHash&) const = default;
};

struct Sequence {
  int64_t id = 0;  // order of arrival in the replica
  Request request;
  SequenceState state = SequenceState::kWaiting;

  std::vector<int32_t> output;  // committed completion tokens
  int32_t num_computed = 0;     // positions whose KV is written by plans made so far
  int32_t prefill_target = 0;   // positions to compute from known tokens; decoding starts there
  int32_t num_sampled = 0;  // completion tokens drawn by plans made so far, committed or in flight
  int32_t in_flight = 0;    // drawn and not yet committed
  int32_t lane = -1;
  int32_t slot = -1;
  std::vector<std::vector<int32_t>>
      blocks;  // [cache group][block of the sequence], -1: freed behind the window
  bool without_reserve = false;   // was admitted so: its preemption is in the plan
  std::vector<BlockHash> hashes;  // of the full blocks of tokens known at admission
  int32_t num_cached = 0;         // prompt tokens that were found computed, at first admission
  // Tokens of the context → times drawn so far, in flight included. Kept by the sampler, for
  // penalised requests only; no decision of the scheduler reads it.
  std::map<int32_t, int32_t> drawn_counts;
  // Likewise the sampler's: every token drawn so far, for rows whose next one depends on them, and
  // the row's allowed tokens as bits.
  std::vector<int32_t> drawn;
  std::shared_ptr<const std::vector<uint32_t>> allowed_bits;
  std::shared_ptr<TokenMatcher> matcher;  // place in the row's grammar, in flight included

  int32_t num_prompt() const { return static_cast<int32_t>(request.prompt_token_ids.size()); }
  bool prefilled() const { return num_computed >= prefill_target; }
  int32_t known_token(int32_t position) const {
    const auto at = static_cast<size_t>(position);
    const auto& prompt = request.prompt_token_ids;
    return at < prompt.size() ? prompt[at] : output[at - prompt.size()];
  }
};

using SequencePtr = std::shared_ptr<Sequence>;

// The rows of one sequence in a step: positions [first_position, first_position + num_rows).
struct PlanEntry {
  SequencePtr sequence;
  int32_t num_rows = 0;
  int32_t first_position = 0;
  int32_t slot = -1;
  bool decode = false;   // the one row's token is the slot's last token, on the device
  bool samples = false;  // the last row draws completion token number completion_position
  int32_t completion_position = 0;
  std::vector<std::vector<int32_t>> blocks;  // block tables as of this plan, per cache group

  int32_t context_len() const { return first_position + num_rows; }
};

// A row of the step whose distribution is looked at: for the token it draws, or for the prompt's
// token behind it.
struct LogprobRow {
  int32_t row = 0;           // of the step
  int32_t entry = 0;         // of the plan
  int32_t logit_index = -1;  // which draw; -1: a prompt row
  int32_t position = 0;      // prompt row: of the token that is looked at
};

struct StepPlan {
  int64_t number = 0;
  std::vector<PlanEntry> entries;      // decode rows first, then prefill chunks
  std::vector<int32_t> logit_entries;  // entries that draw: plain greedy ones first
  int32_t num_greedy = 0;              // how many of logit_entries need only an argmax
  int32_t num_decodes = 0;
  int64_t num_rows = 0;
  std::vector<LogprobRow> logprob_rows;
  int32_t num_top_logprobs = 0;  // most that one of them asks for
  uint64_t hash = 0;             // of everything decided so far, this plan included

  int64_t num_logit_rows() const { return static_cast<int64_t>(logit_entries.size()); }
  int64_t num_logprob_rows() const { return static_cast<int64_t>(logprob_rows.size()); }
  bool empty() const { return entries.empty(); }
};

}  // namespace mpinfer::engine
