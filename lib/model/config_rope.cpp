// The rope part of config.json. Field names and defaults: transformers' modeling_rope_utils.py.
#include <cmath>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/model/architectures.h"

namespace mpinfer::model {
namespace {

constexpr Range kTheta = {2.0, 1e12};  // at 1 nothing would turn with the position
constexpr Range kFactor = {1.0, 1e6};
constexpr Range kFrequencyFactor = {1e-3, 1e6};
constexpr Range kLongFactor = {1e-3, 1e6};
constexpr Range kPositions = {1, 134'217'728};

void read_llama3(const ConfigReader& rope, RopeConfig& out) {
  out.kind = RopeKind::kLlama3;
  out.factor = rope.number("factor", kFactor);
  out.low_freq_factor = rope.number("low_freq_factor", kFrequencyFactor);
  out.high_freq_factor = rope.number("high_freq_factor", kFrequencyFactor);
  if (out.high_freq_factor <= out.low_freq_factor) {
    rope.refuse("high_freq_factor", fmt::format("is {}, not above low_freq_factor {}",
                                                out.high_freq_factor, out.low_freq_factor));
  }
}

void read_yarn(const ConfigReader& rope, const ModelConfig& config, RopeConfig& out) {
  out.kind = RopeKind::kYarn;
  const double ratio = static_cast<double>(config.max_position_embeddings) /
                       static_cast<double>(out.original_max_positions);
  out.factor = rope.number("factor", ratio, kFactor);
  out.beta_fast = rope.number("beta_fast", 32.0, kFrequencyFactor);
  out.beta_slow = rope.number("beta_slow", 1.0, kFrequencyFactor);
  out.truncate = rope.boolean("truncate", true);
  const double mscale = rope.number("mscale", 0.0, {0.0, 1e3});
  const double mscale_all = rope.number("mscale_all_dim", 0.0, {0.0, 1e3});
  const double by_default = mscale > 0 && mscale_all > 0 ? yarn_scale(out.factor, mscale) /
                                                               yarn_scale(out.factor, mscale_all)
                                                         : yarn_scale(out.factor, 1.0);
  out.attention_factor = rope.number("attention_factor", by_default, {1e-3, 1e3});
  out.mscale_all_dim = mscale_all;
}

// One divisor a rotary pair.
std::vector<float> read_factors(const ConfigReader& rope, const char* field, int32_t rotary_dim) {
  const auto count = static_cast<size_t>(rotary_dim / 2);
  std::vector<float> out;
  for (const double factor : rope.numbers(field, count, kLongFactor)) {
    out.push_back(static_cast<float>(factor));
  }
  if (out.size() != count) {
    rope.refuse(field, fmt::format("has {} items for {} rotary pairs", out.size(), count));
  }
  return out;
}

void read_longrope(const ConfigReader& rope, const ModelConfig& config, RopeConfig& out) {
  out.kind = RopeKind::kLongrope;
  out.short_factor = read_factors(rope, "short_factor", out.rotary_dim);
  out.long_factor = read_factors(rope, "long_factor", out.rotary_dim);
  const auto original = static_cast<double>(out.original_max_positions);
  out.factor = rope.number("factor", static_cast<double>(config.max_position_embeddings) / original,
                           kFactor);
  const double by_default =
      out.factor <= 1.0 ? 1.0 : std::sqrt(1.0 + std::log(out.factor) / std::log(original));
  if (!rope.has("attention_factor") && !std::isfinite(by_default)) {
    rope.refuse("original_max_position_embeddings", "is 1, which gives no attention_factor");
  }
  out.attention_factor = rope.number("attention_factor", by_default, {1e-3, 1e3});
}

// rope_parameters (transformers 5) or rope_scaling; null when there is neither.
std::optional<ConfigReader> rope_object(const ConfigReader& reader) {
  for (const char* field : {"rope_scaling", "rope_parameters"}) {
    if (reader.has(field) && !reader.raw(field).empty()) return reader.object(field);
  }
  return std::nullopt;
}

// Partial rotary: the first int(head_dim · factor) dimensions turn, which must be an even count.
int32_t rotary_dim(const ConfigReader& where, const ModelConfig& config, double factor) {
  const auto dim = static_cast<int32_t>(static_cast<double>(config.head_dim) * factor);
  if (dim < 2 || dim % 2 != 0) {
    where.refuse("partial_rotary_factor",
                 fmt::format("{} of head_dim {} gives {} rotary dimensions, not an even count >= 2",
                             factor, config.head_dim, dim));
  }
  return dim;
}

}  // namespace

double yarn_scale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

RopeConfig read_rope(const ConfigReader& reader, const ModelConfig& config, double default_theta) {
  RopeConfig out;
  out.theta = reader.number("rope_theta", default_theta, kTheta);
  double partial = reader.number("partial_rotary_factor", 1.0, {1e-3, 1.0});
  const std::optional<ConfigReader> rope = rope_object(reader);
  if (!rope) {
    out.rotary_dim = rotary_dim(reader, config, partial);
    return out;
  }
  if (rope->has("full_attention") || rope->has("sliding_attention")) {
    reader.refuse("rope_parameters", "differ by layer type, which this architecture does not have");
  }
  out.theta = rope->number("rope_theta", out.theta, kTheta);
  partial = rope->number("partial_rotary_factor", partial, {1e-3, 1.0});
  out.rotary_dim = rotary_dim(*rope, config, partial);
  // Phi-3 has it beside the rope's own fields, and that one counts.
  const char* original = "original_max_position_embeddings";
  out.original_max_positions = reader.integer(
      original, rope->integer(original, config.max_position_embeddings, kPositions), kPositions);
  const std::string type = rope->string("rope_type", rope->string("type", "default"));
  if (type == "linear") {
    out.kind = RopeKind::kLinear;
    out.factor = rope->number("factor", kFactor);
  } else if (type == "llama3") {
    read_llama3(*rope, out);
  } else if (type == "yarn") {
    read_yarn(*rope, config, out);
  } else if (type == "longrope" || type == "su") {
    read_longrope(*rope, config, out);
  } else if (type != "default") {
    rope->refuse("rope_type",
                 fmt::format("is \"{}\"; supported: default, linear, llama3, yarn, longrope",
                             printable(type, 80)));
  }
  return out;
}

}  // namespace mpinfer::model
