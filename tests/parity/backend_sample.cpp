// Sampling: exact answers for each filter and adjustment, draws against the probabilities by
// chi-square, bits that do not depend on the batch.
#include <limits>
#include <map>
#include <numeric>

#include "lib/core/philox.h"
#include "tests/parity/backend_fixture.h"

namespace mpinfer::backend::parity {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<int32_t> sample(Backend& backend, const std::vector<std::vector<float>>& logits,
                            const std::vector<SampleRow>& rows,
                            const std::vector<std::vector<LogitAdjustment>>& adjustments = {}) {
  std::vector<float> flat;
  for (const auto& row : logits) flat.insert(flat.end(), row.begin(), row.end());
  const auto count = static_cast<int64_t>(logits.size());
  DeviceMatrix matrix(backend, count, static_cast<int64_t>(logits[0].size()), DType::kF32);
  matrix.write(flat);
  const DeviceArray<SampleRow> device_rows(backend, rows);
  const DeviceArray<int32_t> ids(backend, std::vector<int32_t>(logits.size(), -7));
  std::vector<int32_t> offsets = {0};
  std::vector<LogitAdjustment> list;
  for (const auto& row : adjustments) {
    list.insert(list.end(), row.begin(), row.end());
    offsets.push_back(static_cast<int32_t>(list.size()));
  }
  const DeviceArray<int32_t> device_offsets(backend, offsets);
  const DeviceArray<LogitAdjustment> device_list(backend, list);
  backend.sample(Stream::kCompute, ids.data(),
                 {.logits = matrix.view(),
                  .rows = device_rows.data(),
                  .adjustment_offsets = adjustments.empty() ? nullptr : device_offsets.data(),
                  .adjustments = device_list.data()});
  matrix.read();
  return ids.read();
}

int32_t sample_one(Backend& backend, const std::vector<float>& logits, const SampleRow& row,
                   const std::vector<LogitAdjustment>& adjustments = {}) {
  return sample(backend, {logits}, {row}, {adjustments})[0];
}

// Ids seen in many draws of one distribution.
std::map<int32_t, int> histogram(Backend& backend, const std::vector<float>& logits, SampleRow row,
                                 uint32_t draws) {
  std::map<int32_t, int> seen;
  std::vector<SampleRow> rows;
  std::vector<std::vector<float>> copies;
  for (uint32_t i = 0; i < draws; ++i) {
    row.position = i;
    rows.push_back(row);
    copies.push_back(logits);
  }
  for (const int32_t id : sample(backend, copies, rows)) ++seen[id];
  return seen;
}

std::vector<int32_t> keys(const std::map<int32_t, int>& seen) {
  std::vector<int32_t> ids;
  for (const auto& [id, count] : seen) ids.push_back(id);
  return ids;
}

std::vector<float> logs(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

// The same steps on doubles, by sorting everything.
int32_t reference(const std::vector<float>& logits, const SampleRow& row) {
  const auto n = static_cast<int32_t>(logits.size());
  const float max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> w;
  for (const float x : logits) {
    w.push_back(std::exp(static_cast<double>(x - max) / static_cast<double>(row.temperature)));
  }
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  const auto at = [&](int32_t id) -> double& { return w[static_cast<size_t>(id)]; };
  for (double& value : w) {
    if (value < static_cast<double>(row.min_p)) value = 0.0;
  }
  if (row.top_k > 0 && row.top_k < n) {
    const float kth = logits[static_cast<size_t>(order[static_cast<size_t>(row.top_k - 1)])];
    for (int32_t i = 0; i < n; ++i) {
      if (logits[static_cast<size_t>(i)] < kth) at(i) = 0.0;
    }
  }
  const double total = std::accumulate(w.begin(), w.end(), 0.0);
  double sum = 0.0;
  for (const int32_t id : order) {
    if (sum >= static_cast<double>(row.top_p) * total && row.top_p < 1.0F) at(id) = 0.0;
    sum += at(id);
  }
  const double left = std::accumulate(w.begin(), w.end(), 0.0);
  const double target =
      left *
      static_cast<double>(philox_uniform(
          {.seed = row.seed, .index = row.index, .sample = row.sample, .position = row.position}));
  sum = 0.0;
  for (int32_t i = 0; i < n; ++i) {
    sum += at(i);
    if (sum > target) return i;
  }
  return -1;
}

}  // namespace

TEST_CASE("greedy takes the lowest id of the largest logit and ignores the filters") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    std::vector<float> logits(1003, -1.0F);
    logits[700] = logits[77] = logits[1002] = 4.0F;
    CHECK(sample_one(*backend, logits, {}) == 77);
    CHECK(sample_one(*backend, logits, {.temperature = 0.9e-5F, .top_p = 0.1F, .top_k = 1}) == 77);
    logits[1002] = 5.0F;
    CHECK(sample_one(*backend, logits, {}) == 1002);
    logits[1002] = kInfinity;
    CHECK(sample_one(*backend, logits, {}) == 1002);
    CHECK(sample_one(*backend, {-kInfinity, -3.0F, -kInfinity}, {}) == 1);
  }
}

TEST_CASE("a row that holds a NaN, or nothing that can be drawn, gives -1; its neighbours do not") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    for (const float temperature : {0.0F, 1.0F}) {
      const SampleRow row = {.temperature = temperature};
      for (const size_t place : {size_t{0}, size_t{16}, size_t{32}, size_t{36}}) {
        std::vector<float> sound(37, 0.0F);
        sound[5] = 50.0F;
        std::vector<float> broken = sound;
        broken[place] = std::nanf("");
        CHECK(sample(*backend, {sound, broken, sound}, {row, row, row}) ==
              std::vector<int32_t>{5, -1, 5});
        // A ban does not hide it.
        CHECK(sample_one(*backend, broken, row,
                         {{.token = static_cast<int32_t>(place), .banned = 1}}) == -1);
      }
      CHECK(sample_one(*backend, std::vector<float>(9, -kInfinity), row) == -1);
    }
    CHECK(sample_one(*backend, {0.0F, kInfinity, 1.0F}, {.temperature = 1.0F}) == -1);
  }
}

TEST_CASE("adjustments: ban, bias, repetition, frequency and presence, in this order") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    const std::vector<float> logits = {1.0F, 3.0F, 2.0F, -1.0F};
    CHECK(sample_one(*backend, logits, {}, {{.token = 1, .banned = 1}}) == 2);
    CHECK(sample_one(*backend, logits, {}, {{.token = 1, .bias = 50.0F, .banned = 1}}) == 2);
    CHECK(sample_one(*backend, logits, {}, {{.token = 3, .bias = 4.5F}}) == 3);
    // 3 / 1.6 < 2, but only for tokens seen.
    CHECK(sample_one(*backend, logits, {.repetition_penalty = 1.6F},
                     {{.token = 1, .in_context = 1}}) == 2);
    CHECK(sample_one(*backend, logits, {.repetition_penalty = 1.6F}, {{.token = 1}}) == 1);
    // Bias first, so a logit made positive is divided: (-1 + 5) / 2 = 2 < 3, not -2 + 5 = 3; made
    // negative it is multiplied.
    CHECK(sample_one(*backend, {0.0F, 2.5F, -1.0F}, {.repetition_penalty = 2.0F},
                     {{.token = 2, .bias = 5.0F, .in_context = 1}}) == 1);
    CHECK(sample_one(
              *backend, {0.0F, -2.5F, 1.0F}, {.repetition_penalty = 2.0F},
              {{.token = 0, .bias = -100.0F}, {.token = 2, .bias = -2.5F, .in_context = 1}}) == 1);
    // 3 - 0.4 * 3 = 1.8 < 2; presence once.
    CHECK(sample_one(*backend, logits, {.frequency_penalty = 0.4F},
                     {{.token = 1, .output_count = 3}}) == 2);
    CHECK(sample_one(*backend, logits, {.frequency_penalty = 0.3F},
                     {{.token = 1, .output_count = 3}}) == 1);
    CHECK(sample_one(*backend, logits, {.presence_penalty = 0.9F},
                     {{.token = 1, .output_count = 3}}) == 1);
    CHECK(sample_one(*backend, logits, {.presence_penalty = 1.1F},
                     {{.token = 1, .output_count = 1}}) == 2);
    // Repetition before the subtractions: 3 / 1.5 - 1 = 1 < 2 - 0.5; the other order gives 4 / 3.
    CHECK(sample_one(*backend, {1.2F, 3.0F}, {.repetition_penalty = 1.5F, .presence_penalty = 1.0F},
                     {{.token = 1, .output_count = 1, .in_context = 1}}) == 0);
    // Adjustments of one row leave the others alone.
    CHECK(sample(*backend, {logits, logits, logits}, {{}, {}, {}},
                 {{}, {{.token = 1, .banned = 1}}, {{.token = 2, .bias = 9.0F}}}) ==
          std::vector<int32_t>{1, 2, 2});
  }
}

TEST_CASE("top_k keeps ties with the k-th, min_p and top_p keep what they say") {
  const std::vector<float> logits = logs({0.05, 0.4, 0.1, 0.1, 0.25, 0.1});
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    const auto survivors = [&](SampleRow row) {
      row.temperature = row.temperature > 0.0F ? row.temperature : 1.0F;
      return keys(histogram(*backend, logits, row, 600));
    };
    CHECK(survivors({}) == std::vector<int32_t>{0, 1, 2, 3, 4, 5});
    CHECK(survivors({.top_k = 1}) == std::vector<int32_t>{1});
    CHECK(survivors({.top_k = 2}) == std::vector<int32_t>{1, 4});
    CHECK(survivors({.top_k = 3}) == std::vector<int32_t>{1, 2, 3, 4, 5});
    CHECK(survivors({.top_k = 6}) == std::vector<int32_t>{0, 1, 2, 3, 4, 5});
    CHECK(survivors({.min_p = 0.2F}) == std::vector<int32_t>{1, 2, 3, 4, 5});
    CHECK(survivors({.min_p = 0.5F}) == std::vector<int32_t>{1, 4});
    CHECK(survivors({.min_p = 1.0F}) == std::vector<int32_t>{1});
    CHECK(survivors({.top_p = 0.39F}) == std::vector<int32_t>{1});
    CHECK(survivors({.top_p = 0.41F}) == std::vector<int32_t>{1, 4});
    // The crossing token stays; of equals the lower ids.
    CHECK(survivors({.top_p = 0.66F}) == std::vector<int32_t>{1, 2, 4});
    CHECK(survivors({.top_p = 0.76F}) == std::vector<int32_t>{1, 2, 3, 4});
    CHECK(survivors({.top_p = 1e-6F}) == std::vector<int32_t>{1});
    // Renormalised after top_k: 0.4 / 0.65 > 0.6.
    CHECK(survivors({.top_p = 0.6F, .top_k = 2}) == std::vector<int32_t>{1});
    CHECK(survivors({.top_p = 0.63F, .top_k = 2}) == std::vector<int32_t>{1, 4});
    // min_p counts after temperature: (0.25 / 0.4)² = 0.39.
    CHECK(survivors({.temperature = 0.5F, .min_p = 0.4F}) == std::vector<int32_t>{1});
    CHECK(survivors({.temperature = 0.5F, .min_p = 0.38F}) == std::vector<int32_t>{1, 4});
  }
}

TEST_CASE("draws follow the probabilities: chi-square at every filter") {
  const std::vector<double> p = {0.02, 0.3, 0.08, 0.12, 0.18, 0.05, 0.25};
  struct Filtered {
    SampleRow row;
    std::vector<double> expected;
  };
  std::vector<double> squares;
  for (const double value : p) squares.push_back(value * value);
  const std::vector<Filtered> cases = {
      {{.temperature = 1.0F, .seed = 5}, p},
      {{.temperature = 0.5F, .seed = 6}, squares},
      {{.temperature = 1.0F, .top_k = 3, .seed = 7}, {0, 0.3, 0, 0, 0.18, 0, 0.25}},
      {{.temperature = 1.0F, .top_p = 0.8F, .seed = 8}, {0, 0.3, 0, 0.12, 0.18, 0, 0.25}},
      {{.temperature = 1.0F, .min_p = 0.35F, .seed = 9}, {0, 0.3, 0, 0.12, 0.18, 0, 0.25}},
  };
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    for (const Filtered& c : cases) {
      const uint32_t draws = 4000;
      const auto seen = histogram(*backend, logs(p), c.row, draws);
      const double total = std::accumulate(c.expected.begin(), c.expected.end(), 0.0);
      double chi_square = 0.0;
      for (size_t i = 0; i < p.size(); ++i) {
        const double expected = c.expected[i] / total * draws;
        const auto found = seen.find(static_cast<int32_t>(i));
        const double count = found == seen.end() ? 0.0 : found->second;
        if (expected == 0.0) {
          CHECK(count == 0.0);
        } else {
          chi_square += (count - expected) * (count - expected) / expected;
        }
      }
      CHECK(chi_square < 22.5);  // 6 degrees of freedom: 0.1 %
    }
  }
}

TEST_CASE("draws over a large vocabulary equal a full sort in double precision") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    Random random(31);
    std::vector<std::vector<float>> logits;
    std::vector<SampleRow> rows;
    for (uint32_t i = 0; i < 48; ++i) {
      logits.push_back(random_floats(random, 5003, 1.0F + static_cast<float>(i % 4)));
      rows.push_back({.temperature = 0.5F + 0.05F * static_cast<float>(i % 20),
                      .top_p = i % 3 == 0 ? 1.0F : 0.5F + 0.01F * static_cast<float>(i),
                      .min_p = i % 5 == 0 ? 0.02F : 0.0F,
                      .top_k = i % 4 == 0 ? 40 : 0,
                      .seed = 1234567890123ULL,
                      .index = i,
                      .sample = i % 2,
                      .position = 17 * i});
    }
    const auto got = sample(*backend, logits, rows);
    int equal = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      equal += got[i] == reference(logits[i], rows[i]) ? 1 : 0;
    }
    CHECK(equal >= 47);  // one draw may fall within rounding of a border
    // The same rows alone, in reverse order.
    for (size_t i = rows.size(); i-- > 0;) {
      REQUIRE(sample_one(*backend, logits[i], rows[i]) == got[i]);
    }
  }
}

TEST_CASE("flat logits: every filter on thousands of equal and nearly equal weights") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    const std::vector<float> equal(20000, 1.25F);
    // Of equals the lower ids: the first half survives.
    for (uint32_t position = 0; position < 20; ++position) {
      const SampleRow row = {.temperature = 1.0F, .top_p = 0.5F, .position = position};
      const int32_t id = sample_one(*backend, equal, row);
      CHECK(id == reference(equal, row));
      CHECK(id < 10000);
    }
    CHECK(sample_one(*backend, equal, {.temperature = 1.0F, .top_p = 1e-9F}) == 0);
    Random random(33);
    const auto flat = random_floats(random, 20000, 1e-3F);
    for (uint32_t position = 0; position < 20; ++position) {
      const SampleRow row = {.temperature = 1.0F,
                             .top_p = 0.1F + 0.04F * static_cast<float>(position),
                             .top_k = position % 2 == 0 ? 0 : 15000,
                             .position = position};
      CHECK(std::abs(sample_one(*backend, flat, row) - reference(flat, row)) <= 2);
    }
  }
}

TEST_CASE("every word of the key changes the draw") {
  const auto backend = make_cpu_backend({});
  Random random(32);
  const auto logits = random_floats(random, 4096, 0.1F);
  const SampleRow row = {.temperature = 1.0F, .seed = 1, .index = 2, .sample = 3, .position = 4};
  std::vector<SampleRow> rows(5, row);
  rows[1].seed = uint64_t{1} << 40;
  rows[2].index = uint64_t{2} << 40;
  rows[3].sample = 4;
  rows[4].position = 5;
  const auto ids = sample(*backend, std::vector<std::vector<float>>(5, logits), rows);
  for (size_t i = 1; i < ids.size(); ++i) CHECK(ids[i] != ids[0]);
  CHECK(sample_one(*backend, logits, row) == ids[0]);
}

}  // namespace mpinfer::backend::parity
