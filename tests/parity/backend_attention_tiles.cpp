// Attention of many rows where kernels cut it: tiles of rows and of tokens, blocks that end inside
// them, windows that begin there, batches of many sequences; a row's bits on a CUDA device.
#include "tests/parity/attention_fixture.h"

namespace mpinfer::backend::parity {
namespace {

std::vector<Maker> makers_and_half() {
  std::vector<Maker> list = makers();
  if (cuda_device_count() > 0) {
    list.push_back({.name = "cuda f16",
                    .make = [] { return make_cuda_backend({.activation_dtype = DType::kF16}); }});
  }
  return list;
}

// count rows of a batch's output from first_row on.
std::vector<float> rows_of(const std::vector<float>& out, int64_t first_row, int64_t count,
                           const Heads& heads) {
  const int64_t width = int64_t{heads.q} * heads.head_dim;
  return {out.begin() + first_row * width, out.begin() + (first_row + count) * width};
}

}  // namespace

TEST_CASE("rows of many tiles equal a double-precision loop, wherever tiles and blocks end") {
  const std::vector<Case> cases = {
      {{.q = 3, .kv = 1, .head_dim = 128}, 48, 0, 0.0F, false},
      {{.q = 4, .kv = 2, .head_dim = 64}, 16, 150, 0.0F, true},
      {{.q = 5, .kv = 1, .head_dim = 64}, 256, 0, 6.0F, false},
      {{.q = 2, .kv = 2, .head_dim = 128}, 64, 128, 0.0F, true},
      {{.q = 2, .kv = 1, .head_dim = 128}, 128, 300, 0.0F, false},
  };
  // Rows and contexts at, before and behind multiples of 128; the rest makes a batch of 45.
  std::vector<int64_t> contexts = {300, 517, 129, 513, 257, 128, 256, 127};
  std::vector<int64_t> rows = {300, 70, 128, 1, 2, 128, 43, 127};
  for (int64_t i = 0; i < 37; ++i) {
    contexts.push_back(1 + i * 5 % 41);
    rows.push_back(1 + i * 5 % 41 * (i % 3) / 2 % contexts.back());
  }
  for (const Maker& maker : makers_and_half()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    for (const Case& c : cases) {
      CAPTURE(c.heads.q, c.heads.head_dim, c.block_size, c.window);
      Random random(21);
      std::vector<Sequence> sequences;
      for (const int64_t context : contexts) {
        sequences.push_back(random_sequence(random, c.heads, context, backend->activation_dtype()));
      }
      const auto sinks = c.sinks ? random_floats(random, c.heads.q) : std::vector<float>{};
      const AttentionOptions options = {.scale = 0.2F, .window = c.window, .softcap = c.softcap};
      const auto want = reference_rows(sequences, rows, c.heads, options, sinks);
      const PagedCase paged(*backend, c.heads, c.block_size, sequences, rows, c.window, random);
      for (int again = 0; again < 2; ++again) {
        check_close(paged.run(options, sinks, 8), want, 2.0 * tolerance(*backend), 1.0);
      }
    }
  }
}

TEST_CASE("on a deterministic CUDA device a row's bits depend on its own tokens alone") {
  if (cuda_device_count() == 0) {
    WARN("no CUDA device: skipped");
    return;
  }
  const auto backend = make_cuda_backend({.deterministic = true});
  for (const int32_t head_dim : {64, 128}) {
    for (const int32_t window : {0, 200}) {
      CAPTURE(head_dim, window);
      const Heads heads = {.q = 6, .kv = 2, .head_dim = head_dim};
      Random random(22);
      const Sequence whole = random_sequence(random, heads, 700, DType::kBF16);
      const Sequence other = random_sequence(random, heads, 333, DType::kBF16);
      const AttentionOptions options = {.scale = 0.1F, .window = window};
      const auto want =
          PagedCase(*backend, heads, 32, {whole}, {700}, window, random).run(options, {}, 8);
      int64_t begin = 0;
      for (const int64_t chunk : {1, 1, 61, 64, 1, 128, 129, 190, 1, 124}) {
        Sequence prefix = whole;
        prefix.context = begin + chunk;
        prefix.q.resize(static_cast<size_t>(prefix.context * heads.q * heads.head_dim));
        const auto got =
            PagedCase(*backend, heads, 32, {other, prefix, other}, {7, chunk, 333}, window, random)
                .run(options, {}, 8);
        REQUIRE(rows_of(got, 7, chunk, heads) == rows_of(want, begin, chunk, heads));
        begin += chunk;
      }
      REQUIRE(begin == 700);
    }
  }
}

}  // namespace mpinfer::backend::parity
