// Model checking of the scheduler: random request streams on a simulated device that knows who
// wrote each KV position. A row may read only positions computed from its own tokens; no block
// leaks; budgets hold; everything finishes; and what a request gets depends on nothing but itself.
// Tokens are a function of (row, position), with stop tokens at random places.
#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "lib/engine/scheduler.h"
#include "tests/support/catch.h"

namespace mpinfer::engine {
namespace {

constexpr int32_t kEos = 7;

int32_t token_of(int64_t index, int32_t position) {
  uint64_t x = static_cast<uint64_t>(index) * uint64_t{0x9E3779B97F4A7C15} +
               static_cast<uint64_t>(position) * uint64_t{0xBF58476D1CE4E5B9};
  x ^= x >> 31;
  x *= uint64_t{0x94D049BB133111EB};
  x ^= x >> 29;
  return x % 23 == 0 ? kEos : 100 + static_cast<int32_t>(x % 1000);
}

std::vector<int32_t> expected_output(const Request& request) {
  std::vector<int32_t> out;
  for (int32_t position = 0; position < request.sampling.max_tokens; ++position) {
    out.push_back(token_of(request.index, position));
    if (out.back() == kEos && !request.sampling.ignore_eos &&
        position + 1 > request.sampling.min_tokens)
      break;
  }
  return out;
}

// Of every position's token and all before it: what its keys and values are a function of.
std::vector<uint64_t> contexts_of(const PlanEntry& entry) {
  const Request& request = entry.sequence->request;
  std::vector<uint64_t> contexts;
  uint64_t hash = 0;
  for (int32_t position = 0; position < entry.context_len(); ++position) {
    const int32_t token = position < entry.sequence->num_prompt()
                              ? request.prompt_token_ids[static_cast<size_t>(position)]
                              : token_of(request.index, position - entry.sequence->num_prompt());
    hash = (hash ^ static_cast<uint64_t>(token)) * uint64_t{0x9E3779B97F4A7C15} + 1;
    contexts.push_back(hash);
  }
  return contexts;
}

// What each position of the KV pool was computed from; what attention of a row must find.
class SimulatedKv {
 public:
  explicit SimulatedKv(const SchedulerOptions& options) : options_(options) {
    for (const int32_t blocks : options.num_blocks) {
      owner_.emplace_back(static_cast<size_t>(blocks) * static_cast<size_t>(options.block_size),
                          uint64_t{0});
    }
  }
  void run(const StepPlan& plan) {
    for (const PlanEntry& entry : plan.entries) {
      const std::vector<uint64_t> contexts = contexts_of(entry);
      if (!entry.decode) prefill_rows += entry.num_rows;
      for (int32_t position = entry.first_position; position < entry.context_len(); ++position) {
        for (size_t group = 0; group < owner_.size(); ++group)
          at(entry, group, position) = contexts[static_cast<size_t>(position)];
      }
    }
    for (const PlanEntry& entry : plan.entries) {
      const std::vector<uint64_t> contexts = contexts_of(entry);
      for (int32_t row = entry.first_position; row < entry.context_len(); ++row) {
        for (size_t group = 0; group < owner_.size(); ++group) {
          const int32_t window = options_.windows[group];
          const int32_t first = window == 0 ? 0 : std::max(0, row - window + 1);
          for (int32_t position = first; position <= row; ++position) {
            bad_reads += at(entry, group, position) != contexts[static_cast<size_t>(position)];
          }
        }
      }
    }
  }
  int64_t bad_reads = 0;
  int64_t prefill_rows = 0;

 private:
  uint64_t& at(const PlanEntry& entry, size_t group, int32_t position) {
    const int32_t block =
        entry.blocks[group].at(static_cast<size_t>(position / options_.block_size));
    if (block < 0) {
      ++bad_reads;
      return nowhere_;
    }
    return owner_[group].at(
        static_cast<size_t>(block * options_.block_size + position % options_.block_size));
  }
  SchedulerOptions options_;
  std::vector<std::vector<uint64_t>> owner_;
  uint64_t nowhere_ = 0;
};

class Collector : public SchedulerObserver {
 public:
  void committed(const Sequence& sequence, int32_t token_id) override {
    outputs[sequence.request.index].push_back(token_id);
  }
  void ended(const Sequence& sequence, EndReason reason, int32_t) override {
    ++times_ended[sequence.request.index];
    reasons[sequence.request.index] = reason;
  }
  std::map<int64_t, std::vector<int32_t>> outputs;
  std::map<int64_t, int> times_ended;
  std::map<int64_t, EndReason> reasons;
};

std::vector<Request> random_requests(std::mt19937& random, int count, int32_t longest) {
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request;
    request.index = i;
    // A few beginnings, which part at a random place.
    const auto length = 1 + random() % static_cast<uint32_t>(longest / 2);
    const auto beginning = static_cast<int32_t>(random() % 4);
    const auto parting = random() % (length + 1);
    for (auto at = length - length; at < length; ++at) {
      request.prompt_token_ids.push_back(at < parting ? beginning
                                                      : static_cast<int32_t>(random() % 3));
    }
    request.sampling.max_tokens =
        1 + static_cast<int32_t>(random() % static_cast<uint32_t>(longest / 2));
    request.sampling.ignore_eos = random() % 3 == 0;
    request.sampling.temperature = random() % 2 == 0 ? 0.0F : 1.0F;
    request.sampling.min_tokens = static_cast<int32_t>(
        random() % 2 == 0 ? 0 : random() % static_cast<uint32_t>(request.sampling.max_tokens + 1));
    requests.push_back(std::move(request));
  }
  return requests;
}

struct Outcome {
  Collector collector;
  int64_t bad_reads = 0;
  int64_t preemptions = 0;
  int64_t cached_tokens = 0;
  int64_t prefill_rows = 0;
  int64_t plans = 0;
  int64_t rows = 0;
  int64_t most_running = 0;
  uint64_t hash = 0;
  bool budget_kept = true;
  bool blocks_returned = true;
  bool finished = false;
};

Outcome run(const SchedulerOptions& options, const std::vector<Request>& requests,
            uint32_t arrival_seed, bool simulate_kv = true) {
  Outcome outcome;
  Scheduler scheduler(options, &outcome.collector);
  SimulatedKv kv(options);
  std::mt19937 random(arrival_seed);
  std::deque<StepPlan> plans;
  size_t next = 0;
  const int64_t horizon = options.num_lanes + 1;
  for (int64_t number = 0; number < 200000; ++number) {
    ControlRecord record;
    for (uint32_t n = random() % 16; n > 0 && next < requests.size(); --n)
      record.requests.push_back(requests[next++]);
    record.no_more = next == requests.size();
    scheduler.apply(std::move(record));
    if (number >= horizon) {
      const StepPlan& plan = plans.front();
      std::vector<int32_t> ids;
      for (const int32_t entry : plan.logit_entries) {
        const PlanEntry& e = plan.entries[static_cast<size_t>(entry)];
        ids.push_back(token_of(e.sequence->request.index, e.completion_position));
      }
      scheduler.commit(plan, ids);
      plans.pop_front();
      if (scheduler.finished()) {
        outcome.finished = true;
        outcome.plans = number;
        break;
      }
    }
    plans.push_back(scheduler.make_plan(number));
    const StepPlan& plan = plans.back();
    outcome.budget_kept = outcome.budget_kept && plan.num_rows <= options.max_num_batched_tokens &&
                          scheduler.num_running() <= options.max_num_seqs;
    outcome.hash = plan.hash;
    outcome.rows += plan.num_rows;
    outcome.most_running = std::max(outcome.most_running, scheduler.num_running());
    if (simulate_kv) kv.run(plan);
  }
  for (size_t group = 0; group < options.num_blocks.size(); ++group) {
    outcome.blocks_returned = outcome.blocks_returned && scheduler.blocks().num_free(group) ==
                                                             scheduler.blocks().num_total(group);
  }
  outcome.bad_reads = kv.bad_reads;
  outcome.preemptions = scheduler.num_preemptions();
  outcome.cached_tokens = scheduler.num_cached_tokens();
  outcome.prefill_rows = kv.prefill_rows;
  return outcome;
}

SchedulerOptions random_options(std::mt19937& random, int32_t longest) {
  SchedulerOptions options;
  options.num_lanes = 1 + static_cast<int32_t>(random() % 4);
  options.block_size = std::array{1, 4, 8, 16}[random() % 4];
  const int32_t fit_one = (longest + options.block_size - 1) / options.block_size + 1;
  options.num_blocks = {fit_one +
                        static_cast<int32_t>(random() % static_cast<uint32_t>(2 * fit_one))};
  options.windows = {0};
  if (random() % 2 == 0) {
    options.windows.push_back(1 + static_cast<int32_t>(random() % 20));
    options.num_blocks.push_back(
        fit_one + static_cast<int32_t>(random() % static_cast<uint32_t>(3 * fit_one)));
  }
  options.max_num_seqs = 1 + static_cast<int32_t>(random() % 24);
  options.max_num_batched_tokens = options.max_num_seqs + static_cast<int32_t>(random() % 64);
  options.eos_token_ids = {kEos};
  options.prefix_caching = random() % 4 != 0;
  if (random() % 2 == 0) options.break_even_seqs = 1 + static_cast<int64_t>(random() % 100);
  return options;
}

}  // namespace

TEST_CASE("random streams: every request gets its own tokens under any schedule", "[scheduler]") {
  constexpr int32_t kLongest = 160;
  int64_t preemptions = 0;
  int64_t cached = 0;
  for (uint32_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const auto requests = random_requests(random, static_cast<int>(random() % 90), kLongest);
    const SchedulerOptions options = random_options(random, kLongest);
    const Outcome outcome = run(options, requests, seed + 1);
    REQUIRE(outcome.finished);
    REQUIRE(outcome.bad_reads == 0);
    REQUIRE(outcome.budget_kept);
    REQUIRE(outcome.blocks_returned);
    REQUIRE(outcome.collector.times_ended.size() == requests.size());
    for (const Request& request : requests) {
      REQUIRE(outcome.collector.times_ended.at(request.index) == 1);
      REQUIRE(outcome.collector.outputs.at(request.index) == expected_output(request));
    }
    preemptions += outcome.preemptions;
    cached += outcome.cached_tokens;
    REQUIRE((options.prefix_caching || outcome.cached_tokens == 0));
  }
  REQUIRE(cached > 1000);     // and sharing
  REQUIRE(preemptions > 20);  // the sweep reaches preemption
}

TEST_CASE("two ranks fed alike make the same plans", "[scheduler]") {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    const auto requests = random_requests(random, 20, 40);
    const SchedulerOptions options = random_options(random, 40);
    REQUIRE(run(options, requests, seed).hash == run(options, requests, seed).hash);
  }
}

TEST_CASE("a row that can never fit ends alone with kv_oom and the others go on", "[scheduler]") {
  SchedulerOptions options;
  options.block_size = 4;
  options.num_blocks = {8};
  options.windows = {0};
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 16;
  options.eos_token_ids = {kEos};
  std::vector<Request> requests(3);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].index = static_cast<int64_t>(i);
    requests[i].prompt_token_ids.assign(i == 1 ? 40 : 4, 1);
    requests[i].sampling.max_tokens = 4;
    requests[i].sampling.ignore_eos = true;
  }
  const Outcome outcome = run(options, requests, 3);
  REQUIRE(outcome.finished);
  REQUIRE(outcome.collector.reasons.at(0) == EndReason::kLength);
  REQUIRE(outcome.collector.reasons.at(1) == EndReason::kKvExhausted);
  REQUIRE(outcome.collector.reasons.at(2) == EndReason::kLength);
  REQUIRE(outcome.blocks_returned);
}

// A step costs the reading of the weights and its rows: reading, in rows' arithmetic.
int64_t cost(const Outcome& outcome, int64_t reading) {
  return outcome.plans * reading + outcome.rows;
}

TEST_CASE("sequences start without their reserve while that is cheaper", "[scheduler]") {
  SchedulerOptions options;
  options.block_size = 16;
  options.num_blocks = {700};
  options.windows = {0};
  options.max_num_seqs = 256;
  options.max_num_batched_tokens = 1024;
  std::mt19937 random(9);
  for (const bool equal : {true, false}) {
    std::vector<Request> requests(300);
    for (size_t i = 0; i < requests.size(); ++i) {
      requests[i].index = static_cast<int64_t>(i);
      requests[i].prompt_token_ids.assign(16, static_cast<int32_t>(i));
      requests[i].sampling.max_tokens = equal ? 144 : 16 + static_cast<int32_t>(random() % 256);
      requests[i].sampling.ignore_eos = true;
    }
    options.break_even_seqs = 0;
    const Outcome reserved = run(options, requests, 5, false);
    REQUIRE(reserved.finished);
    REQUIRE(reserved.preemptions == 0);
    if (equal) REQUIRE(reserved.most_running == 69);  // of 10 blocks each, 7 kept free
    // The share of the cost that is left; where rows are dear nothing is gained or lost.
    for (const auto& [reading, share] :
         {std::pair<int64_t, double>{20, 1.0}, {60, 1.0}, {100, 1.0}, {200, 0.85}, {1000, 0.75}}) {
      options.break_even_seqs = reading;
      const Outcome eager = run(options, requests, 5, false);
      CAPTURE(equal, reading, eager.preemptions, eager.most_running, reserved.most_running);
      REQUIRE(eager.finished);
      REQUIRE(eager.blocks_returned);
      CHECK(eager.most_running <= std::max(reading, reserved.most_running));
      CHECK(static_cast<double>(cost(eager, reading)) <=
            share * static_cast<double>(cost(reserved, reading)));
      for (const Request& request : requests) {
        REQUIRE(eager.collector.outputs.at(request.index) == expected_output(request));
      }
    }
  }
}

TEST_CASE("a shared prefix is computed once, whatever the lanes", "[scheduler]") {
  for (const int32_t lanes : {1, 3}) {
    SchedulerOptions options;
    options.num_lanes = lanes;
    options.block_size = 8;
    options.num_blocks = {600};
    options.windows = {0};
    options.max_num_seqs = 32;
    options.max_num_batched_tokens = 4096;
    std::vector<Request> requests(40);
    for (size_t i = 0; i < requests.size(); ++i) {
      requests[i].index = static_cast<int64_t>(i);
      requests[i].prompt_token_ids.assign(256, static_cast<int32_t>(i / 20));
      for (int32_t own = 0; own < 10; ++own)
        requests[i].prompt_token_ids.push_back(static_cast<int32_t>(100 + i));
      requests[i].sampling.max_tokens = 4;
      requests[i].sampling.ignore_eos = true;
    }
    const Outcome outcome = run(options, requests, 5);
    REQUIRE(outcome.finished);
    REQUIRE(outcome.bad_reads == 0);
    // With several lanes a prompt is dealt over plans, and a lane may start before it is whole.
    if (lanes == 1) REQUIRE(outcome.prefill_rows == 2 * 256 + 40 * 10);
    REQUIRE(outcome.prefill_rows < 8 * 256 + 40 * 10);
    options.prefix_caching = false;
    REQUIRE(run(options, requests, 5).prefill_rows == 40 * 266);
  }
}

TEST_CASE("samples of a row share all full blocks of its prompt but the last token's",
          "[scheduler]") {
  SchedulerOptions options;
  options.block_size = 8;
  options.num_blocks = {100};
  options.windows = {0};
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 64;
  options.eos_token_ids = {kEos};
  std::vector<Request> requests(1);
  requests[0].prompt_token_ids.assign(32, 1);
  requests[0].sampling.max_tokens = 4;
  requests[0].sampling.n = 4;
  requests[0].sampling.ignore_eos = true;
  Outcome outcome = run(options, requests, 5);
  REQUIRE(outcome.finished);
  REQUIRE(outcome.bad_reads == 0);
  REQUIRE(outcome.collector.times_ended.at(0) == 4);
  REQUIRE(outcome.prefill_rows == 32 + 3 * 8);
  // Prompt rows that are looked at are computed for every sample.
  requests[0].sampling.num_prompt_logprobs = 0;
  REQUIRE(run(options, requests, 5).prefill_rows == 4 * 32);
  requests[0].sampling.prompt_logprobs_from = 17;
  REQUIRE(run(options, requests, 5).prefill_rows == 32 + 3 * 16);
}

// So many rows with prompts of so many tokens, which draw 100, and no more to come.
ControlRecord all_at_once(int count, size_t prompt_tokens) {
  ControlRecord record;
  for (int i = 0; i < count; ++i) {
    Request request;
    request.index = i;
    request.prompt_token_ids.assign(prompt_tokens, 1);
    request.sampling.max_tokens = 100;
    request.sampling.ignore_eos = true;
    record.requests.push_back(request);
  }
  record.no_more = true;
  return record;
}

TEST_CASE("lanes share the running sequences evenly", "[scheduler]") {
  SchedulerOptions options;
  options.num_lanes = 4;
  options.num_blocks = {1000};
  options.windows = {0};
  options.max_num_seqs = 64;
  options.max_num_batched_tokens = 1024;
  Scheduler scheduler(options, nullptr);
  scheduler.apply(all_at_once(32, 8));
  std::vector<int64_t> rows;
  for (int64_t number = 0; number < 8; ++number)
    rows.push_back(static_cast<int64_t>(scheduler.make_plan(number).entries.size()));
  for (size_t number = 4; number < 8; ++number) REQUIRE(rows[number] == 8);
}

TEST_CASE("a lane's plans take their share of a step's prompt rows", "[scheduler]") {
  SchedulerOptions options;
  options.num_lanes = 4;
  options.num_blocks = {5000};
  options.windows = {0};
  options.prefix_caching = false;
  options.max_num_seqs = 400;
  options.max_num_batched_tokens = 1024;
  Scheduler scheduler(options, nullptr);
  scheduler.apply(all_at_once(350, 20));
  int64_t prompts = 0;
  for (int64_t number = 0; number < 48; ++number) {
    const StepPlan plan = scheduler.make_plan(number);
    int64_t decodes = 0;
    for (const PlanEntry& entry : plan.entries) decodes += entry.decode ? 1 : 0;
    prompts += plan.num_rows - decodes;
    // At least 64, however many rows decode.
    REQUIRE(plan.num_rows - decodes <= std::max<int64_t>(64, 256 - decodes));
  }
  REQUIRE(prompts == 350 * 20);
}

TEST_CASE("a drain gives up waiting sequences and lets running ones finish", "[scheduler]") {
  SchedulerOptions options;
  options.num_blocks = {100};
  options.windows = {0};
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 64;
  Collector collector;
  Scheduler scheduler(options, &collector);
  ControlRecord record;
  for (int i = 0; i < 5; ++i) {
    Request request;
    request.index = i;
    request.prompt_token_ids.assign(4, 1);
    request.sampling.max_tokens = 3;
    request.sampling.ignore_eos = true;
    record.requests.push_back(request);
  }
  scheduler.apply(std::move(record));
  std::deque<StepPlan> plans;
  plans.push_back(scheduler.make_plan(0));
  ControlRecord drain;
  drain.drain = drain.no_more = true;
  scheduler.apply(std::move(drain));
  for (int64_t number = 1; !scheduler.finished() && number < 20; ++number) {
    if (number >= 2) {
      scheduler.commit(plans.front(),
                       std::vector<int32_t>(plans.front().logit_entries.size(), 200));
      plans.pop_front();
    }
    plans.push_back(scheduler.make_plan(number));
  }
  REQUIRE(scheduler.finished());
  int finished = 0;
  int dropped = 0;
  for (const auto& [index, reason] : collector.reasons) {
    finished += reason == EndReason::kLength;
    dropped += reason == EndReason::kDropped;
  }
  REQUIRE(finished == 2);
  REQUIRE(dropped == 3);
}

}  // namespace mpinfer::engine
