// Masks over the vocabulary, log-probabilities, ranks and the most likely tokens: against doubles.
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "tests/parity/backend_fixture.h"

namespace mpinfer::backend::parity {
namespace {

std::vector<float> random_logits(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 3.0F);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = std::round(normal(random) * 8.0F) / 8.0F;  // with ties
  return out;
}

std::vector<LogprobEntry> look(Backend& backend, int64_t cols, const std::vector<float>& logits,
                               const std::vector<int32_t>& ids, int32_t num_top) {
  const auto rows = static_cast<int64_t>(ids.size());
  DeviceMatrix matrix(backend, rows, cols, DType::kF32);
  matrix.write(logits);
  const DeviceArray<int32_t> device_ids(backend, ids);
  const DeviceArray<LogprobEntry> out(
      backend, std::vector<LogprobEntry>(static_cast<size_t>(rows * (1 + num_top))));
  backend.log_softmax_top_k(Stream::kCompute, out.data(), matrix.view(), device_ids.data(),
                            num_top);
  return out.read();
}

}  // namespace

TEST_CASE("log-probabilities, ranks and the top equal those of doubles; ties by id") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    INFO(backend->description());
    for (const int64_t cols : {1, 31, 259, 4099}) {
      for (const int32_t num_top : {0, 1, 5, 20}) {
        if (num_top > cols) continue;
        constexpr int64_t kRows = 7;
        const std::vector<float> logits = random_logits(kRows * cols, static_cast<uint32_t>(cols));
        std::vector<int32_t> ids;
        for (int64_t r = 0; r < kRows; ++r)
          ids.push_back(static_cast<int32_t>((r * 37 + cols - 1) % cols));
        const auto entries = look(*backend, cols, logits, ids, num_top);
        for (int64_t r = 0; r < kRows; ++r) {
          const float* row = logits.data() + r * cols;
          std::vector<int32_t> order(static_cast<size_t>(cols));
          std::iota(order.begin(), order.end(), 0);
          std::stable_sort(order.begin(), order.end(),
                           [row](int32_t a, int32_t b) { return row[a] > row[b]; });
          double sum = 0.0;
          for (int64_t c = 0; c < cols; ++c) sum += std::exp(static_cast<double>(row[c]));
          const auto expected = [&](int32_t id) {
            return static_cast<double>(row[id]) - std::log(sum);
          };
          const LogprobEntry* mine = entries.data() + r * (1 + num_top);
          const int32_t id = ids[static_cast<size_t>(r)];
          CHECK(std::abs(static_cast<double>(mine[0].logprob) - expected(id)) < 2e-5);
          CHECK(order[static_cast<size_t>(mine[0].id - 1)] == id);
          for (int32_t k = 0; k < num_top; ++k) {
            CHECK(mine[1 + k].id == order[static_cast<size_t>(k)]);
            CHECK(std::abs(static_cast<double>(mine[1 + k].logprob) -
                           expected(order[static_cast<size_t>(k)])) < 2e-5);
          }
        }
      }
    }
  }
}

TEST_CASE("a NaN, or no token, gives NaN and no rank; the rows beside are untouched") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    INFO(backend->description());
    constexpr int64_t kCols = 100;
    std::vector<float> logits = random_logits(3 * kCols, 5);
    logits[kCols + 99] = std::numeric_limits<float>::quiet_NaN();
    const auto entries = look(*backend, kCols, logits, {3, 3, -1}, 2);
    CHECK(entries[0].id >= 1);
    CHECK_FALSE(std::isnan(entries[0].logprob));
    for (size_t i = 3; i < 9; ++i) {
      CHECK(std::isnan(entries[i].logprob));
      CHECK(entries[i].id == 0);
    }
  }
}

TEST_CASE("a mask leaves the allowed tokens' bits and bans the others") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    INFO(backend->description());
    for (const int64_t cols : {31, 32, 259}) {
      const std::vector<float> logits = random_logits(3 * cols, 9);
      DeviceMatrix matrix(*backend, 3, cols, DType::kF32);
      matrix.write(logits);
      const int64_t words = mask_words(cols);
      std::vector<uint32_t> masks(static_cast<size_t>(2 * words), 0);
      const auto allowed = [cols](int64_t mask, int64_t c) {
        return c % (mask == 0 ? 3 : 7) == 0 || c == cols - 1;
      };
      for (int64_t mask = 0; mask < 2; ++mask) {
        for (int64_t c = 0; c < cols; ++c) {
          if (allowed(mask, c)) masks[static_cast<size_t>(mask * words + c / 32)] |= 1U << (c % 32);
        }
      }
      const DeviceArray<uint32_t> device_masks(*backend, masks);
      const DeviceArray<int32_t> row_masks(*backend, {1, -1, 0});
      backend->mask_logits(Stream::kCompute, matrix.view(), device_masks.data(), row_masks.data());
      const std::vector<float> after = matrix.read();
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const auto at = static_cast<size_t>(r * cols + c);
          const bool kept = r == 1 || allowed(r == 0 ? 1 : 0, c);
          CHECK(after[at] == (kept ? logits[at] : -std::numeric_limits<float>::infinity()));
        }
      }
    }
  }
}

}  // namespace mpinfer::backend::parity
