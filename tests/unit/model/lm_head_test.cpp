// The LM head dealt over TP: ids must not depend on tp, on the size of the logits chunk, or on
// which rank a row is sampled on. A column of logits is summed in one order whatever the shard, so
// on the CPU equal means equal bits.
#include "lib/model/lm_head.h"

#include <cmath>
#include <limits>
#include <random>
#include <thread>

#include "lib/backend/cpu_backend.h"
#include "lib/comm/single_communicator.h"
#include "lib/comm/thread_communicator.h"
#include "tests/support/catch.h"
#include "tests/unit/model/model_folder.h"

namespace mpinfer::model::test {
namespace {

using backend::Matrix;
using backend::Stream;

struct HeadInput {
  int64_t rows = 0;
  std::vector<float> hidden;  // [rows, hidden_size]
  std::vector<backend::SampleRow> sampling;
  std::vector<int32_t> adjustment_offsets;
  std::vector<backend::LogitAdjustment> adjustments;
};

struct HeadOutput {
  std::vector<int32_t> greedy;
  std::vector<int32_t> sampled;
  std::vector<float> logits;
  bool operator==(const HeadOutput&) const = default;
};

HeadInput random_input(const ModelConfig& config, int64_t rows, uint32_t seed) {
  HeadInput input;
  input.rows = rows;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < rows * config.hidden_size; ++i) input.hidden.push_back(normal(random));
  for (int64_t r = 0; r < rows; ++r) {
    input.adjustment_offsets.push_back(static_cast<int32_t>(input.adjustments.size()));
    for (int32_t token = 0; token < r % 4; ++token) {
      input.adjustments.push_back(
          {.token = static_cast<int32_t>(random() % 60) + 60 * token, .banned = 1});
    }
    input.sampling.push_back({.temperature = r % 3 == 0 ? 0.0F : 0.9F,
                              .top_p = r % 5 == 0 ? 0.8F : 1.0F,
                              .top_k = r % 7 == 0 ? 10 : 0,
                              .seed = 5,
                              .index = static_cast<uint64_t>(r)});
  }
  input.adjustment_offsets.push_back(static_cast<int32_t>(input.adjustments.size()));
  return input;
}

HeadOutput run_rank(backend::Backend& backend, comm::Communicator& tp, const ModelConfig& config,
                    const std::string& directory, const HeadInput& input, int64_t max_logit_rows) {
  const StageWeights weights =
      load_weights(backend, directory, config,
                   {.stage = {0, config.num_layers()}, .tp = tp.size(), .tp_rank = tp.rank()},
                   LoadFormat::kAuto, 0, 1);
  backend::Workspace workspace(
      backend.allocate(LmHead::workspace_bytes(config, tp.size(), max_logit_rows, DType::kF32)));
  LmHead head(backend, tp, config, weights, workspace, max_logit_rows);
  std::vector<float> copy = input.hidden;
  const Matrix hidden{copy.data(), DType::kF32, input.rows, config.hidden_size, config.hidden_size};
  const auto rows = static_cast<size_t>(input.rows);
  HeadOutput out{std::vector<int32_t>(rows, -7), std::vector<int32_t>(rows, -7),
                 std::vector<float>(rows * static_cast<size_t>(config.vocab_size))};
  head.greedy(Stream::kCompute, out.greedy.data(), hidden);
  head.sample(Stream::kCompute, out.sampled.data(), hidden,
              {.rows = input.sampling.data(),
               .adjustment_offsets = input.adjustment_offsets.data(),
               .adjustments = input.adjustments.data()});
  head.logits(Stream::kCompute,
              {out.logits.data(), DType::kF32, input.rows, config.vocab_size, config.vocab_size},
              hidden);
  return out;
}

// One output a rank.
std::vector<HeadOutput> run_head(const ModelConfig& config, const std::string& directory, int tp,
                                 const HeadInput& input, int64_t max_logit_rows) {
  std::vector<std::unique_ptr<backend::Backend>> owned;
  std::vector<backend::Backend*> backends;
  for (int rank = 0; rank < tp; ++rank) {
    owned.push_back(backend::make_cpu_backend({.threads = 1, .simd_target = ""}));
    backends.push_back(owned.back().get());
  }
  std::vector<std::unique_ptr<comm::Communicator>> communicators;
  if (tp == 1) {
    communicators.push_back(std::make_unique<comm::SingleCommunicator>(*backends[0]));
  } else {
    communicators = comm::make_thread_communicators(backends);
  }
  std::vector<HeadOutput> outputs(backends.size());
  {
    std::vector<std::jthread> threads;
    for (size_t rank = 0; rank < backends.size(); ++rank) {
      threads.emplace_back([&, rank] {
        outputs[rank] = run_rank(*backends[rank], *communicators[rank], config, directory, input,
                                 max_logit_rows);
      });
    }
  }
  return outputs;
}

const std::string& model_directory() {
  static const std::string kDirectory = fmt::format("{}/llama-8h2kv", MPINFER_GOLDEN_DIR);
  return kDirectory;
}

TEST_CASE("ids and logits do not depend on tp or the chunk of logits") {
  const ModelConfig config = load_model_config(model_directory());
  for (const int64_t rows : {1, 3, 37}) {
    const HeadInput input = random_input(config, rows, 3);
    const HeadOutput one = run_head(config, model_directory(), 1, input, 64)[0];
    for (const int tp : {1, 2, 4, 8}) {
      for (const int64_t max_logit_rows : {1, 9, 64}) {
        for (const HeadOutput& output :
             run_head(config, model_directory(), tp, input, max_logit_rows)) {
          INFO("rows " << rows << " tp " << tp << " max_logit_rows " << max_logit_rows);
          CHECK(output == one);
        }
      }
    }
  }
}

TEST_CASE("adjustments reach the row they are for") {
  const ModelConfig config = load_model_config(model_directory());
  HeadInput input = random_input(config, 23, 4);
  const HeadOutput plain = run_head(config, model_directory(), 1, input, 64)[0];
  input.adjustments.clear();
  for (size_t r = 0; r < input.sampling.size(); ++r) {
    input.sampling[r] = {};  // greedy
    input.adjustment_offsets[r] = static_cast<int32_t>(r);
    input.adjustments.push_back({.token = plain.greedy[r], .banned = 1});
  }
  input.adjustment_offsets.back() = static_cast<int32_t>(input.sampling.size());
  for (const int tp : {1, 4}) {
    const HeadOutput banned = run_head(config, model_directory(), tp, input, 8)[0];
    for (size_t r = 0; r < input.sampling.size(); ++r) {
      const auto vocab = static_cast<size_t>(config.vocab_size);
      std::vector<float> row(plain.logits.begin() + static_cast<int64_t>(r * vocab),
                             plain.logits.begin() + static_cast<int64_t>((r + 1) * vocab));
      row[static_cast<size_t>(plain.greedy[r])] = -std::numeric_limits<float>::infinity();
      const auto second = std::max_element(row.begin(), row.end()) - row.begin();
      CHECK(banned.sampled[r] == second);
    }
  }
}

TEST_CASE("a row of NaN gives no id and leaves its neighbours alone") {
  const ModelConfig config = load_model_config(model_directory());
  HeadInput input = random_input(config, 11, 5);
  const HeadOutput clean = run_head(config, model_directory(), 1, input, 64)[0];
  input.hidden[static_cast<size_t>(4 * config.hidden_size + 1)] = std::nanf("");
  for (const int tp : {1, 2, 8}) {
    for (const HeadOutput& output : run_head(config, model_directory(), tp, input, 8)) {
      for (size_t r = 0; r < 11; ++r) {
        CHECK(output.greedy[r] == (r == 4 ? -1 : clean.greedy[r]));
        CHECK(output.sampled[r] == (r == 4 ? -1 : clean.sampled[r]));
      }
    }
  }
}

TEST_CASE("greedy takes any number of rows") {
  const ModelConfig config = load_model_config(model_directory());
  const HeadInput input = random_input(config, 5000, 6);
  const HeadOutput one = run_head(config, model_directory(), 1, input, 512)[0];
  CHECK(run_head(config, model_directory(), 2, input, 512)[1].greedy == one.greedy);
  for (size_t r : {size_t{0}, size_t{4095}, size_t{4096}, size_t{4999}}) {
    const auto begin = one.logits.begin() + static_cast<int64_t>(r) * config.vocab_size;
    CHECK(one.greedy[r] == std::max_element(begin, begin + config.vocab_size) - begin);
  }
}

}  // namespace
}  // namespace mpinfer::model::test
