// Box-Muller over Philox: four normals a block, block index = position / 4.
#include "lib/model/dummy.h"

#include <xxhash.h>

#include <array>
#include <cmath>
#include <numbers>

#include "lib/core/philox.h"

namespace mpinfer::model {
namespace {

constexpr float kDeviation = 0.02F;

std::array<float, 4> normals(uint64_t seed, uint64_t name_hash, int64_t block) {
  const std::array<uint32_t, 4> bits = philox({.seed = seed,
                                               .index = static_cast<uint64_t>(block),
                                               .sample = static_cast<uint32_t>(name_hash),
                                               .position = static_cast<uint32_t>(name_hash >> 32)});
  std::array<float, 4> out{};
  for (size_t pair = 0; pair < 4; pair += 2) {
    const float u = (static_cast<float>(bits[pair] >> 8) + 0.5F) * 0x1p-24F;
    const float v = (static_cast<float>(bits[pair + 1] >> 8) + 0.5F) * 0x1p-24F;
    const float radius = kDeviation * std::sqrt(-2.0F * std::log(u));
    const float angle = 2.0F * std::numbers::pi_v<float> * v;
    out[pair] = radius * std::cos(angle);
    out[pair + 1] = radius * std::sin(angle);
  }
  return out;
}

}  // namespace

void fill_normal(float* out, uint64_t seed, std::string_view name, int64_t begin, int64_t count) {
  const uint64_t name_hash = XXH3_64bits(name.data(), name.size());
  std::array<float, 4> block{};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = begin + i;
    if (i == 0 || position % 4 == 0) block = normals(seed, name_hash, position / 4);
    out[i] = block[static_cast<size_t>(position % 4)];
  }
}

}  // namespace mpinfer::model
