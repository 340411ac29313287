// Paged attention against a double-precision loop over random layouts; a row's bits at any block
// size, chunking and batch.
#include "tests/parity/attention_fixture.h"

namespace mpinfer::backend::parity {

TEST_CASE("attention equals a double-precision loop for every feature, ragged lengths mixed") {
  const std::vector<Case> cases = {
      {{.q = 2, .kv = 2, .head_dim = 64}, 16, 0, 0.0F, false},
      {{.q = 9, .kv = 3, .head_dim = 64}, 16, 0, 0.0F, false},
      {{.q = 4, .kv = 1, .head_dim = 128}, 32, 40, 0.0F, false},
      {{.q = 8, .kv = 4, .head_dim = 8}, 4, 0, 0.0F, true},
      {{.q = 6, .kv = 2, .head_dim = 80}, 8, 7, 5.0F, false},
      {{.q = 2, .kv = 1, .head_dim = 20}, 5, 70, 30.0F, true},
      {{.q = 64, .kv = 1, .head_dim = 16}, 1, 0, 0.0F, false},
      {{.q = 8, .kv = 1, .head_dim = 128}, 32, 0, 5.0F, true},
      {{.q = 6, .kv = 3, .head_dim = 64}, 16, 33, 0.0F, true},
      {{.q = 12, .kv = 1, .head_dim = 64}, 48, 0, 0.0F, false},
  };
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    Random random(11);
    for (const Case& c : cases) {
      CAPTURE(c.heads.q, c.heads.kv, c.heads.head_dim, c.block_size, c.window);
      if (backend->activation_dtype() != DType::kF32 && c.heads.head_dim % 8 != 0) continue;
      std::vector<Sequence> sequences;
      const std::vector<int64_t> contexts = {1, 65, 200, 64, 3, 130, 77};
      const std::vector<int64_t> rows = {1, 1, 1, 64, 2, 30, 77};
      for (const int64_t context : contexts) {
        sequences.push_back(random_sequence(random, c.heads, context, backend->activation_dtype()));
      }
      const auto sinks = c.sinks ? random_floats(random, c.heads.q) : std::vector<float>{};
      const AttentionOptions options = {.scale = 0.3F, .window = c.window, .softcap = c.softcap};
      const PagedCase paged(*backend, c.heads, c.block_size, sequences, rows, c.window, random);
      const auto want = reference_rows(sequences, rows, c.heads, options, sinks);
      for (const int64_t gap : {5, 8}) {
        check_close(paged.run(options, sinks, gap), want, 2.0 * tolerance(*backend), 1.0);
      }
    }
  }
}

TEST_CASE("long contexts of few sequences, cut or not, equal a double-precision loop") {
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    Random random(14);
    for (const Heads heads :
         {Heads{.q = 4, .kv = 2, .head_dim = 128}, Heads{.q = 2, .kv = 2, .head_dim = 64}}) {
      for (const int32_t window : {0, 900}) {
        CAPTURE(heads.head_dim, window);
        const std::vector<int64_t> contexts = {2500, 300, 1, 1700, 700};
        const std::vector<int64_t> rows = {1, 1, 1, 1, 130};
        std::vector<Sequence> sequences;
        const AttentionOptions options = {.scale = 0.1F, .window = window};
        for (const int64_t context : contexts) {
          sequences.push_back(random_sequence(random, heads, context, backend->activation_dtype()));
        }
        const auto want = reference_rows(sequences, rows, heads, options, {});
        const PagedCase paged(*backend, heads, 32, sequences, rows, window, random);
        for (int again = 0; again < 2; ++again) {
          check_close(paged.run(options, {}, 8), want, 2.0 * tolerance(*backend), 1.0);
        }
      }
    }
  }
}

TEST_CASE("contexts that a device cuts in few and in many parts equal a double-precision loop") {
  const Heads heads = {.q = 3, .kv = 1, .head_dim = 128};
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    Random random(31);
    for (const int64_t longest : {200, 450, 800, 6000}) {
      CAPTURE(longest);
      std::vector<Sequence> sequences;
      for (const int64_t context : {longest, int64_t{40}, longest / 3}) {
        sequences.push_back(random_sequence(random, heads, context, backend->activation_dtype()));
      }
      const std::vector<int64_t> rows(sequences.size(), 1);
      const auto sinks = random_floats(random, heads.q);
      const AttentionOptions options = {.scale = 0.1F};
      const auto want = reference_rows(sequences, rows, heads, options, sinks);
      const PagedCase paged(*backend, heads, 16, sequences, rows, 0, random);
      for (int again = 0; again < 2; ++again) {
        check_close(paged.run(options, sinks, 8), want, 2.0 * tolerance(*backend), 1.0);
      }
    }
  }
}

TEST_CASE("more decode rows than a device has room for at once equal a double-precision loop") {
  const Heads heads = {.q = 8, .kv = 8, .head_dim = 128};
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    Random random(29);
    std::vector<Sequence> sequences;
    for (int64_t s = 0; s < 80; ++s) {
      sequences.push_back(
          random_sequence(random, heads, s == 40 ? 600 : 1 + s, backend->activation_dtype()));
    }
    const std::vector<int64_t> rows(sequences.size(), 1);
    const AttentionOptions options = {.scale = 0.1F};
    const auto want = reference_rows(sequences, rows, heads, options, {});
    const PagedCase paged(*backend, heads, 32, sequences, rows, 0, random);
    check_close(paged.run(options, {}, 8), want, 2.0 * tolerance(*backend), 1.0);
  }
}

TEST_CASE("decode rows that share a prefix equal a double-precision loop") {
  struct Shared {
    Heads heads;
    int32_t prefix;
    std::vector<int64_t> contexts;  // of the members, then of sequences without a group
    int32_t members;
    bool sinks;
    float softcap;
  };
  std::vector<int64_t> many(70, 210);
  for (size_t i = 0; i < many.size(); ++i) many[i] += static_cast<int64_t>(i) % 37;
  const std::vector<Shared> cases = {
      {{.q = 4, .kv = 2, .head_dim = 128}, 160, {161, 200, 165, 400, 190, 33, 90}, 5, false, 0.0F},
      {{.q = 8, .kv = 2, .head_dim = 64}, 1984, {1985, 2100, 1990, 2016, 500}, 4, true, 0.0F},
      {{.q = 6, .kv = 2, .head_dim = 64}, 192, many, 70, false, 3.0F},
      {{.q = 8, .kv = 1, .head_dim = 128}, 128, {129, 1500, 300, 128 + 32}, 4, true, 0.0F},
  };
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    Random random(16);
    for (const Shared& c : cases) {
      CAPTURE(c.heads.q, c.heads.kv, c.heads.head_dim, c.prefix);
      std::vector<Sequence> sequences;
      for (const int64_t context : c.contexts) {
        sequences.push_back(random_sequence(random, c.heads, context, backend->activation_dtype()));
        if (sequences.size() == 1 || std::ssize(sequences) > c.members) continue;
        const int64_t width = c.prefix * int64_t{c.heads.kv} * c.heads.head_dim;
        std::copy_n(sequences[0].k.begin(), width, sequences.back().k.begin());
        std::copy_n(sequences[0].v.begin(), width, sequences.back().v.begin());
      }
      const auto sinks = c.sinks ? random_floats(random, c.heads.q) : std::vector<float>{};
      const AttentionOptions options = {.scale = 0.2F, .softcap = c.softcap};
      const std::vector<int64_t> rows(sequences.size(), 1);
      const auto want = reference_rows(sequences, rows, c.heads, options, sinks);
      const PagedCase paged(*backend, c.heads, 32, sequences, rows, 0, random,
                            {{.num_sequences = c.members, .num_tokens = c.prefix}});
      for (int again = 0; again < 2; ++again) {
        check_close(paged.run(options, sinks, 8), want, 2.0 * tolerance(*backend), 1.0);
      }
      if (backend->description().starts_with("cpu")) {
        CHECK(paged.run(options, sinks, 8) == paged.run(options, sinks, 8, /*grouped=*/false));
      }
    }
  }
}

TEST_CASE("a row of attention has the same bits at any block size, chunking, batch and threads") {
  const Heads heads = {.q = 6, .kv = 2, .head_dim = 40};
  for (const int32_t window : {0, 50}) {
    for (const std::string& target : simd_targets()) {
      CAPTURE(target, window);
      Random random(12);
      const Sequence whole = random_sequence(random, heads, 150, DType::kF32);
      const Sequence other = random_sequence(random, heads, 33, DType::kF32);
      const AttentionOptions options = {.scale = 0.2F, .window = window};
      const auto one = make_cpu_backend({.threads = 1, .simd_target = target});
      const auto want = PagedCase(*one, heads, 16, {whole}, {150}, window, random).run(options, {});
      const auto width = static_cast<size_t>(heads.q * heads.head_dim);
      for (const int32_t block_size : {1, 3, 8, 16, 64, 256}) {
        const auto got =
            PagedCase(*one, heads, block_size, {whole}, {150}, window, random).run(options, {});
        REQUIRE(got == want);
      }
      const auto two = make_cpu_backend({.threads = 2, .simd_target = target});
      int64_t begin = 0;
      for (const int64_t chunk : {1, 1, 2, 40, 1, 17, 63, 24, 1}) {
        Sequence prefix = whole;
        prefix.context = begin + chunk;
        prefix.q.resize(static_cast<size_t>(prefix.context) * width);
        const auto got =
            PagedCase(*two, heads, 8, {other, prefix, other}, {1, chunk, 33}, window, random)
                .run(options, {});
        for (size_t i = 0; i < static_cast<size_t>(chunk) * width; ++i) {
          REQUIRE(got[width + i] == want[static_cast<size_t>(begin) * width + i]);
        }
        begin += chunk;
      }
      REQUIRE(begin == 150);
    }
  }
}

TEST_CASE("a NaN in one sequence stays there") {
  const Heads heads = {.q = 2, .kv = 1, .head_dim = 16};
  for (const Maker& maker : makers()) {
    const auto backend = maker.make();
    CAPTURE(maker.name);
    Random random(13);
    Sequence broken = random_sequence(random, heads, 70, backend->activation_dtype());
    const Sequence sound = random_sequence(random, heads, 70, backend->activation_dtype());
    broken.k[66 * 16 + 3] = std::nanf("");
    const auto got = PagedCase(*backend, heads, 16, {sound, broken, sound}, {1, 1, 70}, 0, random)
                         .run({.scale = 0.25F}, {});
    for (size_t i = 0; i < got.size(); ++i) {
      REQUIRE(std::isnan(got[i]) == (i >= 32 && i < 64));
    }
  }
}

}  // namespace mpinfer::backend::parity
