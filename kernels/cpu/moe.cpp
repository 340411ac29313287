// Mixture of experts, row by row: the router's choice and gpt-oss' activation. Plain loops: the
// experts' products are gemm's business.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu.h"

namespace mpinfer::kernels::cpu {
namespace {

// What is left to choose is never below kLeast (a NaN counts as that), what was chosen is kTaken:
// so no expert is chosen twice, whatever the logits are.
constexpr float kLeast = std::numeric_limits<float>::lowest();
constexpr float kTaken = -std::numeric_limits<float>::infinity();

float sigmoid(float x) {
  return 1.0F / (1.0F + std::exp(-x));
}

void scores_of(float* scores, const float* logits, const RouteArgs& args) {
  for (int64_t e = 0; e < args.num_experts; ++e) {
    scores[e] = logits[e] + (args.bias == nullptr ? 0.0F : args.bias[e]);
  }
  if (args.sigmoid) {
    for (int64_t e = 0; e < args.num_experts; ++e) scores[e] = sigmoid(scores[e]);
    return;
  }
  const float most = *std::max_element(scores, scores + args.num_experts);
  float sum = 0.0F;
  for (int64_t e = 0; e < args.num_experts; ++e) {
    scores[e] = std::exp(scores[e] - most);
    sum += scores[e];
  }
  for (int64_t e = 0; e < args.num_experts; ++e) scores[e] /= sum;
}

int64_t largest(const float* values, int64_t n) {  // the first of them
  return std::max_element(values, values + n) - values;
}

// Takes experts outside the best groups out of the choice.
void keep_groups(float* choice, float* groups, const RouteArgs& args) {
  const int64_t size = args.num_experts / args.num_groups;
  for (int64_t g = 0; g < args.num_groups; ++g) {
    const float* from = choice + g * size;
    const int64_t first = largest(from, size);
    float second = kLeast;
    for (int64_t i = 0; i < size; ++i) {
      if (i != first) second = std::max(second, from[i]);
    }
    const float sum = from[first] + (args.best_of_group > 1 && size > 1 ? second : 0.0F);
    groups[g] = std::max(sum, kLeast);
  }
  float* const kept = groups + args.num_groups;
  std::fill(kept, kept + args.num_groups, 0.0F);
  for (int64_t i = 0; i < args.top_groups; ++i) {
    const int64_t g = largest(groups, args.num_groups);
    kept[g] = 1.0F;
    groups[g] = kTaken;
  }
  for (int64_t e = 0; e < args.num_experts; ++e) {
    if (kept[e / size] == 0.0F) choice[e] = kLeast;
  }
}

}  // namespace

int64_t route_scratch(const RouteArgs& args) {
  return 2 * args.num_experts + 2 * args.num_groups;
}

void route(int32_t* experts, float* weights, const float* logits, const RouteArgs& args,
           float* scratch) {
  float* const scores = scratch;
  float* const choice = scratch + args.num_experts;
  scores_of(scores, logits, args);
  for (int64_t e = 0; e < args.num_experts; ++e) {
    const float value = scores[e] + (args.correction == nullptr ? 0.0F : args.correction[e]);
    choice[e] = value >= kLeast ? value : kLeast;
  }
  if (args.num_groups > 1) keep_groups(choice, choice + args.num_experts, args);
  float sum = 0.0F;
  for (int64_t k = 0; k < args.top_k; ++k) {
    const int64_t e = largest(choice, args.num_experts);
    experts[k] = static_cast<int32_t>(e);
    weights[k] = scores[e];
    sum += scores[e];
    choice[e] = kTaken;
  }
  const float factor = args.renormalise ? args.scale / (sum + 1e-20F) : args.scale;
  for (int64_t k = 0; k < args.top_k; ++k) weights[k] *= factor;
}

void clamped_swiglu(float* out, const float* x, int64_t n, float alpha, float limit) {
  for (int64_t i = 0; i < n; ++i) {
    const float gate = std::min(x[2 * i], limit);
    const float up = std::clamp(x[2 * i + 1], -limit, limit);
    out[i] = (up + 1.0F) * gate * sigmoid(alpha * gate);
  }
}

}  // namespace mpinfer::kernels::cpu
