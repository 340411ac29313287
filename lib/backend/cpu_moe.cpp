// Mixture of experts on the CPU: rows are sorted by expert, every expert is two products over its
// rows, and its weighted result is added to them in ascending order of expert ids, so that no sum
// depends on what else the batch holds.
#include <algorithm>
#include <cmath>

#include "lib/backend/cpu_backend_impl.h"

namespace mpinfer::backend {
namespace {

namespace cpu = kernels::cpu;

constexpr int64_t kRowsAtOnce = 512;
constexpr int64_t kMostExperts = 1024;

}  // namespace

void CpuBackend::route(Stream, int32_t* experts, float* weights, const Matrix& logits,
                       const RouteOptions& options) {
  check_f32(logits, "logits");
  MPINFER_CHECK(logits.cols >= options.top_k && logits.cols <= kMostExperts && options.top_k > 0,
                "{} of {} experts", options.top_k, logits.cols);
  MPINFER_CHECK(options.num_groups > 0 && logits.cols % options.num_groups == 0 &&
                    options.top_groups > 0 && options.top_groups <= options.num_groups &&
                    options.top_k <= logits.cols / options.num_groups * options.top_groups,
                "{} of {} groups of {} experts", options.top_groups, options.num_groups,
                logits.cols);
  const cpu::RouteArgs args = {.num_experts = logits.cols,
                               .top_k = options.top_k,
                               .sigmoid = options.score == RouterScore::kSigmoid,
                               .renormalise = options.renormalise,
                               .scale = options.scale,
                               .num_groups = options.num_groups,
                               .top_groups = options.top_groups,
                               .best_of_group = options.best_of_group,
                               .bias = options.bias,
                               .correction = options.correction};
  for_rows(logits.rows, 8 * logits.cols, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(cpu::route_scratch(args)));
    for (int64_t r = begin; r < end; ++r) {
      cpu::route(experts + r * args.top_k, weights + r * args.top_k, logits.row<float>(r), args,
                 scratch.data());
    }
  });
  for (int64_t i = 0; options.counts != nullptr && i < logits.rows * args.top_k; ++i) {
    ++options.counts[experts[i]];
  }
}

void CpuBackend::run_expert(const MoeExperts& args, int64_t expert, const int32_t* choices,
                            int64_t count) {
  const int64_t hidden = args.x.cols;
  const int64_t inner = args.down.first.in_features;
  expert_floats_.grow(count * (2 * hidden + 3 * inner));
  float* at = expert_floats_.data();
  const auto take = [&](int64_t cols) {
    const Matrix piece{at, DType::kF32, count, cols, cols};
    at += count * cols;
    return piece;
  };
  const Matrix gathered = take(hidden);
  const Matrix gate_up = take(2 * inner);
  const Matrix activated = take(inner);
  const Matrix result = take(hidden);
  for_rows(count, hidden, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::copy_n(args.x.row<float>(choices[i] / args.top_k), hidden, gathered.row<float>(i));
    }
  });
  const auto bias_of = [&](const float* bias, int64_t width) {
    return bias == nullptr ? nullptr : bias + expert * width;
  };
  multiply(gate_up, gathered, args.gate_up.at(expert), bias_of(args.gate_up_bias, 2 * inner), 1.0F);
  for_rows(count, 4 * inner, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (args.activation == Activation::kClampedSwiglu) {
        cpu::clamped_swiglu(activated.row<float>(i), gate_up.row<float>(i), inner,
                            args.swiglu_alpha, args.swiglu_limit);
      } else {
        kernels_.gated(activated.row<float>(i), gate_up.row<float>(i), inner,
                       gate_of(args.activation));
      }
    }
  });
  multiply(result, activated, args.down.at(expert), bias_of(args.down_bias, hidden), 1.0F);
  for_rows(count, hidden, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels_.norm({.x = result.row<float>(i),
                     .x_stride = hidden,
                     .residual = args.out.row<float>(choices[i] / args.top_k),
                     .residual_stride = hidden,
                     .scale = args.weights[choices[i]],
                     .cols = hidden},
                    0, 1);
    }
  });
}

void CpuBackend::moe_experts(Stream stream, const MoeExperts& args) {
  check_f32(args.out, "out");
  check_f32(args.x, "x");
  check_same_shape(args.out, args.x);
  MPINFER_CHECK(args.gate_up.first.in_features == args.x.cols &&
                    args.down.first.out_features == args.x.cols &&
                    args.gate_up.first.out_features == 2 * args.down.first.in_features,
                "experts [{}, {}] and [{}, {}] on {} columns", args.gate_up.first.out_features,
                args.gate_up.first.in_features, args.down.first.out_features,
                args.down.first.in_features, args.x.cols);
  fill(stream, args.out, 0.0F);
  const int64_t choices = args.x.rows * args.top_k;
  const auto local = [&](int64_t i) { return int64_t{args.experts[i]} - args.first_expert; };
  std::vector<int64_t> ends(static_cast<size_t>(args.num_experts) + 1, 0);
  for (int64_t i = 0; i < choices; ++i) {
    if (local(i) >= 0 && local(i) < args.num_experts) ++ends[static_cast<size_t>(local(i)) + 1];
  }
  for (size_t e = 1; e < ends.size(); ++e) ends[e] += ends[e - 1];
  sorted_choices_.resize(static_cast<size_t>(ends.back()));
  std::vector<int64_t> next(ends.begin(), ends.end() - 1);
  for (int64_t i = 0; i < choices; ++i) {
    if (local(i) < 0 || local(i) >= args.num_experts) continue;
    sorted_choices_[static_cast<size_t>(next[static_cast<size_t>(local(i))]++)] =
        static_cast<int32_t>(i);
  }
  for (int64_t e = 0; e < args.num_experts; ++e) {
    const int64_t end = ends[static_cast<size_t>(e) + 1];
    for (int64_t at = ends[static_cast<size_t>(e)]; at < end; at += kRowsAtOnce) {
      run_expert(args, e, sorted_choices_.data() + at, std::min(kRowsAtOnce, end - at));
    }
  }
  if (args.then) add_norm(stream, *args.then, args.out);
}

void CpuBackend::add_gated(Stream, const Matrix& out, const Matrix& x, const Matrix& gate) {
  check_f32(out, "out");
  check_f32(x, "x");
  check_same_shape(out, x);
  MPINFER_CHECK(gate.rows == x.rows && gate.cols == 1 && gate.dtype == DType::kF32,
                "a gate of [{}, {}] for {} rows", gate.rows, gate.cols, x.rows);
  for_rows(x.rows, x.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernels_.norm({.x = x.row<float>(r),
                     .x_stride = x.stride,
                     .residual = out.row<float>(r),
                     .residual_stride = out.stride,
                     .scale = 1.0F / (1.0F + std::exp(-*gate.row<float>(r))),
                     .cols = x.cols},
                    0, 1);
    }
  });
}

}  // namespace mpinfer::backend
