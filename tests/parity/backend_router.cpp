// The router against plain double-precision loops: every rule of choice, ties, rows of NaN.
#include <algorithm>
#include <array>

#include "tests/parity/backend_fixture.h"

namespace mpinfer::backend::parity {
namespace {

struct Choice {
  std::vector<int32_t> experts;
  std::vector<double> weights;
};

// One row, by sorting: the rule as RouteOptions states it.
Choice choose(const float* logits, int64_t n, const RouteOptions& options, const float* bias,
              const float* correction) {
  const auto count = static_cast<size_t>(n);
  std::vector<double> scores(count);
  double sum = 0;
  for (size_t e = 0; e < count; ++e) {
    const double x = double{logits[e]} + (bias == nullptr ? 0.0 : double{bias[e]});
    scores[e] = options.score == RouterScore::kSigmoid ? 1.0 / (1.0 + std::exp(-x)) : std::exp(x);
    sum += scores[e];
  }
  if (options.score == RouterScore::kSoftmax) {
    for (double& score : scores) score /= sum;
  }
  std::vector<double> choice = scores;
  for (size_t e = 0; e < count && correction != nullptr; ++e) choice[e] += double{correction[e]};
  const size_t size = count / static_cast<size_t>(options.num_groups);
  std::vector<std::pair<double, size_t>> groups;
  for (size_t g = 0; g < count / size; ++g) {
    std::vector<double> part(choice.begin() + static_cast<std::ptrdiff_t>(g * size),
                             choice.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
    std::sort(part.rbegin(), part.rend());
    groups.emplace_back(-part[0] - (options.best_of_group > 1 && size > 1 ? part[1] : 0.0), g);
  }
  std::sort(groups.begin(), groups.end());
  std::vector<std::pair<double, int32_t>> order;
  for (size_t i = 0; i < static_cast<size_t>(options.top_groups); ++i) {
    for (size_t e = groups[i].second * size; e < (groups[i].second + 1) * size; ++e) {
      order.emplace_back(-choice[e], static_cast<int32_t>(e));
    }
  }
  std::sort(order.begin(), order.end());
  Choice out;
  double chosen = 0;
  for (size_t k = 0; k < static_cast<size_t>(options.top_k); ++k) {
    out.experts.push_back(order[k].second);
    out.weights.push_back(scores[static_cast<size_t>(order[k].second)]);
    chosen += out.weights.back();
  }
  for (double& weight : out.weights) {
    weight *= double{options.scale} / (options.renormalise ? chosen : 1.0);
  }
  return out;
}

TEST_CASE("route chooses and weighs as its options say") {
  Random random(21);
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    for (const auto& [rows, experts, top_k, groups, top_groups] :
         {std::array{1, 4, 2, 1, 1}, std::array{9, 128, 8, 1, 1}, std::array{33, 256, 8, 8, 4},
          std::array{300, 60, 4, 1, 1}, std::array{5, 24, 3, 3, 1}, std::array{4, 1000, 30, 10, 3},
          std::array{3, 8, 8, 1, 1}, std::array{9000, 8, 2, 1, 1}}) {
      for (int rule = 0; rule < 8; ++rule) {
        CAPTURE(rows, experts, top_k, groups, rule);
        const auto logits = random_floats(random, int64_t{rows} * experts, 2.0F);
        const auto bias = random_floats(random, experts);
        const auto correction = random_floats(random, experts, 0.2F);
        RouteOptions options{.top_k = top_k,
                             .score = rule % 2 == 0 ? RouterScore::kSoftmax : RouterScore::kSigmoid,
                             .renormalise = rule / 2 % 2 == 1,
                             .scale = rule % 3 == 0 ? 1.0F : 2.5F,
                             .num_groups = groups,
                             .top_groups = top_groups,
                             .best_of_group = rule / 4 + 1};
        const bool biased = rule % 3 == 1;
        const bool corrected = rule / 4 == 1;
        const DeviceArray<float> device_bias(*backend, bias);
        const DeviceArray<float> device_correction(*backend, correction);
        const DeviceArray<int64_t> counts(*backend,
                                          std::vector<int64_t>(static_cast<size_t>(experts), 5));
        const DeviceArray<int32_t> ids(*backend,
                                       std::vector<int32_t>(static_cast<size_t>(rows * top_k)));
        const DeviceArray<float> weights(*backend,
                                         std::vector<float>(static_cast<size_t>(rows * top_k)));
        DeviceMatrix in(*backend, rows, experts, DType::kF32);
        in.write(logits);
        options.bias = biased ? device_bias.data() : nullptr;
        options.correction = corrected ? device_correction.data() : nullptr;
        options.counts = counts.data();
        backend->route(Stream::kCompute, ids.data(), weights.data(), in.view(), options);
        const auto got_ids = ids.read();
        std::vector<int64_t> want_counts(static_cast<size_t>(experts), 5);
        std::vector<int32_t> want_ids;
        std::vector<double> want_weights;
        for (int r = 0; r < rows; ++r) {
          const Choice choice =
              choose(logits.data() + r * experts, experts, options, biased ? bias.data() : nullptr,
                     corrected ? correction.data() : nullptr);
          want_ids.insert(want_ids.end(), choice.experts.begin(), choice.experts.end());
          want_weights.insert(want_weights.end(), choice.weights.begin(), choice.weights.end());
          for (const int32_t e : choice.experts) ++want_counts[static_cast<size_t>(e)];
        }
        CHECK(got_ids == want_ids);
        CHECK(counts.read() == want_counts);
        check_close(weights.read(), want_weights, 1e-5);
      }
    }
  }
}

TEST_CASE("route: equal scores go to the lowest id; rows of NaN choose distinct experts") {
  constexpr int32_t kTop = 4;
  const float nan = std::nanf("");
  std::vector<float> logits(3 * 64, 1.0F);
  for (size_t i = 0; i < 64; ++i) logits[64 + i] = nan;
  for (size_t i = 0; i < 64; ++i) logits[128 + i] = i < 2 ? nan : 0.0F;
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    DeviceMatrix in(*backend, 3, 64, DType::kF32);
    in.write(logits);
    const DeviceArray<int32_t> ids(*backend, std::vector<int32_t>(3 * kTop));
    const DeviceArray<float> weights(*backend, std::vector<float>(3 * kTop));
    backend->route(Stream::kCompute, ids.data(), weights.data(), in.view(), {.top_k = kTop});
    std::vector<int32_t> got = ids.read();
    CHECK(std::vector<int32_t>(got.begin(), got.begin() + kTop) ==
          std::vector<int32_t>{0, 1, 2, 3});
    for (int row = 1; row < 3; ++row) {
      auto begin = got.begin() + row * kTop;
      std::sort(begin, begin + kTop);
      CHECK(std::adjacent_find(begin, begin + kTop) == begin + kTop);
      CHECK(*begin >= 0);
      CHECK(*(begin + kTop - 1) < 64);
    }
  }
}

}  // namespace
}  // namespace mpinfer::backend::parity
