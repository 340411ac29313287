// One draw from a row of logits. Its definition is the CPU's (kernels/cpu/draw.h): weights w =
// exp((x - max) / temperature) in f32, min_p, top_k, top_p, then the survivors by ascending id.
// Masses are summed as integers (w * 2^44), so every order of summation gives the same total and
// the draw does not depend on scheduling.
#include "kernels/cuda/device/best.cuh"
#include "kernels/cuda/device/common.cuh"
#include "lib/core/philox.h"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kDrawThreads = 1024;
constexpr int kBins = 2048;
constexpr int kMostListed = 3072;  // weights of one bin that are looked at together

// Bans → bias → repetition → frequency → presence. True: the row holds a NaN.
__device__ bool adjust(float* logits, const SampleRow& row, const LogitAdjustment& a) {
  float x = logits[a.token];
  if (x != x) return true;
  if (a.banned != 0) {
    logits[a.token] = -INFINITY;
    return false;
  }
  x += a.bias;
  if (a.in_context != 0) x = x > 0.0F ? x / row.repetition_penalty : x * row.repetition_penalty;
  if (a.output_count > 0) {
    x -= row.frequency_penalty * static_cast<float>(a.output_count);
    x -= row.presence_penalty;
  }
  logits[a.token] = x;
  return false;
}

// Larger float, larger key.
__device__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

__device__ float logit_of(uint32_t key) {  // the float with this key
  return __uint_as_float((key & 0x80000000U) != 0 ? key & 0x7FFFFFFFU : ~key);
}

// w * 2^44 without its fraction, for w in [0, 1]: its mantissa, shifted.
__device__ unsigned long long mass_of(float w) {
  const uint32_t bits = __float_as_uint(w);
  const int shift = static_cast<int>(bits >> 23) - 106;
  const unsigned long long mantissa = (bits & 0x7FFFFFU) | 0x800000U;
  if (shift >= 0) return mantissa << shift;
  return shift > -24 ? mantissa >> -shift : 0;
}

struct DrawState {
  // Sums of 64 bits in halves: shared memory adds 32 bits at once.
  uint32_t bins_low[kBins];
  uint32_t bins_high[kBins];
  unsigned long long warp_sums[32];
  unsigned long long warp_ties[32];
  unsigned long long before;  // above the chosen bin, or before the chosen segment
  unsigned long long ties_before;
  uint2 listed[kMostListed];  // {bits of the weight, token}
  int num_listed;
  int chosen;
};

__device__ unsigned long long block_add(unsigned long long x, DrawState& s) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffU, x, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warp_sums[threadIdx.x / 32] = x;
  __syncthreads();
  unsigned long long sum = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += s.warp_sums[w];
  __syncthreads();
  return sum;
}

// Exclusive prefix over the block.
__device__ unsigned long long block_prefix(unsigned long long x, DrawState& s) {
  unsigned long long inclusive = x;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const unsigned long long other = __shfl_up_sync(0xffffffffU, inclusive, offset);
    if (static_cast<int>(threadIdx.x % 32) >= offset) inclusive += other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 31) s.warp_sums[threadIdx.x / 32] = inclusive;
  __syncthreads();
  unsigned long long before = inclusive - x;
  for (unsigned w = 0; w < threadIdx.x / 32; ++w) before += s.warp_sums[w];
  __syncthreads();
  return before;
}

__device__ void clear_bins(DrawState& s) {
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kDrawThreads) {
    s.bins_low[i] = 0;
    s.bins_high[i] = 0;
  }
  __syncthreads();
}

__device__ void add_to_bin(DrawState& s, uint32_t bin, unsigned long long x) {
  const auto low = static_cast<uint32_t>(x);
  const uint32_t before = atomicAdd(&s.bins_low[bin], low);
  const uint32_t high = static_cast<uint32_t>(x >> 32) + (before + low < before ? 1U : 0U);
  if (high != 0) atomicAdd(&s.bins_high[bin], high);
}

__device__ unsigned long long bin_sum(const DrawState& s, int bin) {
  return static_cast<unsigned long long>(s.bins_high[bin]) << 32 | s.bins_low[bin];
}

// The bin, from the top, in which the sum reaches target; higher grows by what lies above it.
__device__ int choose_bin(unsigned long long target, unsigned long long* higher, DrawState& s) {
  __syncthreads();
  const int top = kBins - 1 - 2 * static_cast<int>(threadIdx.x);
  const unsigned long long a = bin_sum(s, top);
  const unsigned long long b = bin_sum(s, top - 1);
  const unsigned long long before = *higher + block_prefix(a + b, s);
  if (before < target && before + a + b >= target) {
    const bool first = before + a >= target;
    s.chosen = first ? top : top - 1;
    s.before = first ? before : before + a;
  }
  __syncthreads();
  *higher = s.before;
  const int bin = s.chosen;
  __syncthreads();
  return bin;
}

// Of elements whose key starts with prefix (the bits from shift up): the largest key t such that
// the mass of keys >= t, and higher with it, reaches target. key(c) and mass(c) are called for
// every element.
template <class Key, class Mass>
__device__ uint32_t select_key(int32_t cols, unsigned long long target, uint32_t prefix, int shift,
                               unsigned long long* higher, Key key, Mass mass, DrawState& s) {
  while (shift > 0) {
    const int bits = shift < 11 ? shift : 11;
    const int next = shift - bits;
    clear_bins(s);
    for (int32_t c = static_cast<int32_t>(threadIdx.x); c < cols; c += kDrawThreads) {
      const uint32_t k = key(c);
      if (shift < 32 && (k >> shift) != prefix) continue;
      const unsigned long long m = mass(k);
      if (m != 0) add_to_bin(s, (k >> next) & ((1U << bits) - 1U), m);
    }
    prefix = (prefix << bits) | static_cast<uint32_t>(choose_bin(target, higher, s));
    shift = next;
  }
  return prefix;
}

// Weights in (0, 1] by size: 64 bins an octave down to 2^-31, all smaller ones in bin 0.
constexpr int kOctaves = 31;
constexpr int kBinShift = 17;
constexpr uint32_t kFirstBin = (127U - kOctaves) << 6;
__device__ int bin_of(uint32_t weight_bits) {
  const uint32_t bin = weight_bits >> kBinShift;
  return bin > kFirstBin ? static_cast<int>(bin - kFirstBin) : 0;
}

// f(id, logit) for a warp's part [begin, end) of a row, begin a multiple of 4; sixteen loads of
// four under way where the row is aligned for them.
template <class F>
__device__ void for_part(const float* logits, int32_t begin, int32_t end, bool quads, F f) {
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  if (!quads) {
#pragma unroll 4
    for (int32_t c = begin + lane; c < end; c += 32) f(c, logits[c]);
    return;
  }
  constexpr int kAtOnce = 4;
  int32_t c = begin + 4 * lane;
  for (; c + (kAtOnce - 1) * 128 + 3 < end; c += kAtOnce * 128) {
    float4 x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) x[i] = *reinterpret_cast<const float4*>(logits + c + i * 128);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      f(c + i * 128, x[i].x);
      f(c + i * 128 + 1, x[i].y);
      f(c + i * 128 + 2, x[i].z);
      f(c + i * 128 + 3, x[i].w);
    }
  }
  for (; c < end; c += 128) {
    for (int32_t i = c; i < min(c + 4, end); ++i) f(i, logits[i]);
  }
}

// The bin in which the mass from the top reaches about this share of all, by the number of members
// and the middle weight of each bin.
__device__ int guess_bin(float share, DrawState& s) {
  __syncthreads();
  const int top = kBins - 1 - 2 * static_cast<int>(threadIdx.x);
  const auto middle = [](int bin) {
    return mass_of(__uint_as_float((kFirstBin + static_cast<uint32_t>(bin)) << kBinShift |
                                   1U << (kBinShift - 1)));
  };
  const unsigned long long a = s.bins_low[top] * middle(top);
  const unsigned long long b = s.bins_low[top - 1] * middle(top - 1);
  const unsigned long long all = block_add(a + b, s);
  const unsigned long long before = block_prefix(a + b, s);
  const auto target = max(
      1ULL, static_cast<unsigned long long>(static_cast<double>(share) * static_cast<double>(all)));
  if (threadIdx.x == 0) s.chosen = 0;
  __syncthreads();
  if (before < target && before + a + b >= target) s.chosen = before + a >= target ? top : top - 1;
  __syncthreads();
  const int bin = s.chosen;
  __syncthreads();
  return bin;
}

// The next bin above (step 1) or below (-1) that has members.
__device__ int nearest_bin(int bin, int step, const DrawState& s) {
  do {
    bin += step;
  } while (bin > 0 && bin < kBins - 1 && s.bins_low[bin] == 0);
  return bin;
}

__global__ void __launch_bounds__(kDrawThreads)
    sample_kernel(int32_t* ids, float* all, int64_t stride, int32_t cols, const SampleRow* params,
                  const int32_t* offsets, const LogitAdjustment* adjustments) {
  __shared__ DrawState s;
  wait_for_previous();
  const int64_t r = blockIdx.x;
  const SampleRow row = params[r];
  float* logits = all + r * stride;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  bool nan = false;
  if (offsets != nullptr) {
    for (int32_t i = offsets[r] + thread; i < offsets[r + 1]; i += kDrawThreads) {
      nan = adjust(logits, row, adjustments[i]) || nan;
    }
    __syncthreads();
  }
  const bool greedy = row.temperature < 1e-5F;
  const int32_t warp = thread / 32;
  const int32_t segment = ((cols + 31) / 32 + 31) / 32 * 32;  // of a warp
  const int32_t my_begin = min(cols, warp * segment);
  const int32_t my_end = min(cols, (warp + 1) * segment);
  const bool quads = stride % 4 == 0 && reinterpret_cast<uintptr_t>(all) % 16 == 0;
  Best best;
  if (greedy) {
    for_part(logits, my_begin, my_end, quads, [&](int32_t c, float x) { best.take(x, c); });
  } else {
    for_part(logits, my_begin, my_end, quads, [&](int32_t, float x) {
      nan = nan || x != x;
      best.value = fmaxf(best.value, x);
    });
    if (best.value > -INFINITY) best.id = 0;
  }
  best.has_nan = best.has_nan || nan;
  best = block_best(best);
  if (best.has_nan || best.id == INT32_MAX || best.value == -INFINITY ||
      (!greedy && best.value == INFINITY)) {
    if (thread == 0) ids[r] = -1;
    return;
  }
  if (greedy) {
    if (thread == 0) ids[r] = best.id;
    return;
  }
  float least = -INFINITY;  // logit that top_k lets through
  if (row.top_k > 0 && row.top_k < cols) {
    unsigned long long higher = 0;
    const uint32_t key = select_key(
        cols, static_cast<unsigned long long>(row.top_k), 0, 32, &higher,
        [&](int32_t c) { return key_of(logits[c]); }, [](uint32_t) { return 1ULL; }, s);
    least = logit_of(key);
  }
  // Weights are made anew in every pass: a row of logits is read, never written. 0 for what top_k
  // and min_p drop.
  const float scale = kLog2E / row.temperature;
  const auto weight_of = [&](float x) {
    const float w = exp2_fast((x - best.value) * scale);
    return w < row.min_p || x < least ? 0.0F : w;
  };
  const auto weight = [&](int32_t c) { return weight_of(logits[c]); };
  clear_bins(s);
  const bool filtered = row.top_p < 1.0F;
  unsigned long long sum = 0;
  for_part(logits, my_begin, my_end, quads, [&](int32_t, float x) {
    const float w = weight_of(x);
    const unsigned long long m = mass_of(w);
    sum += m;
    if (filtered && m != 0) atomicAdd(&s.bins_low[bin_of(__float_as_uint(w))], 1U);
  });
  unsigned long long left = block_add(sum, s);
  // top_p: every weight above the threshold, and of those equal to it the lowest ids, up to the
  // crossing token.
  uint32_t threshold = 0;
  unsigned long long of_tie = 0;
  unsigned long long ties_left = 0;
  unsigned long long ties = 0;
  const auto mass = [](uint32_t k) { return mass_of(__uint_as_float(k)); };
  // Survivors of [begin, end): their mass, ties apart.
  const auto sum_segment = [&](int32_t begin, int32_t end, int32_t step,
                               unsigned long long* equal) {
    unsigned long long total = 0;
    for (int32_t c = begin; c < end; c += step) {
      const uint32_t bits = __float_as_uint(weight(c));
      if (filtered && bits == threshold) ++*equal;
      if (bits > threshold || !filtered) total += mass(bits);
    }
    return total;
  };
  if (filtered) {
    auto target = static_cast<unsigned long long>(
        ceil(static_cast<double>(row.top_p) * static_cast<double>(left)));
    target = target == 0 ? 1 : target > left ? left : target;
    // The bin in which the mass from the top reaches the target: guessed from the numbers of
    // weights a bin, then seen, in the pass that sums what lies above it by segment and lists what
    // lies in it.
    int bin = guess_bin(row.top_p, s);
    unsigned long long above = 0;
    while (true) {
      if (thread == 0) s.num_listed = 0;
      __syncthreads();
      sum = 0;
      unsigned long long inside = 0;
      for_part(logits, my_begin, my_end, quads, [&](int32_t c, float x) {
        const uint32_t bits = __float_as_uint(weight_of(x));
        const int here = bin_of(bits);
        if (here < bin) return;
        const unsigned long long m = mass(bits);
        if (here > bin) sum += m;
        if (here != bin || m == 0) return;
        inside += m;
        const int at = atomicAdd(&s.num_listed, 1);
        if (at < kMostListed) s.listed[at] = make_uint2(bits, static_cast<uint32_t>(c));
      });
      above = block_add(sum, s);
      inside = block_add(inside, s);
      if (above < target && (above + inside >= target || bin == 0)) break;
      bin = nearest_bin(bin, above < target ? -1 : 1, s);
      __syncthreads();
    }
    const int32_t num_listed = s.num_listed;
    const bool fits = num_listed <= kMostListed;
    const auto select = [&](int32_t count, auto key) {
      if (bin > 0) {
        return select_key(count, target, kFirstBin + static_cast<uint32_t>(bin), kBinShift, &above,
                          key, mass, s);
      }
      const auto small = [&](uint32_t k) { return bin_of(k) == 0 ? mass(k) : 0ULL; };
      return select_key(count, target, 0, 32, &above, key, small, s);
    };
    threshold = fits ? select(num_listed, [&](int32_t i) { return s.listed[i].x; })
                     : select(cols, [&](int32_t c) { return __float_as_uint(weight(c)); });
    of_tie = mass(threshold);
    ties_left = (target - above + of_tie - 1) / of_tie;
    left = above + ties_left * of_tie;
    if (fits) {
      clear_bins(s);
      uint32_t* const ties_of_warp = s.bins_low + 32;
      for (int32_t i = thread; i < num_listed; i += kDrawThreads) {
        const uint2 one = s.listed[i];
        const uint32_t of_warp = one.y / static_cast<uint32_t>(segment);
        if (one.x > threshold) add_to_bin(s, of_warp, mass(one.x));
        if (one.x == threshold) atomicAdd(&ties_of_warp[of_warp], 1U);
      }
      __syncthreads();
      if (thread % 32 == 0) {
        sum += bin_sum(s, warp);
        ties = ties_of_warp[warp];
      }
    } else {
      sum = sum_segment(my_begin + thread % 32, my_end, 32, &ties);
    }
  }
  // Survivors by ascending id: first the warp's segment in which the sum crosses the drawn mass,
  // then the token in it.
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(0xffffffffU, sum, offset);
    ties += __shfl_xor_sync(0xffffffffU, ties, offset);
  }
  __syncthreads();
  if (thread % 32 == 0) {
    s.warp_sums[warp] = sum;
    s.warp_ties[warp] = ties;
  }
  __syncthreads();
  const float uniform = philox_uniform(
      {.seed = row.seed, .index = row.index, .sample = row.sample, .position = row.position});
  const auto target =
      static_cast<unsigned long long>(static_cast<double>(uniform) * static_cast<double>(left));
  if (thread == 0) {
    unsigned long long before = 0;
    unsigned long long ties_before = 0;
    int w = 0;
    for (; w < 31; ++w) {
      const unsigned long long room = ties_left > ties_before ? ties_left - ties_before : 0;
      const unsigned long long here =
          s.warp_sums[w] + (s.warp_ties[w] < room ? s.warp_ties[w] : room) * of_tie;
      if (before + here > target) break;
      before += here;
      ties_before += s.warp_ties[w];
    }
    s.chosen = w;
    s.before = before;
    s.ties_before = ties_before;
  }
  __syncthreads();
  const int32_t segment_begin = min(cols, s.chosen * segment);
  const int32_t segment_end = min(cols, segment_begin + segment);
  const int32_t run = (segment + kDrawThreads - 1) / kDrawThreads;
  const int32_t begin = min(segment_end, segment_begin + run * thread);
  const int32_t end = min(segment_end, begin + run);
  ties = 0;
  sum = sum_segment(begin, end, 1, &ties);
  unsigned long long ties_before = s.ties_before + block_prefix(ties, s);
  const unsigned long long room = ties_left > ties_before ? ties_left - ties_before : 0;
  sum += (ties < room ? ties : room) * of_tie;
  unsigned long long before = s.before + block_prefix(sum, s);
  if (sum == 0 || before > target || before + sum <= target) return;
  for (int32_t c = begin; c < end; ++c) {
    const uint32_t bits = __float_as_uint(weight(c));
    if (filtered && bits == threshold) {
      before += ties_before++ < ties_left ? of_tie : 0;
    } else if (bits > threshold || !filtered) {
      before += mass(bits);
    }
    if (before > target) {
      ids[r] = c;
      return;
    }
  }
}

}  // namespace

void sample(cudaStream_t stream, int32_t* ids, float* logits, int64_t stride, int64_t rows,
            int32_t cols, const SampleRow* params, const int32_t* adjustment_offsets,
            const LogitAdjustment* adjustments) {
  launch(sample_kernel, static_cast<unsigned>(rows), kDrawThreads, 0, stream, ids, logits, stride,
         cols, params, adjustment_offsets, adjustments);
}

}  // namespace mpinfer::kernels::cuda
