// A row of attention_hopper.cu between the two products, and to where it belongs. Fragments are
// those of wgmma: a thread holds columns n * 8 + lane % 4 * 2 + {0, 1} of rows lane / 4 and eight
// below.
#pragma once

#include "kernels/cuda/device/attention_tasks.cuh"
#include "kernels/cuda/device/warpgroup.cuh"

namespace mpinfer::kernels::cuda {

// The online softmax of a thread's two rows (lane / 4 and eight below) of a warp's 16.
struct Softmax {
  float highest[2] = {-INFINITY, -INFINITY};  // in units of log2
  float total[2] = {0.0F, 0.0F};              // of this thread's columns
  float factor[2];                            // what sums so far are to be multiplied by

  // Scores, times scale in units of log2, become weights.
  template <int N>
  __device__ void take(float (&s)[N][4], float scale) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most[2] = {-INFINITY, -INFINITY};  // two chains: half the wait
#pragma unroll
      for (int n = 0; n < N; ++n) {
        most[n % 2] = fmaxf(most[n % 2], fmaxf(s[n][2 * h], s[n][2 * h + 1]));
      }
      float now = fmaxf(most[0], most[1]);
      now = fmaxf(now, __shfl_xor_sync(0xffffffffU, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffU, now, 2));
      const float next = fmaxf(highest[h], now * scale);
      const float base = next == -INFINITY ? 0.0F : next;
      factor[h] = exp2_fast(highest[h] - base);
      highest[h] = next;
      total[h] *= factor[h];
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          s[n][e] = exp2_fast(fmaf(s[n][e], scale, -base));
          total[h] += s[n][e];
        }
      }
    }
  }
};

// What a consumer thread's two rows see: tokens in (low, high].
struct Sight {
  int low[2];
  int high[2];
  // Of the warpgroup's rows: tokens in (most_low, least_high] are seen by all.
  int most_low;
  int least_high;
};

template <bool kPrefix>
__device__ Sight sight_of(const AttentionArgs& a, const Task& task, int group, int row) {
  const auto high = [&](int r) {
    return kPrefix ? task.end_token - 1 : task.position + (task.row0 + r) / a.group;
  };
  const auto low = [&](int r) { return !kPrefix && a.window > 0 ? high(r) - a.window : -1; };
  return {
      {low(row), low(row + 8)}, {high(row), high(row + 8)}, low(group * 64 + 63), high(group * 64)};
}

// Scores of a tile that begins at first_token, capped and hidden where a row does not see.
template <int N>
__device__ void finish_scores(float (&s)[N][4], const AttentionArgs& a, const Sight& sight,
                              int first_token, int lane) {
  if (a.softcap > 0.0F) {
    // tanh(x) = 1 - 2 / (e^2x + 1), within the last places of 1.
    const float inner = 2.0F * kLog2E * a.scale / a.softcap;
    const float outer = kLog2E * a.softcap;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[n][e] = outer - __fdividef(2.0F * outer, exp2_fast(s[n][e] * inner) + 1.0F);
      }
    }
  }
  const int first = first_token + lane % 4 * 2;  // this thread's
  if (first_token + kTokens - 1 > sight.least_high) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (n * 8 + e % 2 > sight.high[e / 2] - first) s[n][e] = -INFINITY;
      }
    }
  }
  if (first_token <= sight.most_low) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (n * 8 + e % 2 <= sight.low[e / 2] - first) s[n][e] = -INFINITY;
      }
    }
  }
}

// Row r (of the task's sequence or group) to where it belongs; called by all lanes.
template <class T, int D, bool kPrefix>
__device__ void store_row(const AttentionArgs& a, const DecodePlan& plan, const Task& task, int r,
                          const float (&o)[D / 8][4], int h, const Softmax& softmax, int lane) {
  float total = softmax.total[h];
  total += __shfl_xor_sync(0xffffffffU, total, 1);
  total += __shfl_xor_sync(0xffffffffU, total, 2);
  const int unit = r / a.group;
  const int g = r % a.group;
  const int quad = lane % 4;
  if constexpr (kPrefix) {
    if (r >= task.rows) return;
    const int64_t piece = partial_floats(a.group, D);
    float* to = plan.partial +
                ((int64_t{task.sequence} + unit) * a.num_kv_heads + task.kv_head) *
                    plan.num_parts() * piece +
                task.split * piece;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      *reinterpret_cast<float2*>(to + g * D + n * 8 + quad * 2) =
          make_float2(o[n][2 * h], o[n][2 * h + 1]);
    }
    if (quad == 0) {
      to[a.group * D + g] = softmax.highest[h];
      to[a.group * (D + 1) + g] = total;
    }
  } else {
    const int head = task.kv_head * a.group + g;
    float factor = 1.0F;
    if (a.sinks != nullptr) {
      const float sink = a.sinks[head] * kLog2E;
      const float top = fmaxf(sink, softmax.highest[h]);
      factor = exp2_fast(softmax.highest[h] - top);
      total = total * factor + exp2_fast(sink - top);
    }
    factor /= total;
    T* to = static_cast<T*>(a.out.data) + (int64_t{task.q_row} + unit) * a.out.stride +
            int64_t{head} * D;
#pragma unroll
    for (int n = 0; n < D / 8; n += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = pack<T>(o[n + i][2 * h] * factor, o[n + i][2 * h + 1] * factor);
      }
      transpose_words(words, lane);
      if (r < task.rows) {
        *reinterpret_cast<uint4*>(to + (n + quad) * 8) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }
}

}  // namespace mpinfer::kernels::cuda
