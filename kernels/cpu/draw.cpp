#include "kernels/cpu/draw.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

namespace mpinfer::kernels::cpu {
namespace {

constexpr int64_t kBins = 4096;  // by sign, exponent and three bits of mantissa
constexpr int kBinShift = 20;
constexpr int64_t kBlock = 1024;  // weights summed at once

// Unsigned order of the result = order of x (no NaN).
uint32_t ordered_key(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

// -0 counts as 0.
int64_t bin_of(float x) {
  return ordered_key(x + 0.0F) >> kBinShift;
}

// The k-th largest of x[n], 1 <= k <= n.
float kth_largest(const float* x, int64_t n, int64_t k, DrawScratch& scratch) {
  scratch.counts.assign(kBins, 0);
  for (int64_t i = 0; i < n; ++i) ++scratch.counts[static_cast<size_t>(bin_of(x[i]))];
  int64_t bin = kBins - 1;
  while (scratch.counts[static_cast<size_t>(bin)] < k) {
    k -= scratch.counts[static_cast<size_t>(bin)];
    --bin;
  }
  scratch.values.clear();
  for (int64_t i = 0; i < n; ++i) {
    if (bin_of(x[i]) == bin) scratch.values.push_back(x[i]);
  }
  const auto kth = scratch.values.begin() + (k - 1);
  std::nth_element(scratch.values.begin(), kth, scratch.values.end(), std::greater<>());
  return *kth;
}

// Eight sums side by side, then pairwise: the order is part of the definition of a block's sum.
double block_sum(const float* w, int64_t n) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int64_t j = 0; j < 8; ++j) sums[j] += static_cast<double>(w[i + j]);
  }
  for (int64_t j = 0; i < n; ++i, ++j) sums[j] += static_cast<double>(w[i]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

double block_sums(const float* w, int64_t n, std::vector<double>& masses) {
  masses.clear();
  double total = 0.0;
  for (int64_t i = 0; i < n; i += kBlock) {
    masses.push_back(block_sum(w + i, std::min(kBlock, n - i)));
    total += masses.back();
  }
  return total;
}

// From the top bin down, the bin in which the mass reaches wanted; mass then holds what lies above
// it. Where rounding hides the crossing, the lowest bin that is not empty.
int64_t crossing_bin(const std::vector<double>& masses, double wanted, double& mass) {
  double above = mass;
  int64_t last = 0;
  for (int64_t bin = kBins - 1; bin >= 0; --bin) {
    const double here = masses[static_cast<size_t>(bin)];
    if (here <= 0.0) continue;
    above = mass;
    last = bin;
    if (mass + here >= wanted) return bin;
    mass += here;
  }
  mass = above;
  return last;
}

// Keeps of scratch.ids those whose weights fall into the crossing bin by bits [shift, shift + 12).
void refine(const float* w, int shift, double wanted, double& mass, DrawScratch& scratch) {
  const auto bin = [w, shift](int32_t id) {
    return static_cast<size_t>((ordered_key(w[id]) >> shift) % kBins);
  };
  scratch.masses.assign(kBins, 0.0);
  for (const int32_t id : scratch.ids) scratch.masses[bin(id)] += static_cast<double>(w[id]);
  const auto crossing = static_cast<size_t>(crossing_bin(scratch.masses, wanted, mass));
  std::erase_if(scratch.ids, [&](int32_t id) { return bin(id) != crossing; });
}

// Zeroes the weights that top_p drops. Radix selection: no sort of the vocabulary.
void keep_top_p(float* w, int64_t n, double wanted, DrawScratch& scratch) {
  scratch.masses.assign(kBins, 0.0);
  for (int64_t i = 0; i < n; ++i) {
    scratch.masses[static_cast<size_t>(bin_of(w[i]))] += static_cast<double>(w[i]);
  }
  double mass = 0.0;
  const int64_t bin = crossing_bin(scratch.masses, wanted, mass);
  scratch.ids.clear();
  for (int64_t i = 0; i < n; ++i) {
    if (w[i] > 0.0F && bin_of(w[i]) == bin) scratch.ids.push_back(static_cast<int32_t>(i));
  }
  constexpr size_t kSortable = 256;
  if (scratch.ids.size() > kSortable) refine(w, kBinShift - 12, wanted, mass, scratch);
  if (scratch.ids.size() > kSortable) refine(w, 0, wanted, mass, scratch);
  std::sort(scratch.ids.begin(), scratch.ids.end(),
            [w](int32_t a, int32_t b) { return w[a] != w[b] ? w[a] > w[b] : a < b; });
  size_t kept = 0;
  while (kept + 1 < scratch.ids.size()) {
    mass += static_cast<double>(w[scratch.ids[kept]]);
    if (mass >= wanted) break;
    ++kept;
  }
  const int32_t last_id = scratch.ids[kept];
  const float last = w[last_id];
  for (int64_t i = 0; i < n; ++i) {
    if (w[i] < last || (w[i] == last && i > last_id)) w[i] = 0.0F;
  }
}

// The first id by which the running sum exceeds target; the last id with weight if rounding hides
// it.
int32_t walk(const float* w, int64_t n, double target, const std::vector<double>& masses) {
  double sum = 0.0;
  int64_t last = -1;
  for (size_t block = 0; block < masses.size(); ++block) {
    const int64_t begin = static_cast<int64_t>(block) * kBlock;
    const int64_t end = std::min(begin + kBlock, n);
    if (masses[block] <= 0.0) continue;
    const bool here = sum + masses[block] > target;
    double inner = sum;
    for (int64_t i = begin; i < end && (here || block + 1 == masses.size()); ++i) {
      if (w[i] <= 0.0F) continue;
      last = i;
      inner += static_cast<double>(w[i]);
      if (inner > target) return static_cast<int32_t>(i);
    }
    if (here) return static_cast<int32_t>(last);
    sum += masses[block];
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    if (w[i] > 0.0F) return static_cast<int32_t>(i);
  }
  return static_cast<int32_t>(last);
}

}  // namespace

double sum_of(const float* w, int64_t n, DrawScratch& scratch) {
  return block_sums(w, n, scratch.masses);
}

int32_t draw(float* logits, int64_t n, const DrawParams& params, const KernelTable& kernels,
             DrawScratch& scratch) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const RowMax max = kernels.row_max(logits, n);
  if (max.has_nan || max.value == -kInfinity) return -1;
  if (params.temperature < 1e-5F) return static_cast<int32_t>(max.index);
  if (max.value == kInfinity) return -1;
  float threshold = -kInfinity;
  if (params.top_k > 0 && params.top_k < n) {
    threshold = kth_largest(logits, n, params.top_k, scratch);
  }
  kernels.weights(logits, n, max.value, 1.0F / params.temperature, threshold, params.min_p);
  double total = block_sums(logits, n, scratch.masses);
  if (params.top_p < 1.0F) {
    keep_top_p(logits, n, static_cast<double>(params.top_p) * total, scratch);
    total = block_sums(logits, n, scratch.masses);
  }
  return walk(logits, n, static_cast<double>(params.uniform) * total, scratch.masses);
}

}  // namespace mpinfer::kernels::cpu
