// bench_plans ROWS BLOCKS BREAK_EVEN LANES BUDGET: the plans that the scheduler makes for rows of
// known lengths, without a device. ROWS is a file of lines "prompt output"; blocks are of 32
// tokens. A line a plan: decode rows, prefill rows, tokens that the decode rows read, pairs of a
// prefill row and a token that it reads, rows that draw. scripts/bench/schedule prices them.
#include <fmt/core.h>

#include <cstdlib>
#include <deque>
#include <fstream>
#include <vector>

#include "lib/engine/scheduler.h"

namespace {

using namespace mpinfer;
using namespace mpinfer::engine;

std::vector<Request> requests_of(const char* path) {
  std::ifstream file(path);
  std::vector<Request> out;
  int32_t prompt = 0;
  int32_t output = 0;
  while (file >> prompt >> output) {
    Request& request = out.emplace_back();
    request.index = std::ssize(out) - 1;
    request.prompt_token_ids.assign(static_cast<size_t>(prompt), 1);
    request.sampling.max_tokens = output;
    request.sampling.temperature = 0.0F;
    request.sampling.ignore_eos = true;
  }
  return out;
}

void print(const StepPlan& plan) {
  int64_t decodes = 0;
  int64_t prefills = 0;
  int64_t context = 0;
  int64_t pairs = 0;
  for (const PlanEntry& entry : plan.entries) {
    const int64_t tokens = entry.sequence->num_computed;  // with the rows of this plan
    if (entry.decode) {
      ++decodes;
      context += tokens;
    } else {
      const int64_t rows = entry.num_rows;
      prefills += rows;
      pairs += rows * (tokens - rows) + rows * (rows + 1) / 2;
    }
  }
  fmt::print("{} {} {} {} {}\n", decodes, prefills, context, pairs, plan.logit_entries.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const std::vector<Request> requests = requests_of(argv[1]);
  SchedulerOptions options{.num_lanes = std::atoi(argv[4]),
                           .block_size = 32,
                           .num_blocks = {std::atoi(argv[2])},
                           .windows = {0},
                           .max_num_seqs = 4096,
                           .max_num_batched_tokens = std::atoi(argv[5]),
                           .eos_token_ids = {},
                           .prefix_caching = false};
  options.break_even_seqs = std::atoi(argv[3]);
  Scheduler scheduler(options, nullptr);
  std::deque<StepPlan> plans;
  size_t next = 0;
  for (int64_t number = 0;; ++number) {
    ControlRecord record;
    for (; next < requests.size() && record.requests.size() < 512; ++next)
      record.requests.push_back(requests[next]);
    record.no_more = next == requests.size();
    scheduler.apply(std::move(record));
    if (number > options.num_lanes) {
      const std::vector<int32_t> ids(plans.front().logit_entries.size(), 5);
      scheduler.commit(plans.front(), ids);
      plans.pop_front();
      if (scheduler.finished()) break;
    }
    plans.push_back(scheduler.make_plan(number));
    print(plans.back());
  }
  return 0;
}
