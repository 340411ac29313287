// Formulas and their f32 rounding follow transformers' modeling_rope_utils.py, which models were
// made with: at position 10⁵ an angle in f32 is off by 10⁻² from the exact one, and both sides must
// agree.
#include "lib/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace mpinfer::model {
namespace {

// Su et al., "RoFormer" (2021): theta^(-2i / dim).
std::vector<float> default_frequencies(const RopeConfig& rope) {
  std::vector<float> out;
  const auto dim = static_cast<float>(rope.rotary_dim);
  for (int32_t d = 0; d < rope.rotary_dim; d += 2) {
    out.push_back(1.0F / std::pow(static_cast<float>(rope.theta), static_cast<float>(d) / dim));
  }
  return out;
}

// Llama 3.1: long wavelengths are divided by factor, short ones kept, a smooth step between.
float llama3_frequency(const RopeConfig& rope, float frequency) {
  const auto original = static_cast<float>(rope.original_max_positions);
  const auto factor = static_cast<float>(rope.factor);
  const auto low = static_cast<float>(rope.low_freq_factor);
  const auto high = static_cast<float>(rope.high_freq_factor);
  const float wavelength = 2.0F * std::numbers::pi_v<float> / frequency;
  if (wavelength < original / high) return frequency;
  if (wavelength > original / low) return frequency / factor;
  const float smooth = (original / wavelength - low) / (high - low);
  return (1.0F - smooth) * frequency / factor + smooth * frequency;
}

// Peng et al., "YaRN" (2023), equations 19-23: dimensions that turn often are kept, those that turn
// seldom are interpolated, a ramp between the two borders.
void apply_yarn(const RopeConfig& rope, std::vector<float>& frequencies) {
  const double dim = rope.rotary_dim;
  const auto border = [&](double rotations) {
    return dim *
           std::log(static_cast<double>(rope.original_max_positions) /
                    (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(rope.theta));
  };
  double low = border(rope.beta_fast);
  double high = border(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const auto ramp =
        static_cast<float>(std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0));
    const float interpolated = frequencies[i] / static_cast<float>(rope.factor);
    frequencies[i] = interpolated * ramp + frequencies[i] * (1.0F - ramp);
  }
}

}  // namespace

std::vector<float> inverse_frequencies(const RopeConfig& rope, int64_t max_positions) {
  std::vector<float> frequencies = default_frequencies(rope);
  if (rope.kind == RopeKind::kLinear) {
    for (float& frequency : frequencies) frequency /= static_cast<float>(rope.factor);
  } else if (rope.kind == RopeKind::kLlama3) {
    for (float& frequency : frequencies) frequency = llama3_frequency(rope, frequency);
  } else if (rope.kind == RopeKind::kYarn) {
    apply_yarn(rope, frequencies);
  } else if (rope.kind == RopeKind::kLongrope) {  // Ding et al., "LongRoPE" (2024)
    const std::vector<float>& factors =
        max_positions > rope.original_max_positions ? rope.long_factor : rope.short_factor;
    for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] /= factors[i];
  }
  return frequencies;
}

std::vector<float> rope_table(const RopeConfig& rope, int64_t max_positions) {
  const std::vector<float> frequencies = inverse_frequencies(rope, max_positions);
  const size_t half = frequencies.size();
  const auto scale = static_cast<float>(rope.attention_factor);
  std::vector<float> table(static_cast<size_t>(max_positions) * 2 * half);
  for (size_t position = 0; position < static_cast<size_t>(max_positions); ++position) {
    float* row = table.data() + position * 2 * half;
    for (size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * frequencies[i];
      row[i] = std::cos(angle) * scale;
      row[half + i] = std::sin(angle) * scale;
    }
  }
  return table;
}

}  // namespace mpinfer::model
