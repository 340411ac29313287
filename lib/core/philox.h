// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) and the
// keys of a draw: a row's text depends on its own numbers alone, never on rank, batch or order.
#pragma once

#include <array>
#include <cstdint>

namespace mpinfer {

struct PhiloxKey {
  uint64_t seed = 0;       // row seed if given, else run seed
  uint64_t index = ~0ULL;  // input row, or all ones when the row has a seed of its own
  uint32_t sample = 0;     // which of n completions
  uint32_t position = 0;   // index of the token in the completion
};

constexpr std::array<uint32_t, 4> philox(const PhiloxKey& k) {
  uint32_t key0 = static_cast<uint32_t>(k.seed);
  uint32_t key1 = static_cast<uint32_t>(k.seed >> 32);
  std::array<uint32_t, 4> c = {static_cast<uint32_t>(k.index), static_cast<uint32_t>(k.index >> 32),
                               k.sample, k.position};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ULL * c[0];
    const uint64_t p1 = 0xCD9E8D57ULL * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ key0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ key1, static_cast<uint32_t>(p0)};
    key0 += 0x9E3779B9U;
    key1 += 0xBB67AE85U;
  }
  return c;
}

// Uniform in (0, 1), 24 bits, exactly representable in f32; the same on every backend.
constexpr float philox_uniform(const PhiloxKey& k) {
  return (static_cast<float>(philox(k)[0] >> 8) + 0.5F) * 0x1p-24F;
}

}  // namespace mpinfer
