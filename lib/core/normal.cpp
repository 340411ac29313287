#include "lib/core/normal.h"

#include <cmath>
#include <numbers>

#include "lib/core/philox.h"

namespace mpinfer {
namespace {

std::array<float, 4> normals(uint64_t seed, uint64_t tensor, int64_t block) {
  const std::array<uint32_t, 4> bits = philox({.seed = seed,
                                               .index = static_cast<uint64_t>(block),
                                               .sample = static_cast<uint32_t>(tensor),
                                               .position = static_cast<uint32_t>(tensor >> 32)});
  std::array<float, 4> out{};
  for (size_t pair = 0; pair < 4; pair += 2) {
    const float u = (static_cast<float>(bits[pair] >> 8) + 0.5F) * 0x1p-24F;
    const float v = (static_cast<float>(bits[pair + 1] >> 8) + 0.5F) * 0x1p-24F;
    const float radius = std::sqrt(-2.0F * std::log(u));
    const float angle = 2.0F * std::numbers::pi_v<float> * v;
    out[pair] = radius * std::cos(angle);
    out[pair + 1] = radius * std::sin(angle);
  }
  return out;
}

}  // namespace

void fill_normal(float* out, uint64_t seed, uint64_t tensor, int64_t begin, int64_t count,
                 float deviation) {
  std::array<float, 4> block{};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = begin + i;
    if (i == 0 || position % 4 == 0) block = normals(seed, tensor, position / 4);
    out[i] = deviation * block[static_cast<size_t>(position % 4)];
  }
}

}  // namespace mpinfer
