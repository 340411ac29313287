// bench_scheduler [ROWS]: what plans cost the host, in one thread without a device: rows of 1,024
// prompt and 128 output tokens that share nothing, with prefix caching and without, in turn. The
// difference is what hashing, publishing and looking up blocks costs rows that gain nothing by it.
#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <random>

#include "scripts/bench/plan_all.h"

namespace {

using namespace mpinfer;
using namespace mpinfer::engine;

constexpr int32_t kPrompt = 1024;
constexpr int32_t kOutput = 128;
constexpr int kPairs = 7;

double cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double run(const std::vector<Request>& requests, bool prefix_caching) {
  const SchedulerOptions options{.num_lanes = 1,
                                 .block_size = 32,
                                 .num_blocks = {20'000},
                                 .windows = {0},
                                 .max_num_seqs = 512,
                                 .max_num_batched_tokens = 16'384,
                                 .eos_token_ids = {},
                                 .prefix_caching = prefix_caching};
  std::vector<Request> left = requests;  // copied before the clock starts
  const double start = cpu_seconds();
  plan_all(options, std::move(left), 64, [](const StepPlan&) {});
  return cpu_seconds() - start;
}

double middle(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const int num_rows = argc > 1 ? std::atoi(argv[1]) : 4000;
  if (num_rows <= 0) return 2;
  std::mt19937 random(1);
  std::vector<Request> requests(static_cast<size_t>(num_rows));
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].index = static_cast<int64_t>(i);
    for (int32_t t = 0; t < kPrompt; ++t)
      requests[i].prompt_token_ids.push_back(static_cast<int32_t>(random() % 150'000));
    requests[i].sampling.max_tokens = kOutput;
    requests[i].sampling.temperature = 0.0F;
    requests[i].sampling.ignore_eos = true;
  }
  const double per_token = 1e9 / (static_cast<double>(num_rows) * (kPrompt + kOutput));
  std::vector<double> with;
  std::vector<double> without;
  std::vector<double> difference;
  for (int pair = 0; pair < kPairs; ++pair) {
    const bool first = pair % 2 == 0;
    const double one = run(requests, first) * per_token;
    const double other = run(requests, !first) * per_token;
    with.push_back(first ? one : other);
    without.push_back(first ? other : one);
    difference.push_back(with.back() - without.back());
  }
  fmt::print("plans, ns of CPU a token: {:.2f} with prefix caching, {:.2f} without, {:.2f} apart\n",
             middle(with), middle(without), middle(difference));
  return 0;
}
