#include "lib/engine/scheduler.h"

#include <algorithm>

#include "lib/core/error.h"

namespace mpinfer::engine {

Scheduler::Scheduler(SchedulerOptions options, SchedulerObserver* observer)
    : options_(std::move(options)),
      observer_(observer),
      blocks_(options_.block_size, options_.num_blocks, options_.windows,
              options_.max_num_batched_tokens),
      admission_(options_.break_even_seqs),
      lane_counts_(static_cast<size_t>(options_.num_lanes), 0) {
  MPINFER_CHECK(options_.num_lanes > 0 && options_.max_num_seqs > 0);
  MPINFER_CHECK(options_.max_num_batched_tokens >= options_.max_num_seqs,
                "{} tokens a step for {} sequences", options_.max_num_batched_tokens,
                options_.max_num_seqs);
  for (int32_t slot = options_.max_num_seqs - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

void Scheduler::apply(ControlRecord record) {
  for (Request& request : record.requests) {
    for (int32_t sample = 0; sample < request.sampling.n; ++sample) add_sample(request, sample);
  }
  for (const StopVerdict& verdict : record.verdicts) {
    const auto found = by_id_.find(verdict.sequence_id);
    if (found != by_id_.end()) end(SequencePtr(found->second), EndReason::kStopString, -1);
  }
  no_more_ = no_more_ || record.no_more;
  if (record.drain) {
    drain_ = true;
    while (!waiting_.empty()) end(SequencePtr(waiting_.back()), EndReason::kDropped, -1);
  }
  if (record.cancel) {
    while (!waiting_.empty()) end(SequencePtr(waiting_.back()), EndReason::kDropped, -1);
    while (!running_.empty()) end(SequencePtr(running_.back()), EndReason::kDropped, -1);
  }
}

void Scheduler::for_each_begun(const std::function<void(const Sequence&)>& visit) const {
  for (const auto& [id, sequence] : by_id_) {
    if (!sequence->output.empty()) visit(*sequence);
  }
}

void Scheduler::add_sample(const Request& request, int32_t sample) {
  auto sequence = std::make_shared<Sequence>();
  sequence->id = next_id_++;
  Request& own = sequence->request;
  own.index = request.index;
  own.sample = sample;
  own.prompt_token_ids = request.prompt_token_ids;
  own.sampling = request.sampling;
  if (!request.continuations.empty()) {
    const auto& end = request.continuations.at(static_cast<size_t>(sample));
    own.prompt_token_ids.insert(own.prompt_token_ids.end(), end.begin(), end.end());
  }
  own.begun_token_ids = request.begun_token_ids;
  for (const int32_t id : own.begun_token_ids) {
    sequence->output.push_back(id);
    if (observer_ != nullptr) observer_->begun(*sequence, id);
  }
  if (!own.sampling.bad_words.empty()) sequence->drawn = own.begun_token_ids;
  sequence->num_sampled = static_cast<int32_t>(sequence->output.size());
  sequence->prefill_target = sequence->num_prompt() + sequence->num_sampled;
  by_id_.emplace(sequence->id, sequence);
  waiting_.push_back(std::move(sequence));
}

bool Scheduler::is_stop_token(const Sequence& sequence, int32_t token_id) const {
  const auto contains = [token_id](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), token_id) != ids.end();
  };
  const SamplingParams& sampling = sequence.request.sampling;
  return contains(sampling.stop_token_ids) ||
         (!sampling.ignore_eos && contains(options_.eos_token_ids));
}

void Scheduler::commit(const StepPlan& plan, std::span<const int32_t> ids) {
  MPINFER_CHECK(ids.size() == plan.logit_entries.size(), "plan {}: {} ids for {} rows", plan.number,
                ids.size(), plan.logit_entries.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const SequencePtr& sequence = plan.entries[static_cast<size_t>(plan.logit_entries[i])].sequence;
    const int32_t id = ids[i];
    mix(static_cast<uint64_t>(static_cast<uint32_t>(id)));
    --sequence->in_flight;
    --in_flight_;
    if (sequence->state == SequenceState::kFinished) {
      ++num_surplus_rows_;
      continue;
    }
    if (id < 0) {
      end(sequence, EndReason::kNan, -1);
      continue;
    }
    sequence->output.push_back(id);
    if (observer_ != nullptr) observer_->committed(*sequence, id);
    const auto length = static_cast<int32_t>(sequence->output.size());
    // A grammar lets an end-of-text token through before min_tokens only where nothing else fits.
    const SamplingParams& sampling = sequence->request.sampling;
    if (is_stop_token(*sequence, id) && (length > sampling.min_tokens || sampling.constrained())) {
      end(sequence, EndReason::kStopToken, id);
    } else if (length >= sampling.max_tokens) {
      end(sequence, EndReason::kLength, -1);
    }
  }
}

void Scheduler::leave_running(Sequence& sequence) {
  blocks_.release(sequence);
  free_slots_.push_back(sequence.slot);
  --lane_counts_[static_cast<size_t>(sequence.lane)];
  sequence.slot = -1;
  sequence.lane = -1;
}

void Scheduler::end(const SequencePtr& sequence, EndReason reason, int32_t stop_token_id) {
  if (sequence->state == SequenceState::kRunning) {
    running_.erase(std::find(running_.begin(), running_.end(), sequence));
    leave_running(*sequence);
  } else {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), sequence));
  }
  sequence->state = SequenceState::kFinished;
  by_id_.erase(sequence->id);
  if (reason == EndReason::kStopToken || reason == EndReason::kLength ||
      reason == EndReason::kStopString) {
    admission_.on_finished(*sequence);
  }
  if (observer_ != nullptr) observer_->ended(*sequence, reason, stop_token_id);
}

bool Scheduler::finished() const {
  return no_more_ && !has_work() && in_flight_ == 0;
}

StepPlan Scheduler::make_plan(int64_t number) {
  StepPlan plan;
  plan.number = number;
  plan_decodes(plan);
  plan_prefills(plan);
  admit(plan);
  seal(plan);
  return plan;
}

void Scheduler::plan_decodes(StepPlan& plan) {
  const auto lane = static_cast<int32_t>(plan.number % options_.num_lanes);
  for (size_t i = 0; i < running_.size(); ++i) {
    const SequencePtr sequence = running_[i];
    if (sequence->lane != lane || !sequence->prefilled()) continue;
    if (sequence->num_sampled >= sequence->request.sampling.max_tokens) continue;
    if (make_room(plan, sequence, sequence->num_computed + 1)) add_entry(plan, sequence, 1);
  }
}

// With several lanes a plan takes its share of a step's rows, and pending prompts are dealt evenly
// over the next plans: a stage waits for one long step of another where plans differ, and at the
// start the last stage waits for the first plan to come through.
int64_t Scheduler::prefill_budget(const StepPlan& plan) const {
  const int64_t budget = options_.max_num_batched_tokens - plan.num_rows;
  if (options_.num_lanes == 1) return budget;
  int64_t pending = 0;
  for (const auto& sequence : running_)
    pending += std::max(0, sequence->prefill_target - sequence->num_computed);
  for (const auto& sequence : waiting_) pending += sequence->prefill_target;
  const int64_t share = options_.max_num_batched_tokens / options_.num_lanes - plan.num_rows;
  const int64_t even = (pending + options_.num_lanes - 1) / options_.num_lanes;
  constexpr int64_t kSmallestShare = 64;
  return std::min(budget, std::max(kSmallestShare, std::min(share, even)));
}

void Scheduler::plan_prefills(StepPlan& plan) {
  const auto lane = static_cast<int32_t>(plan.number % options_.num_lanes);
  int64_t budget = prefill_budget(plan);
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    const SequencePtr sequence = running_[i];
    if (sequence->lane != lane || sequence->prefilled()) continue;
    const auto rows = static_cast<int32_t>(
        std::min<int64_t>(budget, sequence->prefill_target - sequence->num_computed));
    if (!make_room(plan, sequence, sequence->num_computed + rows)) continue;
    add_entry(plan, sequence, rows);
    budget -= rows;
  }
}

bool Scheduler::lane_has_room(int32_t lane) const {
  const int64_t all = std::min<int64_t>(options_.max_num_seqs, num_running() + num_waiting());
  return lane_counts_[static_cast<size_t>(lane)] <
         (all + options_.num_lanes - 1) / options_.num_lanes;
}

int64_t Scheduler::expected_blocks(const Sequence& sequence, size_t group) const {
  return blocks_.peak_blocks(
      group, int64_t{sequence.num_prompt()} + admission_.expected_completion(sequence));
}

std::vector<int64_t> Scheduler::spare_blocks() const {
  std::vector<int64_t> spare;
  for (size_t group = 0; group < blocks_.num_groups(); ++group) {
    int64_t free = blocks_.num_free(group);
    for (const auto& sequence : running_) {
      free -= std::max<int64_t>(
          0, expected_blocks(*sequence, group) - blocks_.held_blocks(*sequence, group));
    }
    // A hundredth stays free for guesses that were too low, unless nothing runs.
    spare.push_back(running_.empty() ? free : free - blocks_.num_total(group) / 100);
  }
  return spare;
}

int64_t Scheduler::known_blocks(const Sequence& sequence, size_t group) const {
  const int64_t known = sequence.num_prompt() + static_cast<int64_t>(sequence.output.size());
  return blocks_.peak_blocks(group, known);
}

std::vector<int64_t> Scheduler::room_blocks() const {
  std::vector<int64_t> room;
  for (size_t group = 0; group < blocks_.num_groups(); ++group) {
    int64_t free = blocks_.num_free(group) - blocks_.num_total(group) / 100;
    for (const auto& sequence : running_) {
      if (sequence->prefilled()) continue;
      free -= std::max<int64_t>(
          0, known_blocks(*sequence, group) - blocks_.held_blocks(*sequence, group));
    }
    room.push_back(free);
  }
  return room;
}

// Every running sequence is taken to draw to the moment when the cache is full: those that end
// before make it later.
bool Scheduler::admit_without_reserve(const Sequence& sequence, const BlockManager::Prefix& prefix,
                                      const std::vector<int64_t>& spare,
                                      const std::vector<int64_t>& room) const {
  const int64_t running = num_running() + 1;
  int64_t tokens = INT64_MAX;
  for (size_t group = 0; group < room.size(); ++group) {
    if (spare[group] >= 0) continue;
    if (room[group] < 0 || options_.windows[group] > 0) return false;  // windows fill at once
    tokens = std::min(tokens, room[group] * options_.block_size / running);
  }
  const int64_t known = sequence.num_prompt() + static_cast<int64_t>(sequence.output.size());
  const int64_t again = known - int64_t{prefix.num_blocks} * options_.block_size;
  return admission_.pays_without_reserve(running, tokens, again);
}

// What of the sequence's known tokens is computed already; its last one has to be computed for the
// draw, and so has every prompt row that is looked at.
BlockManager::Prefix Scheduler::find_prefix(Sequence& sequence) const {
  const SamplingParams& sampling = sequence.request.sampling;
  int32_t limit = sequence.num_prompt() + static_cast<int32_t>(sequence.output.size()) - 1;
  if (sampling.num_prompt_logprobs >= 0) limit = std::min(limit, sampling.prompt_logprobs_from - 1);
  if (!options_.prefix_caching) limit = 0;
  const auto known = static_cast<size_t>(sequence.num_prompt()) + sequence.output.size();
  if (options_.prefix_caching &&
      sequence.hashes.size() != known / static_cast<size_t>(options_.block_size)) {
    std::vector<int32_t> tokens = sequence.request.prompt_token_ids;
    tokens.insert(tokens.end(), sequence.output.begin(), sequence.output.end());
    sequence.hashes = hash_blocks(tokens, options_.block_size);
  }
  return blocks_.find_prefix(sequence.hashes, limit / options_.block_size);
}

void Scheduler::start(const SequencePtr& sequence, int32_t lane,
                      const BlockManager::Prefix& prefix) {
  sequence->state = SequenceState::kRunning;
  sequence->prefill_target = sequence->num_prompt() + static_cast<int32_t>(sequence->output.size());
  blocks_.adopt(*sequence, sequence->hashes, prefix.num_blocks);
  sequence->num_computed = prefix.num_blocks * options_.block_size;
  num_cached_tokens_ += sequence->num_computed;
  if (sequence->num_sampled == 0) sequence->num_cached = sequence->num_computed;
  sequence->lane = lane;
  sequence->slot = free_slots_.back();
  free_slots_.pop_back();
  ++lane_counts_[static_cast<size_t>(lane)];
  running_.push_back(sequence);
}

void Scheduler::admit(StepPlan& plan) {
  if (drain_) return;
  const auto lane = static_cast<int32_t>(plan.number % options_.num_lanes);
  int64_t budget = prefill_budget(plan);
  std::vector<int64_t> spare = waiting_.empty() ? std::vector<int64_t>() : spare_blocks();
  std::vector<int64_t> room = waiting_.empty() ? std::vector<int64_t>() : room_blocks();
  while (!waiting_.empty() && budget > 0 && !free_slots_.empty() && lane_has_room(lane)) {
    const SequencePtr sequence = waiting_.front();
    if (sequence->in_flight > 0)
      return;  // preempted: its last tokens are not known to every rank yet
    // Alone, a sequence may try with less than its reserve; make_room ends it if its KV can never
    // fit.
    const BlockManager::Prefix prefix = find_prefix(*sequence);
    bool fits = true;
    for (size_t group = 0; group < spare.size(); ++group) {
      spare[group] -= expected_blocks(*sequence, group) - prefix.num_in_use[group];
      room[group] -= known_blocks(*sequence, group) - prefix.num_in_use[group];
      fits = fits && spare[group] >= 0;
    }
    if (!fits && !running_.empty() && !admit_without_reserve(*sequence, prefix, spare, room)) {
      return;
    }
    sequence->without_reserve = !fits;
    waiting_.pop_front();
    start(sequence, lane, prefix);
    const auto rows = static_cast<int32_t>(
        std::min<int64_t>(budget, sequence->prefill_target - sequence->num_computed));
    if (!make_room(plan, sequence, sequence->num_computed + rows)) return;
    add_entry(plan, sequence, rows);
    budget -= rows;
  }
}

bool Scheduler::make_room(StepPlan& plan, const SequencePtr& sequence, int32_t num_positions) {
  while (!blocks_.extend(*sequence, num_positions)) {
    if (running_.size() == 1) {
      end(sequence, EndReason::kKvExhausted, -1);
      return false;
    }
    const bool itself = running_.back() == sequence;
    preempt_youngest(plan);
    if (itself) return false;
  }
  return true;
}

void Scheduler::add_entry(StepPlan& plan, const SequencePtr& sequence, int32_t num_rows) {
  PlanEntry entry;
  entry.sequence = sequence;
  entry.num_rows = num_rows;
  entry.first_position = sequence->num_computed;
  entry.slot = sequence->slot;
  entry.decode = sequence->prefilled();
  entry.completion_position = sequence->num_sampled;
  sequence->num_computed += num_rows;
  if (!entry.decode && options_.prefix_caching) {
    blocks_.publish(*sequence, entry.first_position / options_.block_size,
                    sequence->num_computed / options_.block_size);
  }
  entry.samples = sequence->prefilled();
  if (entry.samples) {
    ++sequence->num_sampled;
    ++sequence->in_flight;
    ++in_flight_;
  }
  plan.num_rows += num_rows;
  plan.entries.push_back(std::move(entry));
}

void Scheduler::remove_entry(StepPlan& plan, const SequencePtr& sequence) {
  const auto entry = std::find_if(plan.entries.begin(), plan.entries.end(),
                                  [&](const PlanEntry& e) { return e.sequence == sequence; });
  if (entry == plan.entries.end()) return;
  if (!entry->decode && options_.prefix_caching) {
    blocks_.retract(*sequence, entry->first_position / options_.block_size,
                    sequence->num_computed / options_.block_size);
  }
  sequence->num_computed -= entry->num_rows;
  plan.num_rows -= entry->num_rows;
  if (entry->samples) {
    --sequence->num_sampled;
    --sequence->in_flight;
    --in_flight_;
  }
  plan.entries.erase(entry);
}

void Scheduler::preempt_youngest(StepPlan& plan) {
  const SequencePtr sequence = running_.back();
  // The guess of lengths is to blame only where everybody had a reserve.
  const bool planned = std::any_of(running_.begin(), running_.end(),
                                   [](const SequencePtr& s) { return s->without_reserve; });
  remove_entry(plan, sequence);
  running_.pop_back();
  leave_running(*sequence);
  sequence->state = SequenceState::kPreempted;
  waiting_.push_front(sequence);
  ++num_preemptions_;
  if (!planned) admission_.on_preempted();
  if (drain_) end(sequence, EndReason::kDropped, -1);  // it would not be admitted again
}

void Scheduler::seal(StepPlan& plan) {
  std::vector<int32_t> drawn_with_logits;
  mix(static_cast<uint64_t>(plan.number));
  for (size_t i = 0; i < plan.entries.size(); ++i) {
    PlanEntry& entry = plan.entries[i];
    const Sequence& sequence = *entry.sequence;
    entry.blocks = sequence.blocks;
    plan.num_decodes += entry.decode ? 1 : 0;
    mix(static_cast<uint64_t>(sequence.id));
    mix(static_cast<uint64_t>(entry.num_rows));
    mix(static_cast<uint64_t>(entry.slot));
    if (!entry.samples) continue;
    const SamplingParams& sampling = sequence.request.sampling;
    const bool plain = sampling.greedy() && !sampling.changes_logits() &&
                       entry.completion_position >= sampling.min_tokens;
    (plain ? plan.logit_entries : drawn_with_logits).push_back(static_cast<int32_t>(i));
  }
  plan.num_greedy = static_cast<int32_t>(plan.logit_entries.size());
  plan.logit_entries.insert(plan.logit_entries.end(), drawn_with_logits.begin(),
                            drawn_with_logits.end());
  list_logprob_rows(plan);
  plan.hash = hash_;
}

void Scheduler::list_logprob_rows(StepPlan& plan) {
  std::vector<int32_t> first_row(plan.entries.size());
  int32_t rows = 0;
  for (size_t i = 0; i < plan.entries.size(); ++i) {
    first_row[i] = rows;
    rows += plan.entries[i].num_rows;
  }
  const auto add = [&](const LogprobRow& row, int32_t num_top) {
    plan.logprob_rows.push_back(row);
    plan.num_top_logprobs = std::max(plan.num_top_logprobs, num_top);
  };
  for (size_t i = 0; i < plan.logit_entries.size(); ++i) {
    const int32_t e = plan.logit_entries[i];
    const PlanEntry& entry = plan.entries[static_cast<size_t>(e)];
    const int32_t num_top = entry.sequence->request.sampling.num_logprobs;
    if (num_top < 0) continue;
    add({.row = first_row[static_cast<size_t>(e)] + entry.num_rows - 1,
         .entry = e,
         .logit_index = static_cast<int32_t>(i)},
        num_top);
  }
  for (size_t e = 0; e < plan.entries.size(); ++e) {
    const PlanEntry& entry = plan.entries[e];
    const Sequence& sequence = *entry.sequence;
    const SamplingParams& sampling = sequence.request.sampling;
    if (entry.decode || sampling.num_prompt_logprobs < 0) continue;
    const int32_t begin = std::max(entry.first_position, sampling.prompt_logprobs_from - 1);
    const int32_t end = std::min(entry.context_len(), sequence.num_prompt() - 1);
    for (int32_t position = begin; position < end; ++position) {
      add({.row = first_row[e] + position - entry.first_position,
           .entry = static_cast<int32_t>(e),
           .position = position + 1},
          sampling.num_prompt_logprobs);
    }
  }
}

}  // namespace mpinfer::engine
