// GEMM and its two heads (maximum, logits) against a double-precision loop; bits of a row in any
// batch.
#include "lib/core/normal.h"
#include "tests/parity/backend_fixture.h"

namespace mpinfer::backend::parity {
namespace {

struct Shape {
  int64_t rows, out_features, in_features;
};

// [rows, out_features] = a · wᵀ
std::vector<double> product(const std::vector<float>& a, const std::vector<float>& w,
                            const Shape& s) {
  std::vector<double> out(static_cast<size_t>(s.rows * s.out_features));
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t n = 0; n < s.out_features; ++n) {
      double sum = 0.0;
      for (int64_t k = 0; k < s.in_features; ++k) {
        sum += static_cast<double>(a[static_cast<size_t>(r * s.in_features + k)]) *
               static_cast<double>(w[static_cast<size_t>(n * s.in_features + k)]);
      }
      out[static_cast<size_t>(r * s.out_features + n)] = sum;
    }
  }
  return out;
}

std::vector<float> rows_of(const std::vector<float>& values, int64_t cols, int64_t begin,
                           int64_t count) {
  return {values.begin() + begin * cols, values.begin() + (begin + count) * cols};
}

std::vector<float> run_gemm(Backend& backend, const Weight& weight, const std::vector<float>& a,
                            int64_t rows) {
  const DeviceMatrix x(backend, rows, weight.in_features, a);
  const DeviceMatrix out(backend, rows, weight.out_features, backend.activation_dtype());
  backend.gemm(Stream::kCompute, out.view(), x.view(), weight, nullptr);
  return out.read();
}

void check_gemm(Random& random, Backend& backend, const Shape& s, DType dtype) {
  CAPTURE(s.rows, s.out_features, s.in_features, name_of(dtype));
  const DType activation = backend.activation_dtype();
  const auto a = rounded(random_floats(random, s.rows * s.in_features), activation);
  const auto w = rounded(random_floats(random, s.out_features * s.in_features), dtype);
  const auto bias = random_floats(random, s.out_features);
  const PackedWeight weight(backend, s.out_features, s.in_features, dtype, w, dtype);
  std::vector<double> want = product(a, w, s);
  const double floor = std::sqrt(static_cast<double>(s.in_features));
  check_close(run_gemm(backend, weight.view(), a, s.rows), want, tolerance(backend), floor);

  const DeviceMatrix x(backend, s.rows, s.in_features, a);
  if (dtype == activation) {
    const DeviceMatrix logits(backend, s.rows, s.out_features, DType::kF32);
    backend.lm_head_logits(Stream::kCompute, logits.view(), x.view(), weight.view(), 1.0F);
    check_close(logits.read(), want, 1e-5, floor);
  }

  const DeviceMatrix out(backend, s.rows, s.out_features, activation);
  const DeviceArray<float> device_bias(backend, bias);
  backend.gemm(Stream::kCompute, out.view(), x.view(), weight.view(), device_bias.data());
  for (size_t i = 0; i < want.size(); ++i) {
    want[i] += static_cast<double>(bias[i % static_cast<size_t>(s.out_features)]);
  }
  check_close(out.read(), want, tolerance(backend), floor);
}

}  // namespace

TEST_CASE("gemm equals a double-precision loop for ragged shapes, types and bias") {
  Random random(1);
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    for (const Shape s :
         {Shape{1, 1, 1}, Shape{2, 33, 7}, Shape{3, 70, 64}, Shape{5, 64, 33}, Shape{7, 131, 48},
          Shape{14, 32, 16}, Shape{15, 31, 40}, Shape{29, 97, 65}, Shape{61, 160, 24}}) {
      for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
        check_gemm(random, *backend, s, dtype);
      }
    }
  }
}

// Sums that a GPU cuts over blocks, for each number of rows that it treats in its own way.
TEST_CASE("gemm of few rows equals a double-precision loop for deep and ragged shapes") {
  Random random(6);
  std::vector<Maker> all = {cpu_makers().back()};
  if (cuda_device_count() > 0) {
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      all.push_back({.name = fmt::format("cuda {}", name_of(dtype)),
                     .make = [dtype] { return make_cuda_backend({.activation_dtype = dtype}); }});
    }
  }
  for (const Maker& maker : all) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    for (const Shape s :
         {Shape{1, 72, 1096}, Shape{7, 1000, 64}, Shape{8, 136, 200}, Shape{16, 64, 8},
          Shape{17, 4296, 72}, Shape{33, 328, 264}, Shape{64, 64, 2056}, Shape{65, 128, 4104},
          Shape{128, 200, 136}, Shape{40, 136, 128}, Shape{3, 8712, 264}, Shape{100, 8712, 264},
          Shape{129, 72, 1032}, Shape{256, 136, 392}, Shape{257, 72, 64}}) {
      check_gemm(random, *backend, s, backend->activation_dtype());
    }
  }
}

TEST_CASE("a weight packs from any source type, in chunks and interleaved") {
  Random random(2);
  const Shape s = {.rows = 4, .out_features = 70, .in_features = 19};
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    const auto a =
        rounded(random_floats(random, s.rows * s.in_features), backend->activation_dtype());
    const auto w = random_floats(random, s.out_features * s.in_features);
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      for (const DType source : {DType::kBF16, DType::kF16, DType::kF32}) {
        const PackedWeight weight(*backend, s.out_features, s.in_features, dtype, w, source);
        check_close(run_gemm(*backend, weight.view(), a, s.rows),
                    product(a, rounded(rounded(w, source), dtype), s), tolerance(*backend), 4.0);
      }
    }

    // Even rows (gate) and odd rows (up) of the weight from two halves of the source.
    const int64_t half = s.out_features / 2;
    DeviceBytes bytes(*backend, backend->packed_bytes(s.out_features, s.in_features, DType::kF32));
    const Weight weight =
        backend->make_weight(bytes.data(), s.out_features, s.in_features, DType::kF32);
    backend->pack_rows(weight, 1, 2, w.data() + half * s.in_features, DType::kF32, half,
                       s.in_features);
    backend->pack_rows(weight, 0, 2, w.data(), DType::kF32, 20, s.in_features);
    backend->pack_rows(weight, 40, 2, w.data() + 20 * s.in_features, DType::kF32, half - 20,
                       s.in_features);
    backend->synchronize();
    bytes.check_guards();
    std::vector<float> interleaved;
    for (int64_t i = 0; i < s.out_features; ++i) {
      const int64_t row = i % 2 == 0 ? i / 2 : half + i / 2;
      const auto part = rows_of(w, s.in_features, row, 1);
      interleaved.insert(interleaved.end(), part.begin(), part.end());
    }
    check_close(run_gemm(*backend, weight, a, s.rows), product(a, interleaved, s),
                tolerance(*backend), 4.0);
  }
}

TEST_CASE("draw_rows draws a tensor's elements by place, however it is cut") {
  constexpr int64_t kRows = 70;
  constexpr int64_t kCols = 45;
  std::vector<float> whole(kRows * kCols);
  fill_normal(whole.data(), 11, 99, 0, kRows * kCols, 0.5F);
  // What a product with the unit matrix shows of a weight.
  const auto columns_of = [](Backend& backend, const Weight& weight) {
    std::vector<float> unit(static_cast<size_t>(weight.in_features * weight.in_features), 0.0F);
    for (int64_t i = 0; i < weight.in_features; ++i) {
      unit[static_cast<size_t>(i * weight.in_features + i)] = 1.0F;
    }
    return run_gemm(backend, weight, unit, weight.in_features);
  };
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    // Rows [3, 65) and columns [6, 43) to every other row; then the same piece transposed.
    for (const bool transposed : {false, true}) {
      const int64_t rows = transposed ? 37 : 62;
      const int64_t cols = transposed ? 62 : 37;
      DeviceBytes bytes(*backend, backend->packed_bytes(2 * rows, cols, DType::kF32));
      const Weight weight = backend->make_weight(bytes.data(), 2 * rows, cols, DType::kF32);
      for (const int64_t first : {0, 1}) {
        backend->draw_rows({.weight = weight,
                            .first_row = first,
                            .row_step = 2,
                            .rows = rows,
                            .seed = 11,
                            .tensor = 99,
                            .begin = 3 * kCols + 6,
                            .row_stride = transposed ? 1 : kCols,
                            .column_stride = transposed ? kCols : 1,
                            .deviation = 0.5F});
      }
      backend->synchronize();
      bytes.check_guards();
      std::vector<double> want;
      for (int64_t c = 0; c < cols; ++c) {
        for (int64_t r = 0; r < 2 * rows; ++r) {
          const int64_t row = 3 + (transposed ? c : r / 2);
          const int64_t column = 6 + (transposed ? r / 2 : c);
          want.push_back(double{whole[static_cast<size_t>(row * kCols + column)]});
        }
      }
      check_close(columns_of(*backend, weight), want, std::max(1e-4, tolerance(*backend)), 0.01);
    }
  }
}

TEST_CASE("a row of a gemm has the same bits in any batch, at any place, with any threads") {
  Random random(3);
  const Shape s = {.rows = 97, .out_features = 100, .in_features = 77};
  const auto a = random_floats(random, s.rows * s.in_features);
  const auto w = random_floats(random, s.out_features * s.in_features);
  for (const std::string& target : simd_targets()) {
    CAPTURE(target);
    const auto one = make_cpu_backend({.threads = 1, .simd_target = target});
    const PackedWeight weight(*one, s.out_features, s.in_features, DType::kBF16, w, DType::kF32);
    const auto want = run_gemm(*one, weight.view(), a, s.rows);
    const auto three = make_cpu_backend({.threads = 3, .simd_target = target});
    REQUIRE(run_gemm(*three, weight.view(), a, s.rows) == want);
    for (const int64_t count : {1, 2, 3, 5, 8, 13, 14, 15, 28, 31, 64}) {
      for (const int64_t begin : {int64_t{0}, int64_t{11}, s.rows - count}) {
        CAPTURE(count, begin);
        const auto part = rows_of(a, s.in_features, begin, count);
        REQUIRE(run_gemm(*one, weight.view(), part, count) ==
                rows_of(want, s.out_features, begin, count));
      }
    }
  }
}

TEST_CASE("a row of a deterministic gemm on a GPU has the same bits in any batch") {
  if (cuda_device_count() == 0) {
    WARN("no CUDA device: deterministic products are skipped");
    return;
  }
  Random random(7);
  const Shape s = {.rows = 256, .out_features = 256, .in_features = 2048};
  const auto a = random_floats(random, s.rows * s.in_features);
  const auto w = random_floats(random, s.out_features * s.in_features);
  const auto backend = make_cuda_backend({.deterministic = true});
  const PackedWeight weight(*backend, s.out_features, s.in_features, DType::kBF16, w, DType::kF32);
  const auto want = run_gemm(*backend, weight.view(), a, s.rows);
  for (const int64_t count : {1, 7, 16, 33, 64, 100, 128}) {
    const int64_t begin = s.rows - count;
    CAPTURE(count);
    REQUIRE(run_gemm(*backend, weight.view(), rows_of(a, s.in_features, begin, count), count) ==
            rows_of(want, s.out_features, begin, count));
  }
}

TEST_CASE("a deep gemm is cut into pieces of rows without changing a bit") {
  Random random(4);
  const Shape s = {.rows = 300, .out_features = 40, .in_features = 2500};
  const auto a = random_floats(random, s.rows * s.in_features);
  const auto w = random_floats(random, s.out_features * s.in_features);
  const auto backend = make_cpu_backend({.threads = 2});
  const PackedWeight weight(*backend, s.out_features, s.in_features, DType::kBF16, w, DType::kF32);
  const auto all = run_gemm(*backend, weight.view(), a, s.rows);
  for (const int64_t row : {0, 104, 105, 151, 299}) {
    REQUIRE(run_gemm(*backend, weight.view(), rows_of(a, s.in_features, row, 1), 1) ==
            rows_of(all, s.out_features, row, 1));
  }
}

TEST_CASE("lm_head_logits scales, lm_head_max finds the lowest id of the largest logit") {
  Random random(5);
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    for (const Shape s : {Shape{1, 1, 8}, Shape{3, 31, 16}, Shape{37, 333, 40}, Shape{2, 4097, 24},
                          Shape{150, 1000, 72}, Shape{256, 17000, 8}, Shape{200, 16890, 8},
                          Shape{90, 14780, 8}, Shape{258, 400, 16}}) {
      CAPTURE(s.rows, s.out_features);
      const auto x = rounded(random_floats(random, s.rows * s.in_features), DType::kBF16);
      auto w = rounded(random_floats(random, s.out_features * s.in_features), DType::kBF16);
      // The last row of the weight repeats another: a tie of bits wherever that one wins.
      const auto twin = rows_of(w, s.in_features, s.out_features / 2, 1);
      std::copy(twin.begin(), twin.end(), w.end() - s.in_features);
      const PackedWeight weight(*backend, s.out_features, s.in_features, DType::kBF16, w,
                                DType::kBF16);
      const DeviceMatrix input(*backend, s.rows, s.in_features, x);
      const DeviceMatrix logits(*backend, s.rows, s.out_features, DType::kF32);
      backend->lm_head_logits(Stream::kCompute, logits.view(), input.view(), weight.view(), 0.5F);
      const auto got = logits.read();
      auto want = product(x, w, s);
      for (double& value : want) value *= 0.5;
      check_close(got, want, 1e-5, 6.0);

      const DeviceArray<MaxPair> pairs(*backend, std::vector<MaxPair>(static_cast<size_t>(s.rows)));
      backend->lm_head_max(Stream::kCompute, pairs.data(), input.view(), weight.view(), 1000);
      const auto best = pairs.read();
      for (int64_t r = 0; r < s.rows; ++r) {
        const auto row = rows_of(got, s.out_features, r, 1);
        const auto top = std::max_element(row.begin(), row.end());
        REQUIRE(best[static_cast<size_t>(r)].id == 1000 + static_cast<int32_t>(top - row.begin()));
        REQUIRE(best[static_cast<size_t>(r)].value == Approx(2.0 * static_cast<double>(*top)));
      }
    }
  }
}

TEST_CASE("lm_head_max marks a row with a NaN anywhere and no other row") {
  Random random(6);
  const int64_t in_features = GENERATE(12, 16);  // 16: a kernel of its own for few rows
  for (const Maker& maker : makers()) {
    const Shape s = {.rows = 20, .out_features = 75, .in_features = in_features};
    const auto backend = maker.make();
    CAPTURE(maker.name, in_features);
    auto x = rounded(random_floats(random, s.rows * s.in_features), DType::kBF16);
    auto w = rounded(random_floats(random, s.out_features * s.in_features), DType::kBF16);
    x[static_cast<size_t>(4 * s.in_features + 3)] = std::nanf("");
    const PackedWeight weight(*backend, s.out_features, s.in_features, DType::kBF16, w,
                              DType::kBF16);
    const DeviceMatrix input(*backend, s.rows, s.in_features, x);
    const DeviceArray<MaxPair> pairs(*backend, std::vector<MaxPair>(static_cast<size_t>(s.rows)));
    backend->lm_head_max(Stream::kCompute, pairs.data(), input.view(), weight.view(), 0);
    const auto best = pairs.read();
    for (int64_t r = 0; r < s.rows; ++r) {
      CHECK((best[static_cast<size_t>(r)].id < 0) == (r == 4));
    }

    // One NaN logit, in the last, ragged panel.
    w[static_cast<size_t>((s.out_features - 1) * s.in_features)] = std::nanf("");
    const PackedWeight broken(*backend, s.out_features, s.in_features, DType::kBF16, w,
                              DType::kBF16);
    backend->lm_head_max(Stream::kCompute, pairs.data(), input.view(), broken.view(), 0);
    for (const MaxPair& pair : pairs.read()) CHECK(pair.id == -1);
  }
}

TEST_CASE("merge_max takes the largest part, the lower id of equals, and -1 for a NaN") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    const DeviceArray<MaxPair> parts(*backend, {{1.0F, 5},
                                                {2.0F, 7},
                                                {3.0F, 2},
                                                {9.0F, 1},  //
                                                {4.0F, 9},
                                                {2.0F, 6},
                                                {3.0F, -1},
                                                {-1.0F, 3},  //
                                                {2.0F, 8},
                                                {1.0F, 1},
                                                {7.0F, 4},
                                                {8.0F, 2}});
    const DeviceArray<int32_t> ids(*backend, {0, 0, 0, 0});
    backend->merge_max(Stream::kCompute, ids.data(), parts.data(), 3, 4);
    CHECK(ids.read() == std::vector<int32_t>{9, 6, -1, 1});
  }
}

}  // namespace mpinfer::backend::parity
