// What attention_decode.cu does behind its tiles: sums of parts of a context become one row. A row
// of a query head is quads, four elements each; quad i of a KV head is elements i % kQuads * 4 on
// of its query head i / kQuads.
#pragma once

#include "kernels/cuda/device/handover.cuh"

namespace mpinfer::kernels::cuda {

constexpr int kMostAtOnce = 8;  // parts whose loads are on their way together
static_assert(kMostAtOnce >= DecodePlan::kMostInCluster);

// Of a quad: sums as if every score were less `highest` (in units of log2).
struct Merged {
  float highest = -INFINITY;
  float total = 0.0F;
  float4 sum = {0.0F, 0.0F, 0.0F, 0.0F};

  template <int N>
  __device__ void add(const float (&highs)[N], const float (&totals)[N], const float4 (&sums)[N]) {
    float top = highest;
#pragma unroll
    for (int n = 0; n < N; ++n) top = fmaxf(top, highs[n]);
    const float base = top == -INFINITY ? 0.0F : top;
    const float mine = exp2_fast(highest - base);
    highest = top;
    total *= mine;
    sum = {sum.x * mine, sum.y * mine, sum.z * mine, sum.w * mine};
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float factor = exp2_fast(highs[n] - base);
      total += totals[n] * factor;
      sum.x += sums[n].x * factor;
      sum.y += sums[n].y * factor;
      sum.z += sums[n].z * factor;
      sum.w += sums[n].w * factor;
    }
  }
};

// The query heads of one (sequence, KV head).
template <class T, int D>
struct Heads {
  static constexpr int kQuads = D / 4;
  const AttentionArgs& a;
  int64_t row;
  int kv_head;
  float* parts;  // of this (sequence, KV head)

  __device__ int quads() const { return a.group * kQuads; }
  __device__ float* part(int n) const { return parts + n * partial_floats(a.group, D); }

  __device__ void take_parts(Merged& merged, int i, int first, int count) const {
    const int g = i / kQuads;
    for (int done = 0; done < count; done += kMostAtOnce) {
      float highs[kMostAtOnce], totals[kMostAtOnce];
      float4 sums[kMostAtOnce];
#pragma unroll
      for (int n = 0; n < kMostAtOnce; ++n) {
        const float* from = part(first + done + n);
        const bool there = done + n < count;
        highs[n] = there ? __ldcg(from + a.group * D + g) : -INFINITY;
        totals[n] = there ? __ldcg(from + a.group * (D + 1) + g) : 0.0F;
        sums[n] = there ? __ldcg(reinterpret_cast<const float4*>(from) + i) : float4{};
      }
      merged.add(highs, totals, sums);
    }
  }
  __device__ void leave_part(const Merged& merged, int i, int n) const {
    float* to = part(n);
    reinterpret_cast<float4*>(to)[i] = merged.sum;
    if (i % kQuads == 0) {
      to[a.group * D + i / kQuads] = merged.highest;
      to[a.group * (D + 1) + i / kQuads] = merged.total;
    }
  }
  __device__ void store(Merged merged, int i) const {
    const int64_t head = int64_t{kv_head} * a.group + i / kQuads;
    if (a.sinks != nullptr) {
      merged.add<1>({a.sinks[head] * kLog2E}, {1.0F}, {float4{}});
    }
    const float factor = 1.0F / merged.total;
    T* to = static_cast<T*>(a.out.data) + row * a.out.stride + head * D + i % kQuads * 4;
    *reinterpret_cast<uint2*>(to) =
        make_uint2(pack<T>(merged.sum.x * factor, merged.sum.y * factor),
                   pack<T>(merged.sum.z * factor, merged.sum.w * factor));
  }
};

// Where the blocks of a cluster send each other the sums of their parts: block r finishes quads i
// with i % parts == r.
template <int D, int kColumns>
struct Inbox {
  float4 sums[kColumns * D / 4 + kMostAtOnce];  // [part][quads of this block]
  float2 scales[kMostAtOnce][kColumns];         // [part][query head]: highest, total

  __device__ void send(const Merged& merged, int i, int part, int parts, int quads) {
    const int each = (quads + parts - 1) / parts;
    store_at(address_at(shared_address(&sums[part * each + i / parts]), i % parts), merged.sum);
    // The first quads of a head bring its scales, one to each block.
    const int to = i % (D / 4);
    if (to >= parts) return;
    store_at(address_at(shared_address(&scales[part][i / (D / 4)]), to),
             make_float2(merged.highest, merged.total));
  }
  __device__ void take(Merged& merged, int i, int parts, int quads) const {
    const int each = (quads + parts - 1) / parts;
    float highs[kMostAtOnce], totals[kMostAtOnce];
    float4 from[kMostAtOnce];
#pragma unroll
    for (int n = 0; n < kMostAtOnce; ++n) {
      const bool there = n < parts;
      const float2 scale = there ? scales[n][i / (D / 4)] : make_float2(-INFINITY, 0.0F);
      highs[n] = scale.x;
      totals[n] = scale.y;
      from[n] = there ? sums[n * each + i / parts] : float4{};
    }
    merged.add(highs, totals, from);
  }
};

}  // namespace mpinfer::kernels::cuda
