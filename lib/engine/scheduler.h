// Scheduler: turns requests and committed token ids into numbered plans. Deterministic: plan g is a
// function of the records and results that were applied before it, never of a clock, a pointer or
// an unordered iteration, so every rank of a replica makes the same plans and none is ever sent.
// The order of calls is the contract in README.md: apply(record in force), commit(results of plan g
// - lanes - 1), make_plan(g).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "lib/engine/admission.h"
#include "lib/engine/block_manager.h"
#include "lib/engine/control.h"
#include "lib/engine/sequence.h"

namespace mpinfer::engine {

struct SchedulerOptions {
  int32_t num_lanes = 1;
  int32_t block_size = 16;
  std::vector<int32_t> num_blocks;  // per cache group
  std::vector<int32_t> windows;     // per cache group, 0 = full
  int32_t max_num_seqs = 256;
  int32_t max_num_batched_tokens = 8192;
  std::vector<int32_t> eos_token_ids;
  bool prefix_caching = true;
  int64_t break_even_seqs = 0;  // Admission's; over all lanes
};

enum class EndReason : uint8_t { kStopToken, kLength, kStopString, kDropped, kKvExhausted, kNan };

// What the leader listens to; the other ranks pass none.
class SchedulerObserver {
 public:
  virtual ~SchedulerObserver() = default;
  virtual void committed(const Sequence& sequence, int32_t token_id) = 0;
  // A token that an earlier attempt drew, in order, when its sequence arrives.
  virtual void begun(const Sequence& /*sequence*/, int32_t /*token_id*/) {}
  virtual void ended(const Sequence& sequence, EndReason reason, int32_t stop_token_id) = 0;
};

class Scheduler {
 public:
  Scheduler(SchedulerOptions options, SchedulerObserver* observer);

  void apply(ControlRecord record);
  // ids: one a logit entry of the plan, in its order; -1 for a row whose logits held a NaN.
  void commit(const StepPlan& plan, std::span<const int32_t> ids);
  StepPlan make_plan(int64_t number);

  // No request is left, none is coming and nothing is in flight.
  bool finished() const;
  bool has_work() const { return !running_.empty() || !waiting_.empty(); }

  // Sequences with completion tokens that have not ended, in order of arrival.
  void for_each_begun(const std::function<void(const Sequence&)>& visit) const;

  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_cached_tokens() const { return num_cached_tokens_; }  // positions not computed again
  int64_t num_preemptions() const { return num_preemptions_; }
  int64_t num_surplus_rows() const { return num_surplus_rows_; }
  const BlockManager& blocks() const { return blocks_; }

 private:
  void plan_decodes(StepPlan& plan);
  void plan_prefills(StepPlan& plan);
  void admit(StepPlan& plan);
  // Blocks of a group the sequence will hold at its expected end.
  int64_t expected_blocks(const Sequence& sequence, size_t group) const;
  // Free blocks of each group less what running sequences are expected to take.
  std::vector<int64_t> spare_blocks() const;
  // Free blocks of each group less what prompts of running sequences will take.
  std::vector<int64_t> room_blocks() const;
  // Blocks of a group that computing its known tokens takes.
  int64_t known_blocks(const Sequence& sequence, size_t group) const;
  // Whether a sequence starts that does not fit to its expected end; spare: with its reserve taken
  // off, room: with its known tokens.
  bool admit_without_reserve(const Sequence& sequence, const BlockManager::Prefix& prefix,
                             const std::vector<int64_t>& spare,
                             const std::vector<int64_t>& room) const;
  BlockManager::Prefix find_prefix(Sequence& sequence) const;
  void start(const SequencePtr& sequence, int32_t lane, const BlockManager::Prefix& prefix);
  bool lane_has_room(int32_t lane) const;
  int64_t prefill_budget(const StepPlan& plan) const;
  // Blocks for num_positions, preempting younger sequences if it must; false: this sequence gets no
  // row now (it may have been preempted or ended itself).
  bool make_room(StepPlan& plan, const SequencePtr& sequence, int32_t num_positions);
  void add_entry(StepPlan& plan, const SequencePtr& sequence, int32_t num_rows);
  void remove_entry(StepPlan& plan, const SequencePtr& sequence);
  void preempt_youngest(StepPlan& plan);
  void end(const SequencePtr& sequence, EndReason reason, int32_t stop_token_id);
  void leave_running(Sequence& sequence);
  void add_sample(const Request& request, int32_t sample);
  void seal(StepPlan& plan);
  static void list_logprob_rows(StepPlan& plan);
  bool is_stop_token(const Sequence& sequence, int32_t token_id) const;
  void mix(uint64_t value) { hash_ = (hash_ ^ value) * 0x100000001b3ULL; }

  SchedulerOptions options_;
  SchedulerObserver* observer_;
  BlockManager blocks_;
  Admission admission_;
  std::deque<SequencePtr> waiting_;       // preempted ones at the front
  std::vector<SequencePtr> running_;      // in order of admission: the last is the youngest
  std::map<int64_t, SequencePtr> by_id_;  // waiting and running, for verdicts
  std::vector<int32_t> free_slots_;
  std::vector<int32_t> lane_counts_;
  int64_t next_id_ = 0;
  int64_t in_flight_ = 0;  // drawn tokens not yet committed, over all sequences
  bool no_more_ = false;
  bool drain_ = false;
  int64_t num_preemptions_ = 0;
  int64_t num_cached_tokens_ = 0;
  int64_t num_surplus_rows_ = 0;
  uint64_t hash_ = 0xcbf29ce484222325ULL;
};

}  // namespace mpinfer::engine
