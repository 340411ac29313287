// Latent attention's ops against double-precision loops: a product a head, the write of latent rows
// with norm and rope, attention to rows that are key and value at once.
#include <numeric>

#include "tests/parity/backend_fixture.h"

namespace mpinfer::backend::parity {
namespace {

double at(const std::vector<float>& values, int64_t index) {
  return double{values[static_cast<size_t>(index)]};
}

// values: one [out, in] after the other.
class PackedHeads {
 public:
  PackedHeads(Backend& backend, int64_t heads, int64_t out, int64_t in, DType dtype,
              const std::vector<float>& values)
      : stride_((backend.packed_bytes(out, in, dtype) + 255) / 256 * 256),
        bytes_(backend, heads * stride_) {
    view_ = {.first = backend.make_weight(bytes_.data(), out, in, dtype), .stride_bytes = stride_};
    for (int64_t h = 0; h < heads; ++h) {
      const Weight one = backend.make_weight(view_.at(h).data, out, in, dtype);
      backend.pack_rows(one, 0, 1, values.data() + h * out * in, DType::kF32, out, in);
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

struct HeadShape {
  int64_t rows, heads, in, a_step, out, out_step;
};

struct Latent {
  int32_t heads = 4;
  int32_t latent = 16;
  int32_t rotary = 8;
  int32_t block_size = 16;
  int64_t width() const { return int64_t{latent} + rotary; }
};

// A sequence's queries [context, heads * width] and latent rows [context, width].
struct Sequence {
  int64_t context = 0;
  int64_t rows = 0;  // of the batch: the last ones
  std::vector<float> q, kv;
};

Sequence random_sequence(Random& random, const Latent& s, int64_t context, int64_t rows,
                         DType dtype) {
  return {.context = context,
          .rows = rows,
          .q = rounded(random_floats(random, context * s.heads * s.width()), dtype),
          .kv = rounded(random_floats(random, context * s.width()), dtype)};
}

void add_reference(std::vector<double>& want, const Sequence& sequence, const Latent& s,
                   double scale) {
  for (int64_t p = sequence.context - sequence.rows; p < sequence.context; ++p) {
    for (int64_t h = 0; h < s.heads; ++h) {
      std::vector<double> logits;
      for (int64_t j = 0; j <= p; ++j) {
        double dot = 0.0;
        for (int64_t d = 0; d < s.width(); ++d) {
          dot += at(sequence.q, (p * s.heads + h) * s.width() + d) *
                 at(sequence.kv, j * s.width() + d);
        }
        logits.push_back(dot * scale);
      }
      const double highest = *std::max_element(logits.begin(), logits.end());
      double total = 0.0;
      std::vector<double> out(static_cast<size_t>(s.latent), 0.0);
      for (int64_t j = 0; j <= p; ++j) {
        const double weight = std::exp(logits[static_cast<size_t>(j)] - highest);
        total += weight;
        for (int64_t d = 0; d < s.latent; ++d) {
          out[static_cast<size_t>(d)] += weight * at(sequence.kv, j * s.width() + d);
        }
      }
      for (const double value : out) want.push_back(value / total);
    }
  }
}

// Blocks in a shuffled order, NaN wherever no sequence has a row.
std::vector<float> attend(Backend& backend, const Latent& s, const std::vector<Sequence>& sequences,
                          float scale, Random& random) {
  const auto blocks_of = [&](int64_t tokens) { return (tokens + s.block_size - 1) / s.block_size; };
  int64_t blocks = 2;
  int64_t table_stride = 1;
  for (const Sequence& one : sequences) {
    blocks += blocks_of(one.context);
    table_stride = std::max(table_stride, blocks_of(one.context));
  }
  std::vector<int32_t> order(static_cast<size_t>(blocks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  const int64_t block_floats = s.block_size * s.width();
  std::vector<float> cache(static_cast<size_t>(blocks * block_floats), std::nanf(""));
  std::vector<float> queries;
  std::vector<int32_t> table, cu = {0}, context;
  int32_t num_decodes = 0;
  size_t next = 0;
  for (const Sequence& one : sequences) {
    std::vector<int32_t> line(static_cast<size_t>(table_stride), -1);
    for (int64_t b = 0; b < blocks_of(one.context); ++b) {
      const int64_t block = order[next++];
      line[static_cast<size_t>(b)] = static_cast<int32_t>(block);
      const int64_t first = b * s.block_size;
      const int64_t count = std::min<int64_t>(s.block_size, one.context - first);
      std::copy_n(one.kv.begin() + first * s.width(), count * s.width(),
                  cache.begin() + block * block_floats);
    }
    table.insert(table.end(), line.begin(), line.end());
    if (one.rows == 1 && num_decodes + 1 == static_cast<int32_t>(cu.size())) ++num_decodes;
    cu.push_back(cu.back() + static_cast<int32_t>(one.rows));
    context.push_back(static_cast<int32_t>(one.context));
    queries.insert(queries.end(), one.q.begin() + (one.context - one.rows) * s.heads * s.width(),
                   one.q.end());
  }
  const DType dtype = backend.activation_dtype();
  DeviceMatrix rows(backend, blocks, block_floats, dtype, 0);
  rows.write(cache);
  const DeviceMatrix q(backend, cu.back(), s.heads * s.width(), queries);
  const DeviceMatrix out(backend, cu.back(), int64_t{s.heads} * s.latent, dtype);
  const DeviceArray<int32_t> device_cu(backend, cu), device_context(backend, context),
      device_table(backend, table);
  backend.attention(Stream::kCompute, out.view(), q.view(),
                    {.k = rows.view().data,
                     .dtype = dtype,
                     .block_stride = block_floats,
                     .head_stride = block_floats,
                     .token_stride = s.width(),
                     .block_size = s.block_size,
                     .num_kv_heads = 1,
                     .head_dim = static_cast<int32_t>(s.width()),
                     .latent_dim = s.latent},
                    {.num_sequences = static_cast<int32_t>(context.size()),
                     .num_decodes = num_decodes,
                     .cu_seqlens_q = device_cu.data(),
                     .context_lens = device_context.data(),
                     .block_table = device_table.data(),
                     .block_table_stride = table_stride,
                     .host_prefix_groups = {},
                     .host_cu_seqlens_q = cu,
                     .host_context_lens = context},
                    {.scale = scale});
  return out.read();
}

}  // namespace

TEST_CASE("head_gemm is one product a head, and what lies between the heads stays") {
  const std::vector<HeadShape> shapes = {{1, 1, 8, 8, 16, 16},      {5, 4, 8, 12, 16, 20},
                                         {3, 4, 16, 16, 6, 6},      {33, 3, 24, 40, 64, 72},
                                         {130, 16, 64, 96, 40, 48}, {0, 2, 8, 8, 8, 8},
                                         {7, 5, 128, 192, 512, 576}};
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    const DType dtype = backend->activation_dtype();
    Random random(21);
    for (const HeadShape& s : shapes) {
      CAPTURE(s.rows, s.heads, s.in, s.out);
      const auto a = rounded(random_floats(random, s.rows * s.heads * s.a_step), dtype);
      const auto weights =
          rounded(random_floats(random, s.heads * s.out * s.in, 0.2F), DType::kBF16);
      const auto before = rounded(random_floats(random, s.rows * s.heads * s.out_step), dtype);
      const PackedHeads packed(*backend, s.heads, s.out, s.in, DType::kBF16, weights);
      const DeviceMatrix in(*backend, s.rows, s.heads * s.a_step, a);
      const DeviceMatrix out(*backend, s.rows, s.heads * s.out_step, before);
      backend->head_gemm(Stream::kCompute, {.out = out.view(),
                                            .out_step = s.out_step,
                                            .a = in.view(),
                                            .a_step = s.a_step,
                                            .weights = packed.view(),
                                            .num_heads = static_cast<int32_t>(s.heads)});
      std::vector<double> want(before.begin(), before.end());
      for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t h = 0; h < s.heads; ++h) {
          for (int64_t n = 0; n < s.out; ++n) {
            double sum = 0.0;
            for (int64_t k = 0; k < s.in; ++k) {
              sum +=
                  at(a, (r * s.heads + h) * s.a_step + k) * at(weights, (h * s.out + n) * s.in + k);
            }
            want[static_cast<size_t>((r * s.heads + h) * s.out_step + n)] = sum;
          }
        }
      }
      check_close(out.read(), want, tolerance(*backend));
    }
  }
}

TEST_CASE("latent_rope_write_kv norms, turns and writes a row; padding rows are left alone") {
  constexpr int64_t kRows = 9;
  constexpr int64_t kQDim = 20;  // of a head, its turning part included
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    const DType dtype = backend->activation_dtype();
    Random random(22);
    for (const Latent& s : {Latent{.heads = 3, .latent = 16, .rotary = 8, .block_size = 4},
                            Latent{.heads = 1, .latent = 70, .rotary = 2, .block_size = 1},
                            Latent{.heads = 20, .latent = 512, .rotary = 16, .block_size = 16}}) {
      for (const bool interleaved : {true, false}) {
        CAPTURE(s.heads, s.latent, interleaved);
        const auto kv = rounded(random_floats(random, kRows * s.width()), dtype);
        const auto q = rounded(random_floats(random, kRows * s.heads * kQDim), dtype);
        const auto before = rounded(random_floats(random, kRows * s.heads * s.width()), dtype);
        const auto norm = random_floats(random, s.latent);
        const auto cos_sin = random_floats(random, 40 * s.rotary);
        const std::vector<int32_t> positions = {0, 1, 39, 7, 8, 30, 2, 3, 5};
        const std::vector<int32_t> slots = {3, 30, 0, -1, 12, 31, 17, -1, 1};
        const int64_t blocks = 32 / s.block_size;
        const auto old = rounded(random_floats(random, 32 * s.width()), dtype);
        DeviceMatrix cache(*backend, blocks, s.block_size * s.width(), dtype, 0);
        cache.write(old);
        const DeviceMatrix device_kv(*backend, kRows, s.width(), kv);
        const DeviceMatrix device_q(*backend, kRows, s.heads * kQDim, q);
        const DeviceMatrix q_latent(*backend, kRows, s.heads * s.width(), before);
        const DeviceArray<float> device_norm(*backend, norm), table(*backend, cos_sin);
        const DeviceArray<int32_t> device_positions(*backend, positions),
            device_slots(*backend, slots);
        backend->latent_rope_write_kv(Stream::kCompute,
                                      {.q_latent = q_latent.view(),
                                       .q = device_q.view(),
                                       .latent_kv = device_kv.view(),
                                       .norm = device_norm.data(),
                                       .norm_eps = 1e-3F,
                                       .rope = {.cos_sin = table.data(), .rotary_dim = s.rotary},
                                       .interleaved = interleaved,
                                       .positions = device_positions.data(),
                                       .slot_mapping = device_slots.data(),
                                       .kv = {.k = cache.view().data,
                                              .dtype = dtype,
                                              .block_stride = s.block_size * s.width(),
                                              .head_stride = s.block_size * s.width(),
                                              .token_stride = s.width(),
                                              .block_size = s.block_size,
                                              .num_kv_heads = 1,
                                              .head_dim = static_cast<int32_t>(s.width()),
                                              .latent_dim = s.latent},
                                       .num_heads = s.heads});
        std::vector<double> rows(old.begin(), old.end());
        std::vector<double> turned(before.begin(), before.end());
        // Writes from[0, rotary) turned to to[0, rotary).
        const auto turn = [&](std::vector<double>& to, int64_t to_begin,
                              const std::vector<float>& from, int64_t begin, int64_t position) {
          const int64_t half = s.rotary / 2;
          for (int64_t i = 0; i < half; ++i) {
            const int64_t first = interleaved ? 2 * i : i;
            const int64_t second = interleaved ? 2 * i + 1 : i + half;
            const double c = at(cos_sin, position * s.rotary + i);
            const double sine = at(cos_sin, position * s.rotary + half + i);
            const double x = at(from, begin + first);
            const double y = at(from, begin + second);
            to[static_cast<size_t>(to_begin + first)] = x * c - y * sine;
            to[static_cast<size_t>(to_begin + second)] = y * c + x * sine;
          }
        };
        for (int64_t r = 0; r < kRows; ++r) {
          const int64_t slot = slots[static_cast<size_t>(r)];
          if (slot < 0) continue;
          const int64_t position = positions[static_cast<size_t>(r)];
          double squares = 0.0;
          for (int64_t d = 0; d < s.latent; ++d) squares += std::pow(at(kv, r * s.width() + d), 2);
          const double inverse = 1.0 / std::sqrt(squares / s.latent + 1e-3);
          for (int64_t d = 0; d < s.latent; ++d) {
            rows[static_cast<size_t>(slot * s.width() + d)] =
                at(kv, r * s.width() + d) * inverse * at(norm, d);
          }
          turn(rows, slot * s.width() + s.latent, kv, r * s.width() + s.latent, position);
          for (int64_t h = 0; h < s.heads; ++h) {
            turn(turned, (r * s.heads + h) * s.width() + s.latent, q,
                 (r * s.heads + h + 1) * kQDim - s.rotary, position);
          }
        }
        check_close(cache.read(), rows, tolerance(*backend));
        check_close(q_latent.read(), turned, tolerance(*backend));
      }
    }
  }
}

TEST_CASE("attention to latent rows equals a double-precision loop, ragged lengths mixed") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    Random random(23);
    for (const Latent& s : {Latent{.heads = 4, .latent = 16, .rotary = 8, .block_size = 16},
                            Latent{.heads = 1, .latent = 70, .rotary = 2, .block_size = 5},
                            Latent{.heads = 9, .latent = 40, .rotary = 24, .block_size = 1},
                            Latent{.heads = 20, .latent = 512, .rotary = 64, .block_size = 32},
                            Latent{.heads = 3, .latent = 640, .rotary = 64, .block_size = 16}}) {
      CAPTURE(s.heads, s.latent, s.rotary, s.block_size);
      std::vector<Sequence> sequences;
      std::vector<double> want;
      const float scale = 1.0F / std::sqrt(static_cast<float>(s.width()));
      const std::vector<int64_t> contexts = {1, 65, 120, 64, 3, 70};
      const std::vector<int64_t> rows = {1, 1, 1, 20, 2, 9};
      for (size_t i = 0; i < contexts.size(); ++i) {
        sequences.push_back(
            random_sequence(random, s, contexts[i], rows[i], backend->activation_dtype()));
        add_reference(want, sequences.back(), s, double{scale});
      }
      check_close(attend(*backend, s, sequences, scale, random), want, 2.0 * tolerance(*backend));
    }
  }
}

TEST_CASE("a row of latent attention has the same bits at any block size, chunking and threads") {
  for (const std::string& target : simd_targets()) {
    CAPTURE(target);
    Random random(24);
    Latent s{.heads = 6, .latent = 40, .rotary = 8, .block_size = 16};
    const Sequence whole = random_sequence(random, s, 150, 150, DType::kF32);
    const Sequence other = random_sequence(random, s, 33, 33, DType::kF32);
    const auto one = make_cpu_backend({.threads = 1, .simd_target = target});
    const auto two = make_cpu_backend({.threads = 2, .simd_target = target});
    const auto want = attend(*one, s, {whole}, 0.2F, random);
    for (const int32_t block_size : {1, 3, 64}) {
      s.block_size = block_size;
      REQUIRE(attend(*one, s, {whole}, 0.2F, random) == want);
    }
    const auto width = static_cast<size_t>(s.heads * s.latent);
    int64_t begin = 0;
    for (const int64_t chunk : {1, 40, 2, 1, 63, 43}) {
      Sequence prefix = whole;
      prefix.context = begin + chunk;
      prefix.rows = chunk;
      prefix.q.resize(static_cast<size_t>(prefix.context * s.heads * s.width()));
      const auto got = attend(*two, s, {prefix, other}, 0.2F, random);
      for (size_t i = 0; i < static_cast<size_t>(chunk) * width; ++i) {
        REQUIRE(got[i] == want[static_cast<size_t>(begin) * width + i]);
      }
      begin += chunk;
    }
    REQUIRE(begin == 150);
  }
}

}  // namespace mpinfer::backend::parity
