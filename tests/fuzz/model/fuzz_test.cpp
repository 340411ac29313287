// Mutated safetensors files, index.json and config.json: each is accepted or refused with exit 5,
// quickly and without a big allocation. MPINFER_FUZZ_ROUNDS asks for more rounds than the default.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <new>

#include "lib/model/loader.h"
#include "lib/model/params.h"
#include "lib/model/rope.h"
#include "lib/model/safetensors.h"
#include "lib/model/safetensors_json.h"
#include "tests/fuzz/model/mutate.h"
#include "tests/support/catch.h"
#include "tests/unit/model/model_folder.h"

namespace {

std::atomic<size_t> largest_allocation{0};

}  // namespace

#ifndef __SANITIZE_ADDRESS__  // which has operators of its own
namespace {

void* allocate(size_t bytes) {
  size_t seen = largest_allocation.load();
  while (bytes > seen && !largest_allocation.compare_exchange_weak(seen, bytes)) {
  }
  if (void* data = std::malloc(bytes == 0 ? 1 : bytes)) return data;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(size_t bytes) {
  return allocate(bytes);
}
void operator delete(void* data) noexcept {
  std::free(data);
}
void operator delete(void* data, size_t) noexcept {
  std::free(data);
}
#endif

namespace mpinfer::model::test {
namespace {

constexpr size_t kMostBytes = size_t{16} << 20;
constexpr double kMostSeconds = 1.0;

int rounds(int by_default) {
  const char* asked = std::getenv("MPINFER_FUZZ_ROUNDS");
  return asked == nullptr ? by_default : std::atoi(asked);
}

struct Outcome {
  int accepted = 0;
  int refused = 0;
};

// Anything but success or a refusal fails the test with the input.
void run_one(const std::string& input, const std::function<void()>& fn, Outcome& outcome) {
  largest_allocation = 0;
  const std::clock_t begin = std::clock();  // of the processor: other load does not count
  std::string wrong;
  try {
    fn();
    ++outcome.accepted;
  } catch (const Error& error) {
    ++outcome.refused;
    if (error.exit_code() != ExitCode::kModelRefused) wrong = error.what();
  } catch (const std::exception& error) {
    wrong = error.what();
  }
  const double took = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  if (largest_allocation > kMostBytes) wrong += " allocated " + std::to_string(largest_allocation);
  if (took > kMostSeconds) wrong += " took " + std::to_string(took) + " s";
  if (!wrong.empty()) FAIL_CHECK(wrong << "\ninput: " << input.substr(0, 4000));
}

std::vector<std::string> corpus(const std::string& prefix) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(MPINFER_FUZZ_CORPUS)) {
    if (entry.path().filename().string().starts_with(prefix)) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> out;
  for (const auto& path : paths)
    out.push_back(read_text(path.parent_path(), path.filename(), 1 << 20));
  return out;
}

// Every seed as it is, then mutants of all seeds in turn.
Outcome fuzz(const std::vector<std::string>& seeds, int count, uint64_t seed,
             const std::function<void(const std::string&)>& fn) {
  Outcome outcome;
  std::mt19937_64 random(seed);
  for (const std::string& one : seeds)
    run_one(
        one, [&] { fn(one); }, outcome);
  for (int i = 0; i < count; ++i) {
    const std::string mutant = mutate(seeds[static_cast<size_t>(i) % seeds.size()], random);
    run_one(
        mutant, [&] { fn(mutant); }, outcome);
  }
  return outcome;
}

std::string header_of(const ModelFolder& folder, std::string* data) {
  const std::string file = folder.read("model.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  *data = file.substr(8 + length);
  return file.substr(8, length);
}

TEST_CASE("mutated safetensors headers") {
  const ModelFolder folder("phi3-partial");
  const ModelConfig config = load_model_config(folder.path());
  std::string data;
  std::vector<std::string> seeds = corpus("header");
  seeds.push_back(header_of(folder, &data));
  std::mt19937_64 random(3);
  const Outcome outcome = fuzz(seeds, rounds(3000), 1, [&](const std::string& header) {
    // The length prefix and the data lie now and then, too.
    uint64_t length = header.size();
    if (random() % 16 == 0) length ^= uint64_t{1} << random() % 64;
    const size_t kept = random() % 16 == 0 ? random() % data.size() : data.size();
    folder.write("model.safetensors", safetensors_bytes(length, header, data.substr(0, kept)));
    check_checkpoint(folder.path(), config);
  });
  CHECK(outcome.accepted > 0);
  CHECK(outcome.refused > 100);
}

TEST_CASE("mutated headers alone") {
  const ModelFolder folder("granite");
  std::string data;
  std::vector<std::string> seeds = corpus("header");
  seeds.push_back(header_of(folder, &data));
  const Outcome outcome = fuzz(seeds, rounds(20000), 2, [&](const std::string& header) {
    for (const StoredTensor& tensor : parse_header_json(header, "header")) {
      if (tensor.bytes < 0 || tensor.rank > StoredTensor::kMaxRank) throw std::logic_error("kept");
    }
  });
  CHECK(outcome.accepted > 100);
  CHECK(outcome.refused > 100);
}

TEST_CASE("mutated index.json") {
  const ModelFolder folder("llama-linear");
  std::vector<std::string> seeds = corpus("index");
  seeds.push_back(folder.read("model.safetensors.index.json"));
  const Outcome parsed =
      fuzz(seeds, rounds(20000), 4, [&](const std::string& index) { parse_index(index, "index"); });
  CHECK(parsed.accepted > 100);
  const ModelConfig config = load_model_config(folder.path());
  const Outcome opened = fuzz(seeds, rounds(1000), 5, [&](const std::string& index) {
    folder.write("model.safetensors.index.json", index);
    check_checkpoint(folder.path(), config);
  });
  CHECK(opened.accepted > 0);
  CHECK(opened.refused > 100);
}

TEST_CASE("mutated config.json") {
  std::vector<std::string> seeds = corpus("config");
  for (const char* name :
       {"deepseek-v2", "deepseek-v3", "glm4-moe", "gpt-oss", "granite", "llama-8h2kv",
        "llama-linear", "mistral-window", "mixtral", "olmoe", "phi3-partial", "qwen2-moe",
        "qwen2-window", "qwen3-moe", "qwen3-yarn", "smollm3-nope"}) {
    seeds.push_back(ModelFolder(name).read("config.json"));
  }
  const ModelFolder folder;
  const Outcome outcome = fuzz(seeds, rounds(5000), 6, [&](const std::string& text) {
    folder.write("config.json", text);
    const ModelConfig config = load_model_config(folder.path());
    // What start-up computes from a config before any weight is read.
    for (const int tp : valid_tp(config, 8)) {
      weight_bytes(config, {.stage = {0, config.num_layers()}, .tp = tp});
    }
    balance_stages(config, 1, {});
    for (size_t group = 0; group < config.cache_groups.size(); ++group) {
      const int64_t bytes = kv_block_bytes(config, {0, config.num_layers()}, 1,
                                           static_cast<int32_t>(group), 16, DType::kF32);
      if (bytes < 0 || !std::isfinite(config.attention_scale)) {
        throw std::logic_error("KV of no size, or scores of no scale");
      }
    }
    for (const float value : rope_table(config.rope, 4)) {
      if (!std::isfinite(value)) throw std::logic_error("a rope table that is not finite");
    }
    check_checkpoint(folder.path(), config);
  });
  CHECK(outcome.refused > 100);
}

TEST_CASE("mutated config.json beside its weights") {
  for (const char* name : {"qwen3-yarn", "deepseek-v3"}) {
    const ModelFolder folder(name);
    const std::string seed = folder.read("config.json");
    const Outcome outcome = fuzz({seed}, rounds(1500), 8, [&](const std::string& text) {
      folder.write("config.json", text);
      check_checkpoint(folder.path(), load_model_config(folder.path()));
    });
    CHECK(outcome.accepted > 100);
    CHECK(outcome.refused > 100);
  }
}

}  // namespace
}  // namespace mpinfer::model::test
