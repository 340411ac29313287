#include "lib/engine/engine.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <set>
#include <thread>

#include "lib/core/error.h"
#include "lib/engine/control.h"
#include "lib/engine/lockstep.h"
#include "lib/engine/runner.h"
#include "lib/engine/scheduler.h"
#include "lib/engine/wait.h"

namespace mpinfer::engine {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<int32_t> windows_of(const model::ModelConfig& config) {
  std::vector<int32_t> windows;
  for (const auto& group : config.cache_groups) windows.push_back(group.window);
  return windows;
}

// The leader's ear: watches text for stop strings, hands completions over, collects verdicts for
// the next record.
class Delivery : public SchedulerObserver {
 public:
  Delivery(CompletionSink& sink, StopStringMatcher* matcher) : sink_(sink), matcher_(matcher) {}

  void committed(const Sequence& sequence, int32_t token_id) override {
    ++num_tokens_;
    begun(sequence, token_id);
  }

  void begun(const Sequence& sequence, int32_t token_id) override {
    if (matcher_ == nullptr || sequence.request.sampling.stop.empty() ||
        handed_over_.contains(sequence.id))
      return;
    auto matched =
        matcher_->push(sequence.request, token_id, static_cast<int32_t>(sequence.output.size()));
    if (!matched.has_value()) return;
    // Tokens drawn before every rank hears the verdict are surplus: the completion ends here.
    handed_over_.insert(sequence.id);
    verdicts_.push_back({sequence.id});
    hand_over(sequence, FinishReason::kStop, std::move(*matched), std::nullopt);
  }

  // The log-probabilities of a plan that is about to be committed.
  void take_logprobs(const StepPlan& plan, std::span<const backend::LogprobEntry> entries,
                     std::span<const int32_t> ids) {
    const auto width = static_cast<size_t>(1 + plan.num_top_logprobs);
    for (size_t i = 0; i < plan.logprob_rows.size(); ++i) {
      const LogprobRow& row = plan.logprob_rows[i];
      const Sequence& sequence = *plan.entries[static_cast<size_t>(row.entry)].sequence;
      if (sequence.state == SequenceState::kFinished || handed_over_.contains(sequence.id))
        continue;
      const SamplingParams& sampling = sequence.request.sampling;
      Logprobs& taken = logprobs_[sequence.id];
      if (row.logit_index >= 0) {
        taken.drawn.push_back(logprob_of(entries.subspan(i * width, width),
                                         ids[static_cast<size_t>(row.logit_index)],
                                         sampling.num_logprobs));
        continue;
      }
      taken.prompt.resize(
          static_cast<size_t>(sequence.num_prompt() - sampling.prompt_logprobs_from));
      taken.prompt[static_cast<size_t>(row.position - sampling.prompt_logprobs_from)] =
          logprob_of(entries.subspan(i * width, width), sequence.known_token(row.position),
                     sampling.num_prompt_logprobs);
    }
  }

  void ended(const Sequence& sequence, EndReason reason, int32_t stop_token_id) override {
    if (handed_over_.erase(sequence.id) != 0) return;
    switch (reason) {
      case EndReason::kStopToken:
        return hand_over(sequence, FinishReason::kStop, stop_token_id, std::nullopt);
      case EndReason::kLength:
        return hand_over(sequence, FinishReason::kLength, std::monostate(), std::nullopt);
      case EndReason::kKvExhausted:
        return hand_over(
            sequence, FinishReason::kLength, std::monostate(),
            RowError{"kv_oom",
                     fmt::format("the KV cache cannot hold {} tokens of this row alone; raise "
                                 "--kv-cache-memory-bytes or use more ranks per replica",
                                 sequence.num_prompt() + sequence.num_sampled + 1),
                     ""});
      case EndReason::kNan:
        return hand_over(sequence, FinishReason::kLength, std::monostate(),
                         RowError{"nan_logits",
                                  fmt::format("the logits held a NaN at completion token {}",
                                              sequence.output.size()),
                                  ""});
      case EndReason::kDropped:
        sink_.unfinished(sequence.request.index, sequence.output);
        if (matcher_ != nullptr && !sequence.request.sampling.stop.empty())
          matcher_->forget(sequence.request);
        return;
      case EndReason::kStopString:
        logprobs_.erase(sequence.id);
        return;
    }
  }

  // Every sequence that has tokens and was not handed over.
  void report_unfinished(const Scheduler& scheduler) {
    if (!sink_.wants_unfinished()) return;
    scheduler.for_each_begun([this](const Sequence& sequence) {
      if (!handed_over_.contains(sequence.id)) {
        sink_.unfinished(sequence.request.index, sequence.output);
      }
    });
  }

  std::vector<StopVerdict> take_verdicts() { return std::exchange(verdicts_, {}); }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_finished() const { return num_finished_; }

 private:
  void hand_over(const Sequence& sequence, FinishReason reason, StopReason stop,
                 std::optional<RowError> error) {
    Completion completion;
    const SamplingParams& sampling = sequence.request.sampling;
    completion.index = sequence.request.index;
    completion.sample = sequence.request.sample;
    completion.token_ids = sequence.output;
    completion.num_cached_tokens = sequence.num_cached;
    if (auto taken = logprobs_.extract(sequence.id); !taken.empty()) {
      completion.logprobs = std::move(taken.mapped().drawn);
      completion.prompt_logprobs = std::move(taken.mapped().prompt);
    }
    if (sampling.prompt_only) completion.token_ids.clear();
    completion.logprobs.resize(std::min(completion.logprobs.size(), completion.token_ids.size()));
    completion.finish_reason = reason;
    completion.stop_reason = std::move(stop);
    completion.error = std::move(error);
    if (matcher_ != nullptr && !sampling.stop.empty()) matcher_->forget(sequence.request);
    ++num_finished_;
    sink_.finished(std::move(completion));
  }

  struct Logprobs {
    std::vector<TokenLogprob> drawn;
    std::vector<TokenLogprob> prompt;
  };
  static TokenLogprob logprob_of(std::span<const backend::LogprobEntry> entries, int32_t token_id,
                                 int32_t num_top) {
    TokenLogprob out{.token_id = token_id, .logprob = entries[0].logprob, .rank = entries[0].id};
    for (const auto& entry : entries.subspan(1, static_cast<size_t>(num_top)))
      out.top.emplace_back(entry.id, entry.logprob);
    return out;
  }

  CompletionSink& sink_;
  StopStringMatcher* matcher_;
  std::map<int64_t, Logprobs> logprobs_;  // by sequence
  std::set<int64_t> handed_over_;         // sequences whose verdict is not in force yet
  std::vector<StopVerdict> verdicts_;
  int64_t num_tokens_ = 0;
  int64_t num_finished_ = 0;
};

}  // namespace

struct Engine::Impl {
  Impl(const EngineOptions& engine_options, const EngineParts& engine_parts)
      : options(engine_options),
        parts(engine_parts),
        lanes(std::max(1, parts.pp_ring.size())),
        wait(parts.watch),
        control(parts.replica),
        runner(options, parts, wait) {
    if (parts.members != nullptr && parts.members->size() > 1) {
      lockstep = std::make_unique<LockstepChannel>(*parts.members);
    }
  }

  void post(int64_t number, uint64_t last_hash);
  void check_hash(const ControlRecord& record) const;
  // False: nothing was launched, and the group has left.
  bool make_and_launch(int64_t number);
  bool keep_step(const StepPlan& plan);
  const StepPlan& plan_at(int64_t number) const;

  EngineOptions options;
  EngineParts parts;
  int32_t lanes;
  WaitLoop wait;
  ControlChannel control;
  Runner runner;
  std::unique_ptr<LockstepChannel> lockstep;  // null: this replica waits for no other
  std::vector<int64_t> group_rows;            // of the plan being launched, by member
  bool group_draining = false;
  std::unique_ptr<Delivery> delivery;
  std::unique_ptr<Scheduler> scheduler;
  RequestSource* source = nullptr;
  bool source_empty = false;
  bool drained = false;
  bool cancelled = false;
  int64_t posted_requests = 0;  // in records not yet in force
  std::deque<int64_t> posted_counts;
  std::deque<StepPlan> plans;  // the last lanes + 1 and the newest, by number
  EngineStats stats;
};

Engine::Engine(const EngineOptions& options, const EngineParts& parts)
    : impl_(std::make_unique<Impl>(options, parts)) {}
Engine::~Engine() = default;

int64_t Engine::buffer_bytes(const EngineOptions& options, const model::ModelConfig& config,
                             int num_stages, DType activation) {
  return Runner::buffer_bytes(options, config, num_stages, activation);
}

Progress Engine::progress() const {
  Progress progress;
  const Impl& impl = *impl_;
  if (impl.scheduler == nullptr) return progress;
  progress.num_waiting = impl.scheduler->num_waiting();
  progress.num_running = impl.scheduler->num_running();
  const BlockManager& blocks = impl.scheduler->blocks();
  for (size_t group = 0; group < blocks.num_groups(); ++group) {
    progress.kv_blocks_total += blocks.num_total(group);
    progress.kv_blocks_used += blocks.num_total(group) - blocks.num_free(group);
  }
  progress.prompt_tokens = impl.stats.prompt_tokens;
  progress.completion_tokens = impl.delivery != nullptr ? impl.delivery->num_tokens() : 0;
  return progress;
}

// The leader's record of this plan: requests for the queue, verdicts, and the hash the others
// compare.
void Engine::Impl::post(int64_t number, uint64_t last_hash) {
  if (!control.leader()) {
    control.expect();
    return;
  }
  ControlRecord record;
  record.plan = number;
  record.plan_hash = last_hash;
  record.verdicts = delivery->take_verdicts();
  if (!drained && (source->drain_requested() || group_draining)) {
    record.drain = drained = source_empty = true;
  }
  if (drained && !cancelled && source->cancel_requested()) record.cancel = cancelled = true;
  if (!source_empty) {
    // Enough for a whole new batch behind the running one.
    const int64_t wanted = options.max_num_seqs + 64 - scheduler->num_waiting() - posted_requests;
    RequestSource::Pull pull = source->pull(static_cast<int32_t>(std::max<int64_t>(0, wanted)));
    record.requests = std::move(pull.requests);
    source_empty = !pull.more_to_come;
  }
  record.no_more = source_empty;
  posted_counts.push_back(static_cast<int64_t>(record.requests.size()));
  posted_requests += posted_counts.back();
  control.post(record);
}

const StepPlan& Engine::Impl::plan_at(int64_t number) const {
  MPINFER_CHECK(!plans.empty() && number >= plans.front().number && number <= plans.back().number,
                "plan {} is not kept", number);
  return plans[static_cast<size_t>(number - plans.front().number)];
}

void Engine::Impl::check_hash(const ControlRecord& record) const {
  if (record.plan == 0) return;
  const StepPlan& plan = plan_at(record.plan - 1);
  if (plan.hash == record.plan_hash) return;
  throw Error(
      ExitCode::kPeerFailure,
      fmt::format(
          "plan {} differs between the ranks of a replica: rank {} of {} has {:016x}, its leader "
          "{:016x}; the replica cannot go on",
          plan.number, parts.replica.rank(), parts.replica.size(), plan.hash, record.plan_hash));
}

// What the members bring to this plan; false when none has work left.
bool Engine::Impl::keep_step(const StepPlan& plan) {
  lockstep->post({.plan = plan.number,
                  .rows = plan.num_rows,
                  .draining = static_cast<uint8_t>(drained),
                  .no_more_work = static_cast<uint8_t>(scheduler->finished())});
  wait.until("lockstep record", plan.number, [this] { return lockstep->ready(); });
  bool work = false;
  group_rows.clear();
  for (const LockstepRecord& record : lockstep->take()) {
    group_rows.push_back(record.rows);
    work = work || record.no_more_work == 0;
    group_draining = group_draining || record.draining != 0;
  }
  return work;
}

bool Engine::Impl::make_and_launch(int64_t number) {
  plans.push_back(scheduler->make_plan(number));
  // Kept: what the next commit takes, and the one before it for the hash of its record.
  while (plans.front().number < number - lanes - 1) plans.pop_front();
  const StepPlan& plan = plans.back();
  if (lockstep != nullptr && !keep_step(plan)) return false;
  const StepPlan* lane_before = number >= lanes ? &plan_at(number - lanes) : nullptr;
  for (const PlanEntry& entry : plan.entries) {
    if (!entry.decode) stats.prompt_tokens += entry.num_rows;
  }
  const auto start = Clock::now();
  const double waited = wait.waited_seconds();
  runner.launch(plan, lane_before, group_rows);
  stats.compute_seconds += seconds_since(start) - (wait.waited_seconds() - waited);
  if (!plan.empty()) ++stats.steps;
  return true;
}

EngineStats Engine::run(RequestSource* source, CompletionSink* sink, StopStringMatcher* matcher) {
  Impl& impl = *impl_;
  const auto start = Clock::now();
  impl.source = source;
  if (impl.control.leader()) {
    MPINFER_CHECK(source != nullptr && sink != nullptr, "the leader needs a source and a sink");
    impl.delivery = std::make_unique<Delivery>(*sink, matcher);
  }
  SchedulerOptions options;
  options.num_lanes = impl.lanes;
  options.block_size = impl.options.block_size;
  options.num_blocks = impl.options.num_blocks;
  options.windows = windows_of(impl.parts.config);
  options.max_num_seqs = impl.options.max_num_seqs;
  options.max_num_batched_tokens = impl.options.max_num_batched_tokens;
  options.prefix_caching = impl.options.prefix_caching;
  options.break_even_seqs = impl.options.break_even_seqs;
  options.eos_token_ids = impl.parts.config.eos_token_ids;
  impl.scheduler = std::make_unique<Scheduler>(std::move(options), impl.delivery.get());
  impl.wait.also_poll([&impl] { impl.control.ready(); });

  for (int64_t number = 0;; ++number) {
    impl.parts.watch.check();
    impl.post(number, impl.plans.empty() ? 0 : impl.plans.back().hash);
    const int64_t horizon = number - impl.lanes - 1;
    if (horizon >= 0) {
      impl.wait.until("control record", horizon, [&] { return impl.control.ready(); });
      ControlRecord record = impl.control.take();
      impl.check_hash(record);
      if (impl.control.leader()) {
        impl.posted_requests -= impl.posted_counts.front();
        impl.posted_counts.pop_front();
      }
      const StepPlan& committed = impl.plan_at(horizon);
      impl.scheduler->apply(std::move(record));
      const auto ids = impl.runner.results(committed);
      if (impl.delivery != nullptr)
        impl.delivery->take_logprobs(committed, impl.runner.logprobs(committed), ids);
      impl.scheduler->commit(committed, ids);
      if (impl.stats.first_token_seconds == 0.0 && !committed.logit_entries.empty()) {
        impl.stats.first_token_seconds = seconds_since(start);
        impl.parts.watch.first_step_done();
      }
      if (impl.delivery != nullptr) impl.delivery->report_unfinished(*impl.scheduler);
      if (impl.lockstep == nullptr && impl.scheduler->finished()) break;
    }
    if (!impl.make_and_launch(number)) break;
    const bool others_work = std::any_of(impl.group_rows.begin(), impl.group_rows.end(),
                                         [](int64_t rows) { return rows > 0; });
    if (!impl.scheduler->has_work() && !others_work) {
      constexpr auto kIdle = std::chrono::microseconds(200);
      std::this_thread::sleep_for(kIdle);
      impl.stats.idle_seconds += std::chrono::duration<double>(kIdle).count();
    }
  }
  impl.runner.flush();
  impl.wait.until("last control records", -1, [&] { return impl.control.quiet(); });
  impl.parts.backend.synchronize();
  impl.stats.wait_seconds = impl.wait.waited_seconds();
  impl.stats.cached_tokens = impl.scheduler->num_cached_tokens();
  impl.stats.preemptions = impl.scheduler->num_preemptions();
  impl.stats.surplus_rows = impl.scheduler->num_surplus_rows();
  if (impl.delivery != nullptr) {
    impl.stats.completion_tokens = impl.delivery->num_tokens();
    impl.stats.finished = impl.delivery->num_finished();
  }
  return impl.stats;
}

}  // namespace mpinfer::engine
