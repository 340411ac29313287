// bench_gemm: what the CPU backend's matrix work reaches on this machine. Prints the measured f32
// multiply-add peak (registers only), then GFLOP/s and % of that peak for each shape, GB/s of
// weights for few rows, and microseconds of the other ops at batch sizes of a SmolLM2-135M step.
// Times are the best of many runs, so that neighbours on the machine matter less. Usage: bench_gemm
// [threads] [simd target]
#include <fmt/core.h>

#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <random>

#include "kernels/cpu.h"
#include "kernels/cpu/thread_pool.h"
#include "lib/backend/cpu_backend.h"

namespace {

using namespace mpinfer;
using namespace mpinfer::backend;

clockid_t g_clock = CLOCK_MONOTONIC;

double now() {
  timespec time = {};
  clock_gettime(g_clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Runs work some hundred times; returns the best time of one run.
double best_seconds(const std::function<void()>& work) {
  double best = 1e9;
  double total = 0.0;
  for (int run = 0; run < 500 && (run < 5 || total < 0.3); ++run) {
    const double start = now();
    work();
    const double seconds = now() - start;
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

// Multiply-adds in registers on every thread: operations a second.
class Peak {
 public:
  Peak(const std::string& target, int threads)
      : table_(kernels::cpu::kernels_for(target)), pool_(threads) {}

  double measure() {
    constexpr int64_t kSteps = 50'000;
    const double start = now();
    pool_.run(pool_.size(), [&](int64_t, int) { table_.multiply_add_loop(kSteps); });
    const double seconds = now() - start;
    return static_cast<double>(table_.multiply_add_loop(0) * kSteps * pool_.size()) / seconds;
  }

  // Median over runs of the work's speed divided by the peak just before and after it, so that a
  // clock that changes with the neighbours' load cancels out.
  double share(double operations, const std::function<void()>& work) {
    std::vector<double> shares;
    double total = 0.0;
    double before = measure();
    while (shares.size() < 5 || (total < 0.4 && shares.size() < 200)) {
      const double start = now();
      work();
      const double seconds = now() - start;
      const double after = measure();
      shares.push_back(operations / seconds / std::max(before, after));
      before = after;
      total += seconds;
    }
    std::nth_element(shares.begin(), shares.begin() + std::ssize(shares) / 2, shares.end());
    return shares[shares.size() / 2];
  }

 private:
  kernels::cpu::KernelTable table_;
  kernels::cpu::ThreadPool pool_;
};

constexpr int64_t kCold = 64 << 20;

class Bench {
 public:
  Bench(Backend& backend, Peak& peak) : backend_(backend), peak_(peak) {}

  Matrix matrix(int64_t rows, int64_t cols) {
    buffers_.push_back(backend_.allocate(rows * cols * 4));
    auto* data = static_cast<float*>(buffers_.back().data());
    for (int64_t i = 0; i < rows * cols; ++i) data[i] = normal_(random_);
    return {.data = data, .rows = rows, .cols = cols, .stride = cols};
  }

  Weight weight(int64_t out_features, int64_t in_features, DType dtype) {
    buffers_.push_back(backend_.allocate(backend_.packed_bytes(out_features, in_features, dtype)));
    Weight made = backend_.make_weight(buffers_.back().data(), out_features, in_features, dtype);
    std::vector<float> row(static_cast<size_t>(in_features));
    for (float& value : row) value = normal_(random_);
    for (int64_t r = 0; r < out_features; ++r) {
      backend_.pack_rows(made, r, 1, row.data(), DType::kF32, 1, in_features);
    }
    return made;
  }

  void gemm(int64_t rows, int64_t out_features, int64_t in_features, DType dtype) {
    const Matrix a = matrix(rows, in_features);
    const Matrix out = matrix(rows, out_features);
    std::vector<Weight> weights;  // more than a cache holds, as in a model
    const int64_t bytes = out_features * in_features * size_of(dtype);
    for (int64_t i = 0; i < std::max<int64_t>(1, kCold / bytes); ++i) {
      weights.push_back(weight(out_features, in_features, dtype));
    }
    report("gemm", {rows, out_features, in_features}, dtype, std::ssize(weights), [&] {
      for (const Weight& w : weights) backend_.gemm(Stream::kCompute, out, a, w, nullptr);
    });
    buffers_.clear();
  }

  void head(int64_t rows, int64_t out_features, int64_t in_features) {
    const Matrix a = matrix(rows, in_features);
    const Weight w = weight(out_features, in_features, DType::kBF16);
    std::vector<MaxPair> pairs(static_cast<size_t>(rows));
    report("lm_head_max", {rows, out_features, in_features}, DType::kBF16, 1,
           [&] { backend_.lm_head_max(Stream::kCompute, pairs.data(), a, w, 0); });
    buffers_.clear();
  }

  // queries rows of each sequence, the last of context tokens. 9 heads, 3 KV heads of 64.
  void attention(int32_t sequences, int32_t queries, int32_t context) {
    constexpr int32_t kBlock = 16;
    const int32_t per_sequence = (context + kBlock - 1) / kBlock;
    const Matrix k = matrix(int64_t{sequences} * per_sequence, 3 * kBlock * 64);
    const Matrix v = matrix(int64_t{sequences} * per_sequence, 3 * kBlock * 64);
    const Matrix q = matrix(int64_t{sequences} * queries, 9 * 64);
    const Matrix out = matrix(int64_t{sequences} * queries, 9 * 64);
    std::vector<int32_t> cu;
    std::vector<int32_t> contexts(static_cast<size_t>(sequences), context);
    std::vector<int32_t> table;
    for (int32_t s = 0; s <= sequences; ++s) cu.push_back(s * queries);
    for (int32_t b = 0; b < sequences * per_sequence; ++b) table.push_back(b);
    std::shuffle(table.begin(), table.end(), random_);
    const double seconds = best_seconds([&] {
      backend_.attention(Stream::kCompute, out, q,
                         {.k = k.data,
                          .v = v.data,
                          .block_stride = 3 * kBlock * 64,
                          .head_stride = kBlock * 64,
                          .token_stride = 64,
                          .block_size = kBlock,
                          .num_kv_heads = 3,
                          .head_dim = 64},
                         {.num_sequences = sequences,
                          .num_decodes = queries == 1 ? sequences : 0,
                          .cu_seqlens_q = cu.data(),
                          .context_lens = contexts.data(),
                          .block_table = table.data(),
                          .block_table_stride = per_sequence,
                          .host_cu_seqlens_q = cu,
                          .host_context_lens = contexts},
                         {.scale = 0.125F});
    });
    const double flops = 4.0 * 9 * 64 * sequences * queries * (context - (queries - 1) / 2.0);
    const double bytes = 2.0 * 4 * 3 * 64 * sequences * context;
    fmt::print(
        "attention    {:4} x {:4} rows, context {:5}       {:9.1f} us  {:7.1f} GFLOP/s  {:6.1f} "
        "GB/s\n",
        sequences, queries, context, seconds * 1e6, flops / seconds * 1e-9, bytes / seconds * 1e-9);
    buffers_.clear();
  }

  void rows(int64_t rows) {
    const Matrix x = matrix(rows, 576);
    const Matrix residual = matrix(rows, 576);
    const Matrix gate_up = matrix(rows, 3072);
    const Matrix gated = matrix(rows, 1536);
    const Matrix qkv = matrix(rows, 960);
    const Matrix cache = matrix(rows / 16 + 2, 3 * 16 * 64);
    const std::vector<float> weight(576, 1.0F);
    const std::vector<float> rope(64 * 1024, 0.5F);
    std::vector<int32_t> slots;
    for (int32_t r = 0; r < rows; ++r) slots.push_back(r);
    const auto time = [&](const char* name, const std::function<void()>& work) {
      fmt::print("{:28} {:4} rows {:36.1f} us\n", name, rows, best_seconds(work) * 1e6);
    };
    const Stream s = Stream::kCompute;
    time("add_rms_norm",
         [&] { backend_.add_rms_norm(s, x, residual, x, 1.0F, weight.data(), 1e-5F); });
    time("gated_activation",
         [&] { backend_.gated_activation(s, gated, gate_up, Activation::kSilu); });
    time("qk_norm_rope_write_kv", [&] {
      backend_.qk_norm_rope_write_kv(s, {.qkv = qkv,
                                         .rope = {.cos_sin = rope.data(), .rotary_dim = 64},
                                         .positions = slots.data(),
                                         .slot_mapping = slots.data(),
                                         .kv = {.k = cache.data,
                                                .v = cache.data,
                                                .block_stride = 3 * 16 * 64,
                                                .head_stride = 16 * 64,
                                                .token_stride = 64,
                                                .block_size = 16,
                                                .num_kv_heads = 3,
                                                .head_dim = 64},
                                         .num_q_heads = 9});
    });
    const Matrix logits = matrix(rows, 49152);
    const std::vector<float> fresh(logits.row<float>(0), logits.row<float>(0) + rows * 49152);
    std::vector<int32_t> ids(static_cast<size_t>(rows));
    const auto draw = [&](const char* name, const SampleRow& row) {
      const std::vector<SampleRow> list(static_cast<size_t>(rows), row);
      time(name, [&] {
        std::copy(fresh.begin(), fresh.end(), logits.row<float>(0));
        backend_.sample(s, ids.data(), {.logits = logits, .rows = list.data()});
      });
    };
    draw("sample greedy (and copy)", {});
    draw("sample temperature", {.temperature = 0.8F});
    draw("sample top_k 40", {.temperature = 0.8F, .top_k = 40});
    draw("sample top_p 0.9", {.temperature = 0.8F, .top_p = 0.9F});
    buffers_.clear();
  }

 private:
  struct Shape {
    int64_t rows, out_features, in_features;
  };

  // work: count products of the shape, each with another weight.
  void report(const char* name, const Shape& s, DType dtype, int64_t count,
              const std::function<void()>& work) {
    const double operations = 2.0 * static_cast<double>(s.rows * s.out_features * s.in_features);
    const auto bytes = static_cast<double>(s.out_features * s.in_features * size_of(dtype));
    const double share = peak_.share(operations * static_cast<double>(count), work);
    const double seconds = best_seconds(work) / static_cast<double>(count);
    fmt::print(
        "{:12} M {:4}  N {:6}  K {:5}  {:8} {:9.1f} us  {:7.1f} GFLOP/s  {:5.1f} %  {:6.1f} GB/s\n",
        name, s.rows, s.out_features, s.in_features, name_of(dtype), seconds * 1e6,
        operations / seconds * 1e-9, 100.0 * share, bytes / seconds * 1e-9);
  }

  Backend& backend_;
  Peak& peak_;
  std::vector<Buffer> buffers_;
  std::mt19937 random_{1};
  std::normal_distribution<float> normal_{0.0F, 0.02F};
};

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const std::string target = argc > 2 ? argv[2] : best_simd_target();
  if (threads == 1) g_clock = CLOCK_THREAD_CPUTIME_ID;
  const auto backend = make_cpu_backend({.threads = threads, .simd_target = target});
  Peak peak(target, threads);
  double highest = 0.0;
  for (int run = 0; run < 1000; ++run) highest = std::max(highest, peak.measure());
  fmt::print(
      "{}: f32 multiply-add peak {:.1f} GFLOP/s; % is the median of runs beside the peak of "
      "that moment\n",
      backend->description(), highest * 1e-9);

  Bench bench(*backend, peak);
  for (const int64_t rows : {1, 4, 8, 14, 22, 32, 64, 96, 512}) {
    bench.gemm(rows, 960, 576, DType::kBF16);
    bench.gemm(rows, 576, 576, DType::kBF16);
    bench.gemm(rows, 3072, 576, DType::kBF16);
    bench.gemm(rows, 576, 1536, DType::kBF16);
    bench.head(rows, 49152, 576);
  }
  for (const int64_t rows : {1, 32, 128}) bench.gemm(rows, 14336, 4096, DType::kBF16);
  for (const DType dtype : {DType::kF16, DType::kF32}) bench.gemm(32, 3072, 576, dtype);
  bench.attention(32, 1, 160);
  bench.attention(96, 1, 160);
  bench.attention(8, 1, 4096);
  bench.attention(4, 128, 128);
  bench.attention(1, 512, 2048);
  for (const int64_t rows : {32, 512}) bench.rows(rows);
  return 0;
}
