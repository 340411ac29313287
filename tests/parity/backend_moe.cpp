// The fused experts against plain double-precision loops: all activations, biases, a rank's share
// of experts, skewed and empty experts, bits of a row.
#include <algorithm>
#include <array>
#include <numeric>

#include "tests/parity/backend_fixture.h"

namespace mpinfer::backend::parity {
namespace {

struct Shape {
  int64_t rows, hidden, intermediate, experts;
  int32_t top_k;
};

struct Model {  // row-major values as the device holds them
  std::vector<float> gate_up, down, gate_up_bias, down_bias;
};

Model random_model(Random& random, const Shape& s, DType dtype) {
  const float scale = 1.0F / std::sqrt(static_cast<float>(s.hidden));
  return {rounded(random_floats(random, s.experts * 2 * s.intermediate * s.hidden, scale), dtype),
          rounded(random_floats(random, s.experts * s.hidden * s.intermediate, scale), dtype),
          random_floats(random, s.experts * 2 * s.intermediate),
          random_floats(random, s.experts * s.hidden)};
}

double activate(Activation activation, double gate, double up) {
  switch (activation) {
    case Activation::kSilu:
      return up * gate / (1.0 + std::exp(-gate));
    case Activation::kGelu:
      return up * 0.5 * gate * (1.0 + std::erf(gate / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return up * 0.5 * gate *
             (1.0 + std::tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)));
    case Activation::kClampedSwiglu: {
      const double g = std::min(gate, 7.0);
      return (std::clamp(up, -7.0, 7.0) + 1.0) * g / (1.0 + std::exp(-1.702 * g));
    }
  }
  return 0.0;
}

struct Part {  // of the experts
  int32_t first, count;
};

std::vector<double> expected(const Shape& s, const Model& m, const std::vector<float>& x,
                             const std::vector<int32_t>& experts, const std::vector<float>& weights,
                             Part part, bool biased, Activation activation) {
  const auto at = [](const std::vector<float>& v, int64_t i) {
    return double{v[static_cast<size_t>(i)]};
  };
  std::vector<double> out(static_cast<size_t>(s.rows * s.hidden), 0.0);
  std::vector<double> inner(static_cast<size_t>(s.intermediate));
  for (int64_t c = 0; c < s.rows * s.top_k; ++c) {
    const int64_t e = experts[static_cast<size_t>(c)];
    if (e < part.first || e >= part.first + part.count) continue;
    const int64_t row = c / s.top_k;
    for (int64_t i = 0; i < s.intermediate; ++i) {
      double sums[2];
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t n = e * 2 * s.intermediate + 2 * i + half;
        sums[half] = biased ? at(m.gate_up_bias, n) : 0.0;
        for (int64_t k = 0; k < s.hidden; ++k) {
          sums[half] += at(x, row * s.hidden + k) * at(m.gate_up, n * s.hidden + k);
        }
      }
      inner[static_cast<size_t>(i)] = activate(activation, sums[0], sums[1]);
    }
    for (int64_t n = 0; n < s.hidden; ++n) {
      double sum = biased ? at(m.down_bias, e * s.hidden + n) : 0.0;
      for (int64_t i = 0; i < s.intermediate; ++i) {
        sum += inner[static_cast<size_t>(i)] * at(m.down, (e * s.hidden + n) * s.intermediate + i);
      }
      out[static_cast<size_t>(row * s.hidden + n)] += at(weights, c) * sum;
    }
  }
  return out;
}

// The experts [first, first + count) of values [experts, rows, cols], packed.
class PackedExperts {
 public:
  PackedExperts(Backend& backend, Part part, int64_t rows, int64_t cols, DType dtype,
                const std::vector<float>& values)
      : stride_((backend.packed_expert_bytes(rows, cols, dtype) + 255) / 256 * 256),
        bytes_(backend, stride_ * part.count) {
    view_ = {.first = backend.make_expert_weight(bytes_.data(), rows, cols, dtype),
             .stride_bytes = stride_};
    for (int32_t e = 0; e < part.count; ++e) {
      const Weight one = backend.make_expert_weight(view_.at(e).data, rows, cols, dtype);
      const float* from = values.data() + (part.first + e) * rows * cols;
      const int64_t half = rows / 2;  // in two chunks, as a loader would
      backend.pack_rows(one, half, 1, from + half * cols, DType::kF32, rows - half, cols);
      backend.pack_rows(one, 0, 1, from, DType::kF32, half, cols);
    }
    backend.synchronize();
    bytes_.check_guards();
  }
  const WeightStack& view() const { return view_; }

 private:
  int64_t stride_;
  DeviceBytes bytes_;
  WeightStack view_;
};

struct Case {
  Shape shape;
  Part part;
  bool biased = false;
  Activation activation = Activation::kSilu;
};

// What follows in the same op is what the ops for it do with the rows that came out; normed may be
// x.
void check_added(Backend& backend, const Shape& s, MoeExperts args, DeviceMatrix& in,
                 const std::vector<float>& x) {
  Random random(7);
  const std::vector<float> before =
      rounded(random_floats(random, s.rows * s.hidden), backend.activation_dtype());
  const DeviceArray<float> norm(backend, random_floats(random, s.hidden));
  for (const void* weight :
       {static_cast<const void*>(norm.data()), static_cast<const void*>(nullptr)}) {
    const DeviceMatrix want(backend, s.rows, s.hidden, before);
    const DeviceMatrix residual(backend, s.rows, s.hidden, before);
    const DeviceMatrix normed(backend, s.rows, s.hidden, backend.activation_dtype());
    const AddNorm then{.residual = want.view(),
                       .normed = normed.view(),
                       .scale = 0.5F,
                       .norm_weight = weight,
                       .eps = 1e-6F};
    backend.add_norm(Stream::kCompute, then, args.out);
    args.then = then;
    args.then->residual = residual.view();
    args.then->normed = in.view();
    backend.moe_experts(Stream::kCompute, args);
    check_close(residual.read(), doubles(want.read()), tolerance(backend), 1.0);
    if (weight != nullptr) {
      check_close(in.read(), doubles(normed.read()), tolerance(backend), 1.0);
    } else {
      CHECK(in.read() == x);
    }
    in.write(x);
  }
}

std::vector<float> run_experts(Backend& backend, const Case& c, const Model& model, DType dtype,
                               const std::vector<float>& x, const std::vector<int32_t>& experts,
                               const std::vector<float>& weights) {
  const Shape& s = c.shape;
  const PackedExperts gate_up(backend, c.part, 2 * s.intermediate, s.hidden, dtype, model.gate_up);
  const PackedExperts down(backend, c.part, s.hidden, s.intermediate, dtype, model.down);
  const auto local = [&](const std::vector<float>& all, int64_t width) {
    return std::vector<float>(all.begin() + c.part.first * width,
                              all.begin() + (c.part.first + c.part.count) * width);
  };
  const DeviceArray<float> gate_up_bias(backend, local(model.gate_up_bias, 2 * s.intermediate));
  const DeviceArray<float> down_bias(backend, local(model.down_bias, s.hidden));
  DeviceMatrix in(backend, s.rows, s.hidden, x);
  const DeviceMatrix out(backend, s.rows, s.hidden, backend.activation_dtype());
  const DeviceArray<int32_t> ids(backend, experts);
  const DeviceArray<float> factors(backend, weights);
  const DeviceBytes scratch(
      backend, std::max<int64_t>(1, moe_scratch_bytes(s.rows, s.top_k, c.part.count, s.hidden,
                                                      s.intermediate, backend.activation_dtype())));
  MoeExperts args{.out = out.view(),
                  .x = in.view(),
                  .experts = ids.data(),
                  .weights = factors.data(),
                  .top_k = s.top_k,
                  .first_expert = c.part.first,
                  .num_experts = c.part.count,
                  .gate_up = gate_up.view(),
                  .down = down.view(),
                  .gate_up_bias = c.biased ? gate_up_bias.data() : nullptr,
                  .down_bias = c.biased ? down_bias.data() : nullptr,
                  .activation = c.activation,
                  .scratch = scratch.data(),
                  .scratch_bytes = scratch.bytes()};
  for (int time = 0; time < 2; ++time) {  // whatever a call leaves behind, the next works
    backend.moe_experts(Stream::kCompute, args);
  }
  const std::vector<float> got = out.read();
  check_added(backend, s, args, in, x);
  scratch.check_guards();
  return got;
}

// Random distinct experts a row; skew: most rows want expert 0.
std::vector<int32_t> random_choices(Random& random, const Shape& s, bool skew) {
  std::vector<int32_t> all(static_cast<size_t>(s.experts));
  std::vector<int32_t> out;
  for (int64_t r = 0; r < s.rows; ++r) {
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin() + (skew && r % 8 != 0 ? 1 : 0), all.end(), random);
    out.insert(out.end(), all.begin(), all.begin() + s.top_k);
  }
  return out;
}

// Each row has chosen one expert. size: of the results, in units of the tolerance.
void check_one_choice(const Maker& maker, Random& random, const Case& c,
                      const std::vector<int32_t>& experts, double size) {
  const auto backend = maker.make();
  CAPTURE(maker.name, c.shape.rows, c.shape.hidden, c.shape.intermediate);
  const DType activation = backend->activation_dtype();
  const Model model = random_model(random, c.shape, activation);
  const auto x = rounded(random_floats(random, c.shape.rows * c.shape.hidden), activation);
  const auto weights = random_floats(random, c.shape.rows);
  check_close(run_experts(*backend, c, model, activation, x, experts, weights),
              expected(c.shape, model, x, experts, weights, c.part, c.biased, c.activation),
              tolerance(*backend), size);
}

TEST_CASE("moe_experts equals a double-precision loop, whole and in parts") {
  Random random(22);
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    for (const Case& c :
         {Case{{1, 8, 8, 2, 1}, {0, 2}}, Case{{5, 33, 7, 4, 2}, {0, 4}},
          Case{{40, 64, 32, 8, 3}, {0, 8}, true, Activation::kClampedSwiglu},
          Case{{40, 64, 32, 8, 3}, {3, 4}, true, Activation::kGelu},
          Case{{70, 40, 24, 5, 5}, {4, 1}, false, Activation::kGeluTanh},
          Case{{300, 128, 136, 6, 2}, {0, 6}, true}, Case{{150, 264, 64, 3, 1}, {1, 2}},
          Case{{9, 72, 200, 40, 4}, {0, 40}}, Case{{0, 16, 16, 2, 1}, {0, 2}}}) {
      for (const bool skew : {false, true}) {
        for (const DType dtype : {DType::kBF16, DType::kF32}) {
          const Shape& s = c.shape;
          CAPTURE(s.rows, s.hidden, s.intermediate, s.experts, s.top_k, skew, name_of(dtype));
          const DType activation = backend->activation_dtype();
          const DType held = dtype == DType::kF32 ? activation : dtype;
          const Model model = random_model(random, s, held);
          const auto x = rounded(random_floats(random, s.rows * s.hidden), activation);
          const auto experts = random_choices(random, s, skew);
          const auto weights = random_floats(random, s.rows * s.top_k);
          check_close(run_experts(*backend, c, model, dtype, x, experts, weights),
                      expected(s, model, x, experts, weights, c.part, c.biased, c.activation),
                      tolerance(*backend), 4.0);
        }
      }
    }
  }
}

TEST_CASE("moe_experts: ids outside the local experts, -1 among them, add nothing") {
  Random random(23);
  const Case c{{6, 32, 16, 4, 2}, {1, 2}};
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    const DType activation = backend->activation_dtype();
    const Model model = random_model(random, c.shape, DType::kBF16);
    const auto x = rounded(random_floats(random, 6 * 32), activation);
    const std::vector<int32_t> experts = {0, 3, -1, -1, 1, 0, 3, 2, 2, 1, -1, 1};
    const auto weights = random_floats(random, 12);
    const auto got = run_experts(*backend, c, model, DType::kBF16, x, experts, weights);
    for (size_t i = 0; i < 2 * 32; ++i) CHECK(got[i] == 0.0F);
    check_close(got, expected(c.shape, model, x, experts, weights, c.part, false, c.activation),
                tolerance(*backend), 4.0);
  }
}

// Row tiles that have a partner, that are shared by two experts, that are left over; tiles of
// outputs in even and odd number; features that fill no panel.
TEST_CASE("moe_experts equals the loop for experts of many rows, of one and of none") {
  Random random(26);
  std::vector<Maker> all = makers();
  if (cuda_device_count() > 0) {
    all.push_back({.name = "cuda float16",
                   .make = [] { return make_cuda_backend({.activation_dtype = DType::kF16}); }});
  }
  struct Counts {
    std::vector<int32_t> rows;  // of each expert
    int64_t hidden, intermediate;
    bool biased = false;
    Activation activation = Activation::kSilu;
  };
  for (const Counts& counts :
       {Counts{{600, 0, 1, 129, 640}, 80, 40, true, Activation::kClampedSwiglu},
        Counts{{0, 300, 257, 0, 385, 400}, 208, 136}, Counts{{300}, 2048, 64, true},
        Counts{{128, 0, 512}, 528, 64, false, Activation::kGelu},
        Counts{{3000, 0, 1200, 129}, 16, 8}}) {
    std::vector<int32_t> experts;
    for (size_t e = 0; e < counts.rows.size(); ++e) {
      experts.insert(experts.end(), static_cast<size_t>(counts.rows[e]), static_cast<int32_t>(e));
    }
    std::shuffle(experts.begin(), experts.end(), random);
    const auto num_experts = static_cast<int32_t>(counts.rows.size());
    const Case c{{std::ssize(experts), counts.hidden, counts.intermediate, num_experts, 1},
                 {0, num_experts},
                 counts.biased,
                 counts.activation};
    for (const Maker& maker : all) {
      check_one_choice(maker, random, c, experts, 4.0);
    }
  }
}

// More tiles than multiprocessors, alone and in clusters of two, so that what a tile leaves behind
// meets the next one; small enough for compute-sanitizer.
TEST_CASE("moe_experts: blocks that take several tiles each") {
  Random random(28);
  std::vector<Maker> some{cpu_makers().back()};
  if (cuda_device_count() > 0) {
    some.push_back({.name = "cuda", .make = [] { return make_cuda_backend({}); }});
  }
  struct Uneven {
    int32_t experts, most_rows;  // of an expert: from none to most_rows
    int64_t hidden, intermediate;
    bool biased;
  };
  for (const Uneven& uneven : {Uneven{20, 230, 72, 712, true}, Uneven{20, 230, 1352, 72, false},
                               Uneven{75, 70, 264, 136, true}}) {
    std::vector<int32_t> experts;
    for (int32_t e = 0; e < uneven.experts; ++e) {
      const int32_t rows = uneven.most_rows * (e * 7 % uneven.experts) / (uneven.experts - 1);
      experts.insert(experts.end(), static_cast<size_t>(rows), e);
    }
    std::shuffle(experts.begin(), experts.end(), random);
    const Case c{{std::ssize(experts), uneven.hidden, uneven.intermediate, uneven.experts, 1},
                 {0, uneven.experts},
                 uneven.biased};
    // Of the sums, whose factors are drawn for `hidden` of them.
    const double size = 4.0 * std::sqrt(std::max(1.0, static_cast<double>(uneven.intermediate) /
                                                          static_cast<double>(uneven.hidden)));
    for (const Maker& maker : some) {
      check_one_choice(maker, random, c, experts, size);
    }
  }
}

TEST_CASE("moe_experts: a row has the same bits in any batch") {
  Random random(24);
  for (const Shape& s : {Shape{201, 48, 40, 5, 2}, Shape{700, 144, 72, 2, 1}}) {
    const Part part{0, static_cast<int32_t>(s.experts)};
    for (const Maker& maker : makers()) {
      const auto backend = maker.make();
      CAPTURE(maker.name, s.rows);
      const DType activation = backend->activation_dtype();
      const Model model = random_model(random, s, DType::kBF16);
      const auto x = rounded(random_floats(random, s.rows * s.hidden), activation);
      const auto experts = random_choices(random, s, true);
      const auto weights = random_floats(random, s.rows * s.top_k);
      const auto all = run_experts(*backend, {s, part}, model, DType::kBF16, x, experts, weights);
      for (const int64_t row : {int64_t{0}, int64_t{1}, int64_t{100}, s.rows - 1}) {
        const auto cut = [&](const auto& values, int64_t width) {
          auto copy = values;
          copy.assign(values.begin() + row * width, values.begin() + (row + 1) * width);
          return copy;
        };
        const Case one{{1, s.hidden, s.intermediate, s.experts, s.top_k}, part};
        CHECK(run_experts(*backend, one, model, DType::kBF16, cut(x, s.hidden),
                          cut(experts, s.top_k), cut(weights, s.top_k)) == cut(all, s.hidden));
      }
    }
  }
}

TEST_CASE("add_gated adds rows by the sigmoid of their gate") {
  Random random(25);
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    const DType activation = backend->activation_dtype();
    for (const int64_t cols : {1, 24, 200}) {
      const int64_t rows = 37;
      const auto sum = rounded(random_floats(random, rows * cols), activation);
      const auto x = rounded(random_floats(random, rows * cols), activation);
      const auto gate = random_floats(random, rows, 3.0F);
      const DeviceMatrix out(*backend, rows, cols, sum);
      const DeviceMatrix in(*backend, rows, cols, x);
      DeviceMatrix gates(*backend, rows, 1, DType::kF32);
      gates.write(gate);
      backend->add_gated(Stream::kCompute, out.view(), in.view(), gates.view());
      std::vector<double> want;
      for (size_t i = 0; i < sum.size(); ++i) {
        const double g = double{gate[i / static_cast<size_t>(cols)]};
        want.push_back(double{sum[i]} + double{x[i]} / (1.0 + std::exp(-g)));
      }
      check_close(out.read(), want, tolerance(*backend));
    }
  }
}

}  // namespace
}  // namespace mpinfer::backend::parity
