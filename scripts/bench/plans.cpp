// bench_plans ROWS BLOCKS BREAK_EVEN LANES BUDGET: the plans that the scheduler makes for rows of
// known lengths, without a device. ROWS is a file of lines "prompt output"; blocks are of 32
// tokens. A line a plan: decode rows, prefill rows, tokens that the decode rows read, pairs of a
// prefill row and a token that it reads, rows that draw. scripts/bench/schedule prices them.
#include <fmt/core.h>

#include <cstdlib>
#include <fstream>
#include <vector>

#include "scripts/bench/plan_all.h"

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
  SchedulerOptions options{.num_lanes = std::atoi(argv[4]),
                           .block_size = 32,
                           .num_blocks = {std::atoi(argv[2])},
                           .windows = {0},
                           .max_num_seqs = 4096,
                           .max_num_batched_tokens = std::atoi(argv[5]),
                           .eos_token_ids = {},
                           .prefix_caching = false};
  options.break_even_seqs = std::atoi(argv[3]);
  plan_all(options, requests_of(argv[1]), 512, print);
  return 0;
}
