// Ops on rows (embedding, norms, rotary and KV write, gates, copies, slots) against
// double-precision loops.
#include "tests/parity/backend_fixture.h"

namespace mpinfer::backend::parity {
namespace {

struct Norm {
  int64_t rows, cols;
};

double rms(const std::vector<double>& x, double eps) {
  double sum = 0.0;
  for (const double value : x) sum += value * value;
  return std::sqrt(sum / static_cast<double>(x.size()) + eps);
}

// Row-wise norm of x [rows, cols] times weight.
std::vector<double> normed(const std::vector<double>& x, const std::vector<float>& weight,
                           int64_t cols, double eps) {
  std::vector<double> out;
  for (size_t begin = 0; begin < x.size(); begin += static_cast<size_t>(cols)) {
    const std::vector<double> row(x.begin() + static_cast<int64_t>(begin),
                                  x.begin() + static_cast<int64_t>(begin) + cols);
    const double divisor = rms(row, eps);
    for (size_t i = 0; i < row.size(); ++i) {
      out.push_back(row[i] / divisor * static_cast<double>(weight[i]));
    }
  }
  return out;
}

double activated(double x, Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return 0.5 * x *
             (1.0 +
              std::tanh(std::sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case Activation::kClampedSwiglu:  // of moe_experts alone
      break;
  }
  return 0.0;
}

}  // namespace

TEST_CASE("embedding reads rows of the packed table, zeros outside the local part") {
  Random random(21);
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      const int64_t vocabulary = 75;
      const int64_t cols = 53;
      const auto table = rounded(random_floats(random, vocabulary * cols), dtype);
      const PackedWeight weight(*backend, vocabulary, cols, dtype, table, dtype);
      std::vector<int32_t> list = {100, 174, 99, 175, 133, 133, 0, -1, 2147483647};
      for (int32_t i = 0; i < 60; ++i) list.push_back(100 + i);
      const DeviceArray<int32_t> ids(*backend, list);
      const auto rows = static_cast<int64_t>(list.size());
      const DeviceMatrix out(*backend, rows, cols, backend->activation_dtype());
      backend->embedding(Stream::kCompute, out.view(), weight.view(), ids.data(), 100, 3.0F);
      std::vector<double> want;
      for (const int32_t id : list) {
        for (int64_t c = 0; c < cols; ++c) {
          const bool local = id >= 100 && id < 175;
          want.push_back(
              local ? 3.0 * static_cast<double>(table[static_cast<size_t>((id - 100) * cols + c)])
                    : 0.0);
        }
      }
      check_close(out.read(), want, tolerance(*backend), 0.0);
    }
  }
}

TEST_CASE("norms, also in place and with the residual added, for ragged widths") {
  Random random(22);
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    const DType dtype = backend->activation_dtype();
    CAPTURE(maker.name);
    for (const Norm n :
         {Norm{1, 1}, Norm{3, 7}, Norm{2, 64}, Norm{5, 65}, Norm{70, 576}, Norm{9, 1023}}) {
      CAPTURE(n.rows, n.cols);
      const auto x = rounded(random_floats(random, n.rows * n.cols, 2.0F), dtype);
      const auto r = rounded(random_floats(random, n.rows * n.cols, 5.0F), dtype);
      const auto w = random_floats(random, n.cols);
      const DeviceArray<float> weight(*backend, w);
      const DeviceMatrix out(*backend, n.rows, n.cols, dtype);
      const DeviceMatrix in(*backend, n.rows, n.cols, x);
      const DeviceMatrix residual(*backend, n.rows, n.cols, r);
      backend->rms_norm(Stream::kCompute, out.view(), in.view(), weight.data(), 1e-5F);
      check_close(out.read(), normed(doubles(x), w, n.cols, 1e-5), tolerance(*backend));

      std::vector<double> sum = doubles(r);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += 0.25 * static_cast<double>(x[i]);
      backend->add_rms_norm(Stream::kCompute, out.view(), residual.view(), in.view(), 0.25F,
                            weight.data(), 1e-6F);
      check_close(residual.read(), sum, tolerance(*backend));
      check_close(out.read(), normed(sum, w, n.cols, 1e-6), 2.0 * tolerance(*backend));

      residual.view();
      DeviceMatrix again(*backend, n.rows, n.cols, r);
      backend->add_rms_norm(Stream::kCompute, in.view(), again.view(), in.view(), 0.25F,
                            weight.data(), 1e-6F);
      check_close(in.read(), normed(sum, w, n.cols, 1e-6), 2.0 * tolerance(*backend));
      again.write(r);
      const DeviceMatrix addend(*backend, n.rows, n.cols, x);
      backend->add(Stream::kCompute, again.view(), addend.view(), 0.25F);
      check_close(again.read(), sum, tolerance(*backend));
    }
  }
}

TEST_CASE("a row's norm has the same bits in any batch") {
  Random random(23);
  const int64_t rows = 200;
  const int64_t cols = 99;
  const auto x = random_floats(random, rows * cols);
  const auto w = random_floats(random, cols);
  for (const std::string& target : simd_targets()) {
    std::vector<float> want;
    for (const int threads : {1, 4}) {
      const auto backend = make_cpu_backend({.threads = threads, .simd_target = target});
      const DeviceArray<float> weight(*backend, w);
      const DeviceMatrix in(*backend, rows, cols, x);
      const DeviceMatrix out(*backend, rows, cols, DType::kF32);
      backend->rms_norm(Stream::kCompute, out.view(), in.view(), weight.data(), 1e-5F);
      const auto got = out.read();
      if (want.empty()) want = got;
      REQUIRE(got == want);
      backend->rms_norm(Stream::kCompute, out.view().slice_rows(3, 1), in.view().slice_rows(77, 1),
                        weight.data(), 1e-5F);
      const auto one = out.read();
      for (size_t c = 0; c < static_cast<size_t>(cols); ++c) {
        REQUIRE(one[3 * static_cast<size_t>(cols) + c] == want[77 * static_cast<size_t>(cols) + c]);
      }
    }
  }
}

TEST_CASE("qk_norm_rope_write_kv norms, rotates and writes k and v; padding rows are left alone") {
  struct Rope {
    int32_t q, kv, head_dim, rotary, block_size;
    bool norm;
    int64_t rows = 37;
  };
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    const DType dtype = backend->activation_dtype();
    CAPTURE(maker.name);
    Random random(24);
    for (const Rope c :
         {Rope{9, 3, 64, 64, 16, false}, Rope{4, 2, 128, 128, 32, true}, Rope{2, 1, 24, 8, 4, true},
          Rope{3, 3, 80, 20, 5, false}, Rope{2, 2, 64, 0, 16, true},
          Rope{8, 4, 64, 64, 16, true, 1025}, Rope{4, 4, 128, 128, 16, false, 1100}}) {
      CAPTURE(c.q, c.kv, c.head_dim, c.rotary, c.rows);
      const int64_t rows = c.rows;
      const int64_t n = c.head_dim;
      const int64_t cols = (c.q + 2 * c.kv) * n;
      const int64_t positions = 100;
      const auto x = rounded(random_floats(random, rows * cols), dtype);
      const auto q_norm = random_floats(random, n);
      const auto k_norm = random_floats(random, n);
      const auto table = random_floats(random, std::max<int64_t>(positions * c.rotary, 1));
      std::vector<int32_t> at;
      std::vector<int32_t> slots;
      const int64_t blocks = (rows + c.block_size - 1) / c.block_size + 1;
      for (int32_t r = 0; r < rows; ++r) {
        at.push_back(static_cast<int32_t>(random() % positions));
        slots.push_back(
            r % 7 == 3 ? -1 : (r + c.block_size) % static_cast<int32_t>(blocks * c.block_size));
      }
      const int64_t block_floats = c.kv * c.block_size * n;
      const std::vector<float> old(static_cast<size_t>(blocks * block_floats), 77.0F);
      DeviceMatrix k(*backend, blocks, block_floats, dtype, 0);
      DeviceMatrix v(*backend, blocks, block_floats, dtype, 0);
      k.write(old);
      v.write(old);
      const DeviceMatrix qkv(*backend, rows, cols, x);
      const DeviceArray<float> dq(*backend, q_norm);
      const DeviceArray<float> dk(*backend, k_norm);
      const DeviceArray<float> cos_sin(*backend, table);
      const DeviceArray<int32_t> dat(*backend, at);
      const DeviceArray<int32_t> dslots(*backend, slots);
      backend->qk_norm_rope_write_kv(
          Stream::kCompute,
          {.qkv = qkv.view(),
           .q_norm = c.norm ? dq.data() : nullptr,
           .k_norm = c.norm ? dk.data() : nullptr,
           .norm_eps = 1e-6F,
           .rope = {.cos_sin = c.rotary > 0 ? cos_sin.data() : nullptr, .rotary_dim = c.rotary},
           .positions = dat.data(),
           .slot_mapping = dslots.data(),
           .kv = {.k = k.view().data,
                  .v = v.view().data,
                  .dtype = dtype,
                  .block_stride = block_floats,
                  .head_stride = c.block_size * n,
                  .token_stride = n,
                  .block_size = c.block_size,
                  .num_kv_heads = c.kv,
                  .head_dim = c.head_dim},
           .num_q_heads = c.q});
      const auto got = qkv.read();
      std::vector<double> want_k = doubles(old);
      std::vector<double> want_v = want_k;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t slot = slots[static_cast<size_t>(r)];
        if (slot < 0) continue;
        for (int64_t h = 0; h < c.q + 2 * c.kv; ++h) {
          std::vector<double> head(static_cast<size_t>(n));
          for (int64_t d = 0; d < n; ++d) {
            head[static_cast<size_t>(d)] =
                static_cast<double>(x[static_cast<size_t>(r * cols + h * n + d)]);
          }
          if (h < c.q + c.kv) {
            if (c.norm) head = normed(head, h < c.q ? q_norm : k_norm, n, 1e-6);
            const int64_t half = c.rotary / 2;
            for (int64_t d = 0; d < half; ++d) {
              const float* row = table.data() + at[static_cast<size_t>(r)] * c.rotary;
              const auto cosine = static_cast<double>(row[d]);
              const auto sine = static_cast<double>(row[half + d]);
              const double a = head[static_cast<size_t>(d)];
              const double b = head[static_cast<size_t>(d + half)];
              head[static_cast<size_t>(d)] = a * cosine - b * sine;
              head[static_cast<size_t>(d + half)] = b * cosine + a * sine;
            }
          }
          if (h < c.q) {
            const auto begin = got.begin() + r * cols + h * n;
            check_close({begin, begin + n}, head, tolerance(*backend), 2.0);
            continue;
          }
          const bool is_key = h < c.q + c.kv;
          const int64_t token = slot % c.block_size;
          const int64_t piece =
              slot / c.block_size * block_floats + (h - c.q) % c.kv * c.block_size * n;
          for (int64_t d = 0; d < n; ++d) {
            const int64_t inside =
                is_key ? key_offset(*backend, token, d, c.block_size, n) : token * n + d;
            (is_key ? want_k : want_v)[static_cast<size_t>(piece + inside)] =
                head[static_cast<size_t>(d)];
          }
        }
      }
      check_close(k.read(), want_k, tolerance(*backend), 2.0);
      check_close(v.read(), want_v, tolerance(*backend), 2.0);
    }
  }
}

TEST_CASE("gated activations over interleaved gate and up, from large negative to large positive") {
  Random random(25);
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    const DType dtype = backend->activation_dtype();
    CAPTURE(maker.name);
    for (const int64_t cols : {1, 15, 64, 101, 1536}) {
      const int64_t rows = 6;
      auto x = random_floats(random, rows * 2 * cols, 4.0F);
      x[0] = -200.0F;
      x.back() = 200.0F;
      x[x.size() - 2] = 90.0F;
      x = rounded(x, dtype);
      const DeviceMatrix in(*backend, rows, 2 * cols, x);
      const DeviceMatrix out(*backend, rows, cols, dtype);
      for (const Activation a : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
        backend->gated_activation(Stream::kCompute, out.view(), in.view(), a);
        std::vector<double> want;
        for (size_t i = 0; i < x.size(); i += 2) {
          want.push_back(activated(static_cast<double>(x[i]), a) * static_cast<double>(x[i + 1]));
        }
        check_close(out.read(), want, tolerance(*backend));
      }
    }
  }
}

TEST_CASE("gemm_gated equals a product, a bias and a gate, for few rows and many") {
  Random random(28);
  struct Shape {
    int64_t rows, cols, in_features;  // of the result; of the rows
  };
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    const DType dtype = backend->activation_dtype();
    CAPTURE(maker.name);
    // Columns in eights take the kernels that finish what they compute: of few rows, tiles of 64,
    // 96, 112 and 128 columns; of many (the last three, for a device alone), tiles that are whole
    // and tiles that are cut.
    for (const Shape s :
         {Shape{1, 4, 8}, Shape{1, 8, 8}, Shape{17, 35, 24}, Shape{64, 104, 200}, Shape{65, 32, 19},
          Shape{150, 80, 72}, Shape{256, 264, 136}, Shape{256, 16, 456}, Shape{20, 6336, 8},
          Shape{20, 8448, 8}, Shape{70, 14336, 8}, Shape{257, 64, 64}, Shape{129, 8456, 264},
          Shape{250, 8712, 72}, Shape{1030, 3400, 72}}) {
      if (s.rows * s.cols > int64_t{1} << 20 && maker.name.starts_with("cpu")) continue;
      const auto x = rounded(random_floats(random, s.rows * s.in_features), dtype);
      const auto w = rounded(random_floats(random, 2 * s.cols * s.in_features, 0.2F), dtype);
      const auto bias = random_floats(random, 2 * s.cols);
      std::vector<double> sums;  // [rows, 2 * cols]
      for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t n = 0; n < 2 * s.cols; ++n) {
          double total = 0.0;
          for (int64_t k = 0; k < s.in_features; ++k) {
            total += static_cast<double>(x[static_cast<size_t>(r * s.in_features + k)]) *
                     static_cast<double>(w[static_cast<size_t>(n * s.in_features + k)]);
          }
          sums.push_back(total);
        }
      }
      const PackedWeight weight(*backend, 2 * s.cols, s.in_features, dtype, w, dtype);
      const DeviceMatrix in(*backend, s.rows, s.in_features, x);
      const DeviceMatrix between(*backend, s.rows, 2 * s.cols, dtype);
      const DeviceMatrix out(*backend, s.rows, s.cols, dtype);
      const DeviceArray<float> device_bias(*backend, bias);
      for (const Activation a : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
        for (const bool biased : {false, true}) {
          CAPTURE(s.rows, s.cols, s.in_features, static_cast<int>(a), biased);
          backend->gemm_gated(Stream::kCompute, out.view(), between.view(), in.view(),
                              weight.view(), biased ? device_bias.data() : nullptr, a);
          std::vector<double> want;
          for (size_t i = 0; i < sums.size(); i += 2) {
            const size_t column = i % static_cast<size_t>(2 * s.cols);
            const auto with_bias = [&](size_t at) {
              return sums[i + at] + (biased ? static_cast<double>(bias[column + at]) : 0.0);
            };
            want.push_back(activated(with_bias(0), a) * with_bias(1));
          }
          check_close(out.read(), want, tolerance(*backend), 4.0);
        }
      }
    }
  }
}

// Of 132 processors: 66 tiles of 256 outputs, one for each cluster, or 67, which are cut; several
// tiles of rows, of which the first are cut and the others whole. Each goes round its ring of
// stages several times.
TEST_CASE("gemm_gated of many rows, in tiles that are whole and tiles that are cut") {
  if (cuda_device_count() == 0) {
    WARN("no CUDA device: skipped");
    return;
  }
  Random random(29);
  constexpr int64_t kInner = 1032;
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const auto backend = make_cuda_backend({.activation_dtype = dtype});
    for (const int64_t cols : {8448, 8456}) {
      const auto w = rounded(random_floats(random, 2 * cols * kInner, 0.05F), dtype);
      const auto bias = random_floats(random, 2 * cols);
      const PackedWeight weight(*backend, 2 * cols, kInner, dtype, w, dtype);
      const DeviceArray<float> device_bias(*backend, bias);
      for (const int64_t rows : {129, 150, 165, 190, 200, 220, 230, 256, 1025, 1400}) {
        CAPTURE(name_of(dtype), rows, cols);
        const auto x = rounded(random_floats(random, rows * kInner), dtype);
        const DeviceMatrix in(*backend, rows, kInner, x);
        const DeviceMatrix between(*backend, rows, 2 * cols, dtype);
        const DeviceMatrix out(*backend, rows, cols, dtype);
        backend->gemm_gated(Stream::kCompute, out.view(), between.view(), in.view(), weight.view(),
                            device_bias.data(), Activation::kSilu);
        const auto all = out.read();
        std::vector<float> got;
        std::vector<double> want;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = r % 97; c < cols; c += 97) {
            const auto sum = [&](int64_t n) {
              double total = bias[static_cast<size_t>(n)];
              for (int64_t k = 0; k < kInner; ++k) {
                total += static_cast<double>(x[static_cast<size_t>(r * kInner + k)]) *
                         static_cast<double>(w[static_cast<size_t>(n * kInner + k)]);
              }
              return total;
            };
            got.push_back(all[static_cast<size_t>(r * cols + c)]);
            want.push_back(activated(sum(2 * c), Activation::kSilu) * sum(2 * c + 1));
          }
        }
        check_close(got, want, tolerance(*backend), 4.0);
      }
    }
  }
}

TEST_CASE("gather_rows, copy, fill and slots") {
  Random random(26);
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    const DType dtype = backend->activation_dtype();
    CAPTURE(maker.name);
    const auto x = rounded(random_floats(random, 12 * 37), dtype);
    const DeviceMatrix in(*backend, 12, 37, x);
    const DeviceMatrix out(*backend, 5, 37, dtype);
    const std::vector<int32_t> rows = {11, 0, 3, 3, 7};
    const DeviceArray<int32_t> device_rows(*backend, rows);
    backend->gather_rows(Stream::kCompute, out.view(), in.view(), device_rows.data());
    const auto got = out.read();
    for (size_t r = 0; r < rows.size(); ++r) {
      for (size_t c = 0; c < 37; ++c) {
        REQUIRE(got[r * 37 + c] == x[static_cast<size_t>(rows[r]) * 37 + c]);
      }
    }
    for (const DType to : {DType::kF32, DType::kBF16, DType::kF16}) {
      const DeviceMatrix converted(*backend, 12, 37, to);
      backend->copy(Stream::kCompute, converted.view(), in.view());
      REQUIRE(converted.read() == rounded(x, to));
      const DeviceMatrix back(*backend, 12, 37, DType::kF32);
      backend->copy(Stream::kCompute, back.view(), converted.view());
      REQUIRE(back.read() == rounded(x, to));
      backend->fill(Stream::kCompute, converted.view(), -1.5F);
      REQUIRE(converted.read() == std::vector<float>(12 * 37, -1.5F));
    }
    const DeviceArray<int32_t> ids(*backend, {5, 6, 7, 8});
    const DeviceArray<int32_t> last(*backend, {100, 101, 102});
    const DeviceArray<int32_t> slots(*backend, {2, -1, 0, -1});
    backend->gather_slots(Stream::kCompute, ids.data(), last.data(), slots.data(), 4);
    CHECK(ids.read() == std::vector<int32_t>{102, 6, 100, 8});
    const DeviceArray<int32_t> drawn(*backend, {1, 2, 3, 4});
    backend->scatter_slots(Stream::kCompute, last.data(), drawn.data(), slots.data(), 4);
    CHECK(last.read() == std::vector<int32_t>{3, 101, 1});
  }
}

TEST_CASE("accumulate adds every element type") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      std::vector<float> a(103);
      std::vector<float> b(103);
      std::vector<float> sum(103);
      for (size_t i = 0; i < a.size(); ++i) {
        a[i] = static_cast<float>(i % 50);
        b[i] = -2.0F * static_cast<float>(i % 13);
        sum[i] = a[i] + b[i];
      }
      DeviceMatrix out(*backend, 1, 103, dtype);
      DeviceMatrix in(*backend, 1, 103, dtype);
      out.write(a);
      in.write(b);
      backend->accumulate(Stream::kCompute, out.view().data, in.view().data, dtype, 103);
      CHECK(out.read() == sum);
    }
    const DeviceArray<int32_t> out(*backend, {1, -2, 3});
    const DeviceArray<int32_t> in(*backend, {10, 20, 30});
    backend->accumulate(Stream::kCompute, out.data(), in.data(), DType::kI32, 3);
    CHECK(out.read() == std::vector<int32_t>{11, 18, 33});
  }
}

TEST_CASE("empty batches are no work") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    const DType dtype = backend->activation_dtype();
    const PackedWeight weight(*backend, 8, 8, DType::kF32, std::vector<float>(64, 1.0F),
                              DType::kF32);
    const DeviceMatrix none(*backend, 0, 8, dtype);
    const DeviceMatrix logits(*backend, 0, 8, DType::kF32);
    const DeviceArray<float> norm(*backend, std::vector<float>(8, 1.0F));
    const DeviceArray<int32_t> ids(*backend, {0});
    const DeviceArray<MaxPair> pairs(*backend, {{}});
    backend->embedding(Stream::kCompute, none.view(), weight.view(), ids.data(), 0, 1.0F);
    backend->rms_norm(Stream::kCompute, none.view(), none.view(), norm.data(), 1e-5F);
    backend->gemm(Stream::kCompute, none.view(), none.view(), weight.view(), nullptr);
    backend->lm_head_max(Stream::kCompute, pairs.data(), none.view(), weight.view(), 0);
    backend->lm_head_logits(Stream::kCompute, logits.view(), none.view(), weight.view(), 1.0F);
    backend->synchronize();
    SUCCEED();
  }
}

}  // namespace mpinfer::backend::parity
