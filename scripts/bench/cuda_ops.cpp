// Speed of the CUDA backend's ops at the sizes of Qwen3-0.6B and Llama-3.1-8B, each beside what
// limits it: bytes moved over the measured copy bandwidth, or multiply-adds over the measured
// product of 8192³. Build: ninja bench_cuda_ops; no arguments, or "experts" for Qwen3-30B-A3B's
// alone (and the numbers of rows), "decode" for its decode attention, "attention" for that of many
// rows, "layers" (and the numbers of rows) for the products of decode steps in their order,
// "products" (and the numbers of rows) for Llama-3.1-8B's one by one and Qwen3-0.6B's gate and up.
// Decode attention is what it adds to a product that reads 128 MB, which leaves nothing of it in
// the L2 cache, and the rotary embedding.
#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <numeric>
#include <random>

#include "lib/backend/convert.h"
#include "lib/backend/cuda_backend.h"
#include "lib/core/error.h"

using namespace mpinfer;
using namespace mpinfer::backend;

namespace {

struct Bench {
  std::unique_ptr<Backend> backend = make_cuda_backend({});
  double copy_bandwidth = 0.0;  // bytes a second, read and written
  double flops = 0.0;

  // Seconds of one call, the median of five groups.
  double time(const std::function<void()>& op, int calls = 20) {
    op();
    backend->synchronize();
    std::vector<double> seconds;
    for (int group = 0; group < 5; ++group) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < calls; ++i) op();
      backend->synchronize();
      seconds.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / calls);
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds[2];
  }

  // Seconds that op adds to a product that reads 128 MB and the op before it.
  double time_behind(const std::function<void()>& before, const std::function<void()>& op) {
    const Buffer weights = random_bf16(8192 * 8192, 0.02F);
    const Buffer x = random_bf16(16 * 8192, 1.0F);
    const Buffer out = backend->allocate(16 * 8192 * 2);
    const Weight weight = backend->make_weight(weights.data(), 8192, 8192, DType::kBF16);
    const auto lead = [&] {
      backend->gemm(Stream::kCompute, matrix(out, 16, 8192), matrix(x, 16, 8192), weight, nullptr);
      before();
    };
    const auto both = [&] {
      lead();
      op();
    };
    const double without = time(lead, 50);
    const double with = time(both, 50);
    return with - std::min(without, time(lead, 50));
  }

  Buffer random_bf16(int64_t count, float scale) {
    static std::mt19937 random(1);
    static std::vector<uint16_t> some;
    std::normal_distribution<float> normal(0.0F, 1.0F);
    if (some.empty()) {
      for (int i = 0; i < 1 << 20; ++i) some.push_back(bf16_from_float(normal(random)));
    }
    std::vector<uint16_t> scaled;
    for (const uint16_t x : some) scaled.push_back(bf16_from_float(scale * float_from_bf16(x)));
    Buffer out = backend->allocate(count * 2);
    for (int64_t at = 0; at < count; at += 1 << 20) {
      backend->upload(Stream::kCompute, static_cast<char*>(out.data()) + at * 2, scaled.data(),
                      2 * std::min<int64_t>(1 << 20, count - at));
    }
    backend->synchronize();
    return out;
  }

  void report(const std::string& name, double seconds, double bytes, double operations) const {
    const double by_bytes = bytes / copy_bandwidth;
    const double by_flops = operations / flops;
    fmt::print("{:<52} {:>9.1f} us {:>7.2f} TB/s {:>6.0f} TFLOP/s  {:>5.1f} % of its limit\n", name,
               seconds * 1e6, bytes / seconds / 1e12, operations / seconds / 1e12,
               100.0 * std::max(by_bytes, by_flops) / seconds);
    std::fflush(stdout);
  }

  Matrix matrix(const Buffer& buffer, int64_t rows, int64_t cols,
                DType dtype = DType::kBF16) const {
    return {buffer.data(), dtype, rows, cols, cols};
  }

  void ceilings() {
    const int64_t bytes = int64_t{4} << 30;
    const Buffer a = backend->allocate(bytes);
    const Buffer b = backend->allocate(bytes);
    backend->fill_bytes(Stream::kCompute, a.data(), 17, bytes);
    const double seconds = time(
        [&] {
          backend->copy(Stream::kCompute, matrix(b, 1 << 15, 1 << 16), matrix(a, 1 << 15, 1 << 16));
        },
        5);
    copy_bandwidth = 2.0 * static_cast<double>(bytes) / seconds;
    // The copy kernel is not the fastest there is: the device's own figure where it is known.
    if (backend->description().find("H200") != std::string::npos) copy_bandwidth = 4.26e12;
    if (backend->description().find("H100") != std::string::npos) copy_bandwidth = 3.0e12;
    const Buffer x = random_bf16(8192 * 8192, 1.0F);
    const Buffer w = random_bf16(8192 * 8192, 0.02F);
    const Buffer out = backend->allocate(8192 * 8192 * 2);
    const Weight weight = backend->make_weight(w.data(), 8192, 8192, DType::kBF16);
    flops = 2.0 * 8192 * 8192 * 8192 / time([&] {
              backend->gemm(Stream::kCompute, matrix(out, 8192, 8192), matrix(x, 8192, 8192),
                            weight, nullptr);
            });
    fmt::print("{}\ncopy kernel {:.2f} TB/s, limit used {:.2f}; product of 8192: {:.0f} TFLOP/s\n",
               backend->description(), 2.0 * static_cast<double>(bytes) / seconds / 1e12,
               copy_bandwidth / 1e12, flops / 1e12);
  }

  void gemm(int64_t rows, int64_t n, int64_t k) {
    const Buffer x = random_bf16(rows * k, 1.0F);
    const Buffer w = random_bf16(n * k, 0.02F);
    const Buffer out = backend->allocate(rows * n * 2);
    const Weight weight = backend->make_weight(w.data(), n, k, DType::kBF16);
    const double seconds = time([&] {
      backend->gemm(Stream::kCompute, matrix(out, rows, n), matrix(x, rows, k), weight, nullptr);
    });
    report(fmt::format("gemm {} x {} x {}", rows, n, k), seconds,
           2.0 * static_cast<double>(rows * k + n * k + rows * n),
           2.0 * static_cast<double>(rows) * static_cast<double>(n * k));
  }

  void gemm_gated(int64_t rows, int64_t n, int64_t k) {
    const Buffer x = random_bf16(rows * k, 1.0F);
    const Buffer w = random_bf16(n * k, 0.02F);
    const Buffer between = backend->allocate(rows * n * 2);
    const Buffer out = backend->allocate(rows * n);
    const Weight weight = backend->make_weight(w.data(), n, k, DType::kBF16);
    const double seconds = time([&] {
      backend->gemm_gated(Stream::kCompute, matrix(out, rows, n / 2), matrix(between, rows, n),
                          matrix(x, rows, k), weight, nullptr, Activation::kSilu);
    });
    report(fmt::format("gemm_gated {} x {} x {}", rows, n, k), seconds,
           2.0 * static_cast<double>(rows * k + n * k) + static_cast<double>(rows * n),
           2.0 * static_cast<double>(rows) * static_cast<double>(n * k));
  }

  void lm_head(int64_t rows, int64_t vocabulary, int64_t hidden) {
    const Buffer x = random_bf16(rows * hidden, 1.0F);
    const Buffer w = random_bf16(vocabulary * hidden, 0.02F);
    const Buffer out = backend->allocate(rows * 8);
    const Weight weight = backend->make_weight(w.data(), vocabulary, hidden, DType::kBF16);
    const double seconds = time([&] {
      backend->lm_head_max(Stream::kCompute, static_cast<MaxPair*>(out.data()),
                           matrix(x, rows, hidden), weight, 0);
    });
    report(fmt::format("lm_head_max {} x {} x {}", rows, vocabulary, hidden), seconds,
           2.0 * static_cast<double>(vocabulary * hidden),
           2.0 * static_cast<double>(rows) * static_cast<double>(vocabulary * hidden));
  }

  struct Layers {
    const char* model;
    size_t count;  // each with weights of its own, together more than the L2 cache holds
    int64_t hidden, qkv, attended, inner;
  };

  // What a layer of a decode step takes without attention (a norm stands in its place): norm, qkv,
  // o, norm, gate and up, down, one behind the other. They wait behind a large product, whose time
  // is taken off: the host would not launch as fast as they run.
  void layers(const Layers& model, const std::vector<int64_t>& row_counts) {
    struct Layer {
      Buffer buffers[4];
      Weight qkv, o, gate_up, down;
    };
    std::vector<Layer> all(model.count);
    double bytes = 0.0;
    for (Layer& layer : all) {
      int made = 0;
      const auto weight = [&](int64_t n, int64_t k) {
        Buffer& data = layer.buffers[made++];
        data = random_bf16(n * k, 0.02F);
        bytes += 2.0 * static_cast<double>(n * k) / static_cast<double>(model.count);
        return backend->make_weight(data.data(), n, k, DType::kBF16);
      };
      layer.qkv = weight(model.qkv, model.hidden);
      layer.o = weight(model.hidden, model.attended);
      layer.gate_up = weight(2 * model.inner, model.hidden);
      layer.down = weight(model.hidden, model.inner);
    }
    constexpr int64_t kSize = 8192;
    const Buffer big = random_bf16(kSize * kSize, 0.02F);
    const Buffer big_out = backend->allocate(kSize * kSize * 2);
    const Weight big_weight = backend->make_weight(big.data(), kSize, kSize, DType::kBF16);
    const auto hold = [&] {
      for (int i = 0; i < 2; ++i) {
        backend->gemm(Stream::kCompute, matrix(big_out, kSize, kSize), matrix(big, kSize, kSize),
                      big_weight, nullptr);
      }
    };
    const Buffer norm = backend->allocate(std::max(model.hidden, model.attended) * 4);
    backend->fill_bytes(Stream::kCompute, norm.data(), 0, norm.bytes());
    const int64_t most = *std::max_element(row_counts.begin(), row_counts.end());
    const Buffer residual = random_bf16(most * model.hidden, 1.0F);
    const Buffer x = random_bf16(most * model.hidden, 1.0F);
    const Buffer partial = random_bf16(most * model.hidden, 1.0F);
    const Buffer qkv = backend->allocate(most * model.qkv * 2);
    const Buffer attended = backend->allocate(most * model.attended * 2);
    const Buffer gate_up = backend->allocate(most * model.inner * 4);
    const Buffer activated = backend->allocate(most * model.inner * 2);
    const double holding = time(hold, 1);
    for (const int64_t rows : row_counts) {
      const Matrix out = matrix(x, rows, model.hidden);
      const Matrix sum = matrix(partial, rows, model.hidden);
      const Matrix heads = matrix(qkv, rows, model.qkv);
      const Matrix values = matrix(attended, rows, model.attended);
      const Matrix inner = matrix(activated, rows, model.inner);
      const auto add_norm = [&] {
        backend->add_rms_norm(Stream::kCompute, out, matrix(residual, rows, model.hidden), sum,
                              0.0F, norm.data(), 1e-6F);
      };
      const double seconds = time(
          [&] {
            hold();
            for (const Layer& layer : all) {
              add_norm();
              backend->gemm(Stream::kCompute, heads, out, layer.qkv, nullptr);
              Matrix queries = heads;
              queries.cols = model.attended;
              backend->rms_norm(Stream::kCompute, values, queries, norm.data(), 1e-6F);
              backend->gemm(Stream::kCompute, sum, values, layer.o, nullptr);
              add_norm();
              backend->gemm_gated(Stream::kCompute, inner, matrix(gate_up, rows, 2 * model.inner),
                                  out, layer.gate_up, nullptr, Activation::kSilu);
              backend->gemm(Stream::kCompute, sum, inner, layer.down, nullptr);
            }
          },
          1);
      report(fmt::format("layer of {}, {} rows, without attention", model.model, rows),
             (seconds - holding) / static_cast<double>(model.count), bytes,
             static_cast<double>(rows) * bytes);
    }
  }

  void rows_ops(int64_t rows, int64_t hidden, int64_t intermediate) {
    const Buffer x = random_bf16(rows * hidden, 1.0F);
    const Buffer y = random_bf16(rows * hidden, 1.0F);
    const Buffer out = backend->allocate(rows * hidden * 2);
    const Buffer norm = backend->allocate(hidden * 4);
    backend->fill_bytes(Stream::kCompute, norm.data(), 0, hidden * 4);
    double seconds = time([&] {
      backend->add_rms_norm(Stream::kCompute, matrix(out, rows, hidden), matrix(y, rows, hidden),
                            matrix(x, rows, hidden), 0.0F, norm.data(), 1e-6F);
    });
    report(fmt::format("add_rms_norm {} x {}", rows, hidden), seconds,
           8.0 * static_cast<double>(rows * hidden), 0.0);
    const Buffer gate_up = random_bf16(rows * 2 * intermediate, 1.0F);
    const Buffer activated = backend->allocate(rows * intermediate * 2);
    seconds = time([&] {
      backend->gated_activation(Stream::kCompute, matrix(activated, rows, intermediate),
                                matrix(gate_up, rows, 2 * intermediate), Activation::kSilu);
    });
    report(fmt::format("gated_activation {} x {}", rows, intermediate), seconds,
           6.0 * static_cast<double>(rows * intermediate), 0.0);
  }

  // sequences with `rows` new rows each, at the end of `context` tokens, the first `shared` of
  // which (whole blocks) all have in common; decode rows are then told so. mixed: contexts of 1/4,
  // 1/2, 1 and 9/4 of it in turn.
  void attention(int32_t sequences, int32_t rows, int32_t context, int32_t q_heads,
                 int32_t kv_heads, int32_t dim, int32_t shared = 0, bool mixed = false) {
    constexpr int32_t kBlock = 32;
    std::vector<int32_t> contexts;
    for (int32_t s = 0; s < sequences; ++s) {
      contexts.push_back(mixed ? context * std::array{1, 2, 4, 9}[static_cast<size_t>(s % 4)] / 4
                               : context);
    }
    const int32_t blocks_each =
        (*std::max_element(contexts.begin(), contexts.end()) + kBlock - 1) / kBlock;
    const int64_t blocks = int64_t{sequences} * blocks_each;
    const int64_t block_elements = int64_t{kv_heads} * kBlock * dim;
    const Buffer k = random_bf16(blocks * block_elements, 1.0F);
    const Buffer v = random_bf16(blocks * block_elements, 1.0F);
    const int64_t all = int64_t{sequences} * rows;
    const int64_t width = int64_t{q_heads + 2 * kv_heads} * dim;
    const Buffer qkv = random_bf16(all * width, 1.0F);
    const Buffer out = backend->allocate(all * q_heads * dim * 2);
    std::vector<int32_t> cu = {0};
    std::vector<int32_t> table;
    std::vector<int32_t> positions, slots;
    std::vector<int32_t> order(static_cast<size_t>(blocks));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::shuffle(order.begin(), order.end(), std::mt19937(7));
    for (int32_t s = 0; s < sequences; ++s) {
      cu.push_back(cu.back() + rows);
      for (int32_t b = 0; b < blocks_each; ++b) {
        const int32_t owner = b < shared / kBlock ? 0 : s;
        table.push_back(order[static_cast<size_t>(owner * blocks_each + b)]);
      }
      for (int32_t p = contexts[static_cast<size_t>(s)] - rows;
           p < contexts[static_cast<size_t>(s)]; ++p) {
        positions.push_back(p);
        slots.push_back(table[static_cast<size_t>(s * blocks_each + p / kBlock)] * kBlock +
                        p % kBlock);
      }
    }
    const auto device = [&](const std::vector<int32_t>& values) {
      Buffer to = backend->allocate(static_cast<int64_t>(values.size()) * 4);
      backend->upload(Stream::kCompute, to.data(), values.data(),
                      static_cast<int64_t>(values.size()) * 4);
      backend->synchronize();
      return to;
    };
    const Buffer device_cu = device(cu), device_contexts = device(contexts),
                 device_table = device(table);
    const Buffer device_positions = device(positions), device_slots = device(slots);
    std::vector<PrefixGroup> groups;
    if (rows == 1 && shared > 0) groups.push_back({0, sequences, shared, 0});
    const Buffer device_groups = device({0, sequences, shared, 0});
    const Buffer device_prefixes =
        device(std::vector<int32_t>(static_cast<size_t>(sequences), shared));
    const KvView kv{k.data(), v.data(), DType::kBF16, block_elements, int64_t{kBlock} * dim, dim,
                    kBlock,   kv_heads, dim};
    const AttentionBatch batch{
        .num_sequences = sequences,
        .num_decodes = rows == 1 ? sequences : 0,
        .cu_seqlens_q = static_cast<const int32_t*>(device_cu.data()),
        .context_lens = static_cast<const int32_t*>(device_contexts.data()),
        .block_table = static_cast<const int32_t*>(device_table.data()),
        .block_table_stride = blocks_each,
        .prefix_groups = static_cast<const PrefixGroup*>(device_groups.data()),
        .prefix_lens = static_cast<const int32_t*>(device_prefixes.data()),
        .host_prefix_groups = groups,
        .host_cu_seqlens_q = cu,
        .host_context_lens = contexts};
    const Matrix q{qkv.data(), DType::kBF16, all, int64_t{q_heads} * dim, width};
    const auto attend = [&] {
      backend->attention(Stream::kCompute, matrix(out, all, int64_t{q_heads} * dim), q, kv, batch,
                         {.scale = 0.09F});
    };
    const Buffer norm = backend->allocate(dim * 4);
    backend->fill_bytes(Stream::kCompute, norm.data(), 0, dim * 4);
    const Buffer rope =
        random_bf16(int64_t{*std::max_element(contexts.begin(), contexts.end())} * dim * 2, 0.5F);
    const auto rotate = [&] {
      backend->qk_norm_rope_write_kv(
          Stream::kCompute, {.qkv = matrix(qkv, all, width),
                             .q_norm = norm.data(),
                             .k_norm = norm.data(),
                             .norm_eps = 1e-6F,
                             .rope = {static_cast<const float*>(rope.data()), dim},
                             .positions = static_cast<const int32_t*>(device_positions.data()),
                             .slot_mapping = static_cast<const int32_t*>(device_slots.data()),
                             .kv = kv,
                             .num_q_heads = q_heads});
    };
    double seconds = rows > 1 ? time(attend) : time_behind(rotate, attend);
    double tokens = static_cast<double>(sequences) * (context - shared) + shared;
    if (mixed) tokens = std::accumulate(contexts.begin(), contexts.end(), 0.0);
    const double bytes =
        4.0 * tokens * kv_heads * dim + 4.0 * static_cast<double>(all) * q_heads * dim;
    const double pairs = static_cast<double>(all) * (context - rows / 2.0);
    const std::string common = shared > 0 ? fmt::format(", {} shared", shared)
                               : mixed    ? ", mixed"
                                          : "";
    report(fmt::format("attention {} x {} rows, context {}{}, heads {}/{}x{}", sequences, rows,
                       context, common, q_heads, kv_heads, dim),
           seconds, bytes, 4.0 * pairs * q_heads * dim);
    if (shared > 0 || mixed) return;
    seconds = time(rotate);
    report(fmt::format("qk_norm_rope_write_kv {} rows", all), seconds,
           4.0 * static_cast<double>(all * width), 0.0);
  }

  // Prompts, suffixes of prompts behind a shared prefix, decode rows behind one.
  void many_rows() {
    for (const int32_t q_heads : {16, 32}) {
      attention(1, 8192, 8192, q_heads, 8, 128);
      attention(16, 1024, 1024, q_heads, 8, 128);
      attention(64, 220, 220, q_heads, 8, 128);
      attention(64, 128, 2112, q_heads, 8, 128, 1984);
      attention(64, 1, 2112, q_heads, 8, 128, 2048);
      attention(512, 1, 2112, q_heads, 8, 128, 2048);
    }
    attention(16, 1024, 1024, 16, 8, 64);
  }

  void sample(int64_t rows, int64_t vocabulary) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0.0F, 0.65F);
    std::vector<float> row;
    for (int64_t i = 0; i < vocabulary; ++i) row.push_back(normal(random));
    const Buffer logits = backend->allocate(rows * vocabulary * 4);
    for (int64_t r = 0; r < rows; ++r) {
      backend->upload(Stream::kCompute, static_cast<char*>(logits.data()) + r * vocabulary * 4,
                      row.data(), vocabulary * 4);
    }
    const std::vector<SampleRow> params(static_cast<size_t>(rows),
                                        {.temperature = 0.8F, .top_p = 0.95F, .seed = 5});
    const Buffer device_params = backend->allocate(rows * static_cast<int64_t>(sizeof(SampleRow)));
    backend->upload(Stream::kCompute, device_params.data(), params.data(), device_params.bytes());
    const Buffer ids = backend->allocate(rows * 4);
    // The draw overwrites its logits: each is made anew, and the copy's time is taken off.
    const Buffer original = backend->allocate(rows * vocabulary * 4);
    const Matrix to = matrix(logits, rows, vocabulary, DType::kF32);
    const Matrix from = matrix(original, rows, vocabulary, DType::kF32);
    backend->copy(Stream::kCompute, from, to);
    const double copying = time([&] { backend->copy(Stream::kCompute, to, from); });
    const double seconds =
        time([&] {
          backend->copy(Stream::kCompute, to, from);
          backend->sample(
              Stream::kCompute, static_cast<int32_t*>(ids.data()),
              {.logits = to, .rows = static_cast<const SampleRow*>(device_params.data())});
        }) -
        copying;
    report(fmt::format("sample {} x {}, temperature 0.8, top_p 0.95", rows, vocabulary), seconds,
           4.0 * static_cast<double>(rows * vocabulary), 0.0);
  }

  // Router and experts of one layer; skewed: an eighth of the experts is one deviation more
  // popular.
  void experts(int64_t rows, int64_t hidden, int64_t inner, int32_t count, int32_t top_k,
               bool skewed) {
    const Buffer x = random_bf16(rows * hidden, 1.0F);
    const Buffer out = backend->allocate(rows * hidden * 2);
    const int64_t first_bytes = backend->packed_expert_bytes(2 * inner, hidden, DType::kBF16);
    const int64_t second_bytes = backend->packed_expert_bytes(hidden, inner, DType::kBF16);
    const Buffer gate_up = random_bf16(count * first_bytes / 2, 0.02F);
    const Buffer down = random_bf16(count * second_bytes / 2, 0.02F);
    const int64_t scratch_bytes =
        moe_scratch_bytes(rows, top_k, count, hidden, inner, DType::kBF16);
    const Buffer scratch = backend->allocate(scratch_bytes);
    std::mt19937 random(9);
    std::vector<float> scores(static_cast<size_t>(rows * count));
    std::normal_distribution<float> normal(0.0F, 1.0F);
    for (size_t i = 0; i < scores.size(); ++i) {
      const bool popular = i % static_cast<size_t>(count) < static_cast<size_t>(count) / 8;
      scores[i] = normal(random) + (skewed && popular ? 1.0F : 0.0F);
    }
    const Buffer logits = backend->allocate(rows * count * 4);
    backend->upload(Stream::kCompute, logits.data(), scores.data(), rows * count * 4);
    const Buffer ids = backend->allocate(rows * top_k * 4);
    const Buffer weights = backend->allocate(rows * top_k * 4);
    double seconds = time([&] {
      backend->route(Stream::kCompute, static_cast<int32_t*>(ids.data()),
                     static_cast<float*>(weights.data()), matrix(logits, rows, count, DType::kF32),
                     {.top_k = top_k, .renormalise = true});
    });
    report(fmt::format("route {} x {}", rows, count), seconds,
           4.0 * static_cast<double>(rows * count), 0.0);
    const MoeExperts args{
        .out = matrix(out, rows, hidden),
        .x = matrix(x, rows, hidden),
        .experts = static_cast<const int32_t*>(ids.data()),
        .weights = static_cast<const float*>(weights.data()),
        .top_k = top_k,
        .num_experts = count,
        .gate_up = {backend->make_expert_weight(gate_up.data(), 2 * inner, hidden, DType::kBF16),
                    first_bytes},
        .down = {backend->make_expert_weight(down.data(), hidden, inner, DType::kBF16),
                 second_bytes},
        .scratch = scratch.data(),
        .scratch_bytes = scratch_bytes};
    seconds = time([&] { backend->moe_experts(Stream::kCompute, args); });
    const double choices = static_cast<double>(rows * top_k);
    const double streamed =
        static_cast<double>(count) * static_cast<double>(first_bytes + second_bytes);
    report(fmt::format("experts {} x {} of {}, {} x {}{}", rows, top_k, count, hidden, inner,
                       skewed ? ", skewed" : ""),
           seconds, streamed + choices * 2.0 * static_cast<double>(2 * inner + 2 * hidden),
           choices * 6.0 * static_cast<double>(hidden * inner));
  }
};

}  // namespace

int main(int argc, char** argv) try {
  Bench bench;
  bench.ceilings();
  const std::string only = argc > 1 ? argv[1] : "";
  if (only == "attention" || only.empty()) bench.many_rows();
  if (only == "attention") return 0;
  if (only == "layers" || only.empty()) {
    std::vector<int64_t> rows{1, 16, 32, 64, 96, 128, 192, 256};
    if (argc > 2) rows.clear();
    for (int i = 2; i < argc; ++i) rows.push_back(std::stoll(argv[i]));
    bench.layers({"Qwen3-0.6B", 28, 1024, 4096, 2048, 3072}, rows);
    bench.layers({"Llama-3.1-8B", 4, 4096, 6144, 4096, 14336}, rows);
    if (only == "layers") return 0;
  }
  std::vector<int64_t> expert_rows{64, 256, 512, 1024, 2048, 4096, 16384};
  if (only == "products") {
    for (int i = 2; i < argc; ++i) {
      const int64_t rows = std::stoll(argv[i]);
      bench.gemm(rows, 6144, 4096);
      bench.gemm(rows, 4096, 4096);
      bench.gemm_gated(rows, 28672, 4096);
      bench.gemm(rows, 4096, 14336);
      bench.gemm_gated(rows, 6144, 1024);
    }
    return 0;
  }
  if (only == "experts" && argc > 2) {
    expert_rows.clear();
    for (int i = 2; i < argc; ++i) expert_rows.push_back(std::stoll(argv[i]));
  }
  if (only != "decode") {
    for (const int64_t rows : expert_rows) {
      for (const bool skewed : {false, true}) bench.experts(rows, 2048, 768, 128, 8, skewed);
    }
    if (only == "experts") return 0;
  }
  for (const int32_t rows : {1, 4, 8, 16, 32, 64, 100, 148, 256}) {
    for (const int32_t context : {100, 300, 600, 1100, 2500}) {
      bench.attention(rows, 1, context, 32, 4, 128);
      if (context == 600) bench.attention(rows, 1, context, 32, 4, 128, 0, true);
    }
  }
  if (only == "decode") return 0;
  for (const int32_t context : {200, 320, 420, 1100}) bench.attention(1024, 1, context, 16, 8, 128);
  bench.attention(2048, 1, 320, 16, 8, 128);
  bench.attention(256, 1, 1024, 16, 8, 128);
  bench.attention(32, 1, 2048, 16, 8, 128);
  bench.attention(1024, 1, 320, 32, 8, 128);
  bench.attention(1024, 1, 320, 8, 8, 64);
  for (const int64_t rows : {64, 256, 1024, 2048, 16384}) {
    bench.gemm(rows, 4096, 1024);
    bench.gemm(rows, 1024, 2048);
    bench.gemm(rows, 6144, 1024);
    bench.gemm(rows, 1024, 3072);
    bench.gemm(rows, 28672, 4096);
    bench.gemm(rows, 4096, 14336);
  }
  for (const int64_t rows : {16, 64, 128, 192, 256}) {
    bench.gemm_gated(rows, 6144, 1024);
    bench.gemm_gated(rows, 28672, 4096);
    bench.lm_head(rows, 151936, 1024);
    bench.lm_head(rows, 128256, 4096);
  }
  bench.lm_head(1024, 151936, 1024);
  bench.lm_head(1024, 128256, 4096);
  bench.rows_ops(1024, 1024, 3072);
  bench.rows_ops(16384, 1024, 3072);
  bench.rows_ops(1024, 4096, 14336);
  bench.rows_ops(16384, 4096, 14336);
  bench.sample(512, 151936);
} catch (const Error& error) {
  fmt::print(stderr, "{}\n", error.what());
  return static_cast<int>(error.exit_code());
}
