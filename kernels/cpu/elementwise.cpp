// Norms, gates, rotary embedding with the KV write, sums: one pass over the rows of a step.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>

#include "kernels/cpu/simd-inl.h"
#include "kernels/cpu/tables.h"

HWY_BEFORE_NAMESPACE();
namespace mpinfer::kernels::cpu::HWY_NAMESPACE {
namespace {

// Four running sums, then the tail, in this order for every row.
float sum_of_squares(const float* x, int64_t n) {
  Vec sum0 = hn::Zero(kTag);
  Vec sum1 = sum0;
  Vec sum2 = sum0;
  Vec sum3 = sum0;
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    const Vec x0 = hn::LoadU(kTag, x + i);
    const Vec x1 = hn::LoadU(kTag, x + i + kLanes);
    const Vec x2 = hn::LoadU(kTag, x + i + 2 * kLanes);
    const Vec x3 = hn::LoadU(kTag, x + i + 3 * kLanes);
    sum0 = hn::MulAdd(x0, x0, sum0);
    sum1 = hn::MulAdd(x1, x1, sum1);
    sum2 = hn::MulAdd(x2, x2, sum2);
    sum3 = hn::MulAdd(x3, x3, sum3);
  }
  for (; i < n; i += kLanes) {
    const Vec x0 = i + kLanes <= n ? hn::LoadU(kTag, x + i) : load_partial(x + i, n - i);
    sum0 = hn::MulAdd(x0, x0, sum0);
  }
  return sum_of_lanes(hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)));
}

// out = x / sqrt(mean(x²) + eps) * weight; out may be x.
void rms_norm_row(float* out, const float* x, const float* weight, float eps, int64_t n) {
  const float mean = sum_of_squares(x, n) / static_cast<float>(n);
  const Vec factor = hn::Set(kTag, 1.0F / std::sqrt(mean + eps));
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec scaled = hn::Mul(hn::LoadU(kTag, x + i), factor);
    hn::StoreU(hn::Mul(scaled, hn::LoadU(kTag, weight + i)), kTag, out + i);
  }
  if (i < n) {
    const Vec scaled = hn::Mul(load_partial(x + i, n - i), factor);
    store_partial(hn::Mul(scaled, load_partial(weight + i, n - i)), out + i, n - i);
  }
}

// out += scale * x
void add_scaled(float* out, const float* x, float scale, int64_t n) {
  const Vec factor = hn::Set(kTag, scale);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec sum = hn::MulAdd(hn::LoadU(kTag, x + i), factor, hn::LoadU(kTag, out + i));
    hn::StoreU(sum, kTag, out + i);
  }
  if (i < n) {
    const Vec sum = hn::MulAdd(load_partial(x + i, n - i), factor, load_partial(out + i, n - i));
    store_partial(sum, out + i, n - i);
  }
}

void norm(const NormArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t r = row_begin; r < row_end; ++r) {
    const float* x = args.x + r * args.x_stride;
    if (args.residual != nullptr) {
      float* residual = args.residual + r * args.residual_stride;
      add_scaled(residual, x, args.scale, args.cols);
      x = residual;
    }
    if (args.weight != nullptr) {
      rms_norm_row(args.out + r * args.out_stride, x, args.weight, args.eps, args.cols);
    }
  }
}

HWY_INLINE Vec gate_of(Vec x, Gate gate) {
  switch (gate) {
    case Gate::kSilu:
      return hn::Mul(x, sigmoid_of(x));
    case Gate::kGelu: {
      const Vec half = hn::Mul(x, hn::Set(kTag, 0.5F));
      return hn::MulAdd(half, erf_of(hn::Mul(x, hn::Set(kTag, 0.70710678118654752F))), half);
    }
    default: {  // 0.5 x (1 + tanh u) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x³)
      const Vec cube = hn::Mul(hn::Mul(x, x), x);
      const Vec inner = hn::MulAdd(cube, hn::Set(kTag, 0.044715F), x);
      return hn::Mul(x, sigmoid_of(hn::Mul(inner, hn::Set(kTag, 1.5957691216057308F))));
    }
  }
}

void gated(float* out, const float* x, int64_t n, Gate gate) {
  Vec a;
  Vec b;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::LoadInterleaved2(kTag, x + 2 * i, a, b);
    hn::StoreU(hn::Mul(gate_of(a, gate), b), kTag, out + i);
  }
  if (i < n) {
    HWY_ALIGN float lanes[2 * kLanes] = {};
    std::memcpy(lanes, x + 2 * i, static_cast<size_t>(2 * (n - i)) * sizeof(float));
    hn::LoadInterleaved2(kTag, lanes, a, b);
    store_partial(hn::Mul(gate_of(a, gate), b), out + i, n - i);
  }
}

// Rotates pairs (d, d + half) in place; cos_sin: [half cos | half sin].
void rotate(float* x, const float* cos_sin, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec c = hn::LoadU(kTag, cos_sin + i);
    const Vec s = hn::LoadU(kTag, cos_sin + half + i);
    const Vec a = hn::LoadU(kTag, x + i);
    const Vec b = hn::LoadU(kTag, x + half + i);
    hn::StoreU(hn::NegMulAdd(b, s, hn::Mul(a, c)), kTag, x + i);
    hn::StoreU(hn::MulAdd(a, s, hn::Mul(b, c)), kTag, x + half + i);
  }
  for (; i < half; ++i) {
    const float a = x[i];
    const float b = x[half + i];
    x[i] = a * cos_sin[i] - b * cos_sin[half + i];
    x[half + i] = b * cos_sin[i] + a * cos_sin[half + i];
  }
}

// to = from turned; pairs (2i, 2i + 1) where interleaved, else (i, i + half). to may be from.
void rotate_pairs(float* to, const float* from, const float* cos_sin, int64_t half,
                  bool interleaved) {
  for (int64_t i = 0; i < half; ++i) {
    const int64_t first = interleaved ? 2 * i : i;
    const int64_t second = interleaved ? 2 * i + 1 : i + half;
    const float a = from[first];
    const float b = from[second];
    to[first] = a * cos_sin[i] - b * cos_sin[half + i];
    to[second] = b * cos_sin[i] + a * cos_sin[half + i];
  }
}

void latent_rope_write(const LatentRopeWriteArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t width = args.latent_dim + args.rotary_dim;
  const int64_t half = args.rotary_dim / 2;
  for (int64_t r = row_begin; r < row_end; ++r) {
    const int64_t slot = args.slot_mapping[r];
    if (slot < 0) continue;
    const float* cos_sin = args.cos_sin + args.positions[r] * args.rotary_dim;
    for (int64_t h = 0; h < args.num_heads; ++h) {
      rotate_pairs(args.q_latent + r * args.q_latent_stride + h * width + args.latent_dim,
                   args.q + r * args.q_stride + (h + 1) * args.q_head_dim - args.rotary_dim,
                   cos_sin, half, args.interleaved);
    }
    const float* from = args.latent_kv + r * args.latent_kv_stride;
    float* to =
        args.cache + slot / args.block_size * args.block_stride + slot % args.block_size * width;
    rms_norm_row(to, from, args.norm, args.norm_eps, args.latent_dim);
    rotate_pairs(to + args.latent_dim, from + args.latent_dim, cos_sin, half, args.interleaved);
  }
}

void rope_write(const RopeWriteArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t n = args.head_dim;
  const auto head_bytes = static_cast<size_t>(n) * sizeof(float);
  for (int64_t r = row_begin; r < row_end; ++r) {
    const int64_t slot = args.slot_mapping[r];
    if (slot < 0) continue;
    float* row = args.qkv + r * args.qkv_stride;
    const float* cos_sin =
        args.cos_sin == nullptr ? nullptr : args.cos_sin + args.positions[r] * args.rotary_dim;
    for (int64_t h = 0; h < args.num_q_heads + args.num_kv_heads; ++h) {
      float* head = row + h * n;
      const float* weight = h < args.num_q_heads ? args.q_norm : args.k_norm;
      if (weight != nullptr) rms_norm_row(head, head, weight, args.norm_eps, n);
      if (cos_sin != nullptr) rotate(head, cos_sin, args.rotary_dim / 2);
    }
    const int64_t at = slot / args.block_size * args.block_stride;
    const int64_t token = slot % args.block_size;
    const float* k = row + args.num_q_heads * n;
    const float* v = k + args.num_kv_heads * n;
    for (int64_t h = 0; h < args.num_kv_heads; ++h) {
      float* column = args.k + at + h * args.head_stride + token;
      for (int64_t d = 0; d < n; ++d) column[d * args.block_size] = k[h * n + d];
      std::memcpy(args.v + at + h * args.head_stride + token * n, v + h * n, head_bytes);
    }
  }
}

void accumulate(float* out, const float* x, int64_t n) {
  add_scaled(out, x, 1.0F, n);
}

void fill(KernelTable& table) {
  table.norm = &norm;
  table.gated = &gated;
  table.rope_write = &rope_write;
  table.latent_rope_write = &latent_rope_write;
  table.accumulate = &accumulate;
}

}  // namespace
}  // namespace mpinfer::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mpinfer::kernels::cpu {
HWY_EXPORT(fill);
void fill_elementwise(KernelTable& table) {
  HWY_DYNAMIC_DISPATCH(fill)(table);
}
}  // namespace mpinfer::kernels::cpu
#endif
