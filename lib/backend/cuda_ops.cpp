// The model's ops of the CUDA backend: shape checks, choice of kernels, launches.
#include <algorithm>
#include <cstddef>
#include <limits>

#include "lib/backend/cuda_backend_impl.h"
#include "lib/backend/cuda_sizes.h"

namespace mpinfer::backend {
namespace {

namespace cuda = kernels::cuda;

static_assert(sizeof(cuda::PrefixGroup) == sizeof(PrefixGroup) &&
              offsetof(cuda::PrefixGroup, num_tokens) == offsetof(PrefixGroup, num_tokens));

cuda::Gate gate_of(Activation activation) {
  MPINFER_CHECK(activation != Activation::kClampedSwiglu, "activation {} is for experts alone",
                static_cast<int>(activation));
  return activation == Activation::kSilu   ? cuda::Gate::kSilu
         : activation == Activation::kGelu ? cuda::Gate::kGelu
                                           : cuda::Gate::kGeluTanh;
}

}  // namespace

cuda::ElementType element_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return cuda::ElementType::kF32;
    case DType::kBF16:
      return cuda::ElementType::kBF16;
    case DType::kF16:
      return cuda::ElementType::kF16;
    case DType::kI32:
      return cuda::ElementType::kI32;
    default:
      MPINFER_CHECK(false, "no CUDA kernel for {}", name_of(dtype));
      return cuda::ElementType::kF32;
  }
}

cuda::View view(const Matrix& m) {
  return {m.data, m.stride, element_type(m.dtype)};
}

void check_launch() {
  cuda_check(cudaGetLastError(), "kernel launch");
}

cuda::ProductArgs product_of(const Matrix& a, const Weight& weight) {
  return {.a = view(a),
          .weight = weight.data,
          .rows = a.rows,
          .n = weight.out_features,
          .k = weight.in_features};
}

void CudaBackend::embedding(Stream stream, const Matrix& out, const Weight& table,
                            const int32_t* ids, int32_t first_id, float scale) {
  MPINFER_CHECK(out.cols == table.in_features && out.dtype == table.dtype,
                "{} columns from a table of {}", out.cols, table.in_features);
  if (out.rows == 0) return;
  cuda::embedding(stream_of(stream), view(out), out.rows, out.cols, table.data, table.out_features,
                  ids, first_id, scale);
  check_launch();
}

void CudaBackend::rms_norm(Stream stream, const Matrix& out, const Matrix& x, const void* weight,
                           float eps) {
  check_same_shape(out, x);
  if (x.rows == 0) return;
  cuda::add_norm(stream_of(stream), view(out), {}, view(x), x.rows, x.cols, 1.0F,
                 static_cast<const float*>(weight), eps);
  check_launch();
}

void CudaBackend::add_rms_norm(Stream stream, const Matrix& out, const Matrix& residual,
                               const Matrix& x, float scale, const void* weight, float eps) {
  check_same_shape(out, x);
  check_same_shape(residual, x);
  if (x.rows == 0) return;
  cuda::add_norm(stream_of(stream), view(out), view(residual), view(x), x.rows, x.cols, scale,
                 static_cast<const float*>(weight), eps);
  check_launch();
}

void CudaBackend::add(Stream stream, const Matrix& residual, const Matrix& x, float scale) {
  check_same_shape(residual, x);
  if (x.rows == 0) return;
  cuda::add_norm(stream_of(stream), {}, view(residual), view(x), x.rows, x.cols, scale, nullptr,
                 0.0F);
  check_launch();
}

void CudaBackend::gemm(Stream stream, const Matrix& out, const Matrix& a, const Weight& weight,
                       const void* bias) {
  MPINFER_CHECK(out.rows == a.rows && out.cols == weight.out_features &&
                    a.cols == weight.in_features && a.dtype == weight.dtype,
                "[{}, {}] = [{}, {}] times [{}, {}] transposed", out.rows, out.cols, a.rows, a.cols,
                weight.out_features, weight.in_features);
  if (a.rows == 0) return;
  if (multiply_few(stream, out, a, weight, bias, 1.0F)) return;
  gemm_->multiply(stream_of(stream), gemm_workspace(stream), out, a, weight.data, 1.0F);
  if (bias != nullptr) {
    cuda::add_bias(stream_of(stream), view(out), out.rows, out.cols,
                   static_cast<const float*>(bias));
    check_launch();
  }
}

void CudaBackend::qk_norm_rope_write_kv(Stream stream, const QkNormRopeWriteKv& args) {
  const int64_t heads = args.num_q_heads + 2 * int64_t{args.kv.num_kv_heads};
  MPINFER_CHECK(
      args.qkv.cols == heads * args.kv.head_dim && args.kv.token_stride == args.kv.head_dim,
      "{} columns for {} heads of {}", args.qkv.cols, heads, args.kv.head_dim);
  MPINFER_CHECK(args.kv.dtype == args.qkv.dtype, "KV of {} beside rows of {}",
                name_of(args.kv.dtype), name_of(args.qkv.dtype));
  if (args.qkv.rows == 0) return;
  cuda::rope_write(stream_of(stream), {.qkv = view(args.qkv),
                                       .rows = args.qkv.rows,
                                       .num_q_heads = args.num_q_heads,
                                       .num_kv_heads = args.kv.num_kv_heads,
                                       .head_dim = args.kv.head_dim,
                                       .q_norm = static_cast<const float*>(args.q_norm),
                                       .k_norm = static_cast<const float*>(args.k_norm),
                                       .norm_eps = args.norm_eps,
                                       .cos_sin = args.rope.cos_sin,
                                       .rotary_dim = args.rope.rotary_dim,
                                       .positions = args.positions,
                                       .slot_mapping = args.slot_mapping,
                                       .k = args.kv.k,
                                       .v = args.kv.v,
                                       .block_stride = args.kv.block_stride,
                                       .head_stride = args.kv.head_stride,
                                       .block_size = args.kv.block_size});
  check_launch();
}

namespace {

void check_maps(bool made, const cuda::AttentionArgs& args) {
  MPINFER_CHECK(made,
                "the driver makes no tensor maps of K at {} and V at {}, {} elements from block to "
                "block, {} from head to head: it is to be one of CUDA 12 or later, and both are to "
                "be aligned to 16 bytes",
                args.k, args.v, args.block_stride, args.head_stride);
}

}  // namespace

// Cuts prefixes that several sequences share, and contexts behind them where that is faster, in
// tokens of a block: the longest piece takes its own, but all take the memory's bandwidth, which
// three fifths of the processors fill; merging pieces takes kMerging of them.
void CudaBackend::decode(Stream stream, const cuda::AttentionArgs& args,
                         const AttentionBatch& batch, int32_t sequences) {
  constexpr int64_t kRound = 64;  // tokens that the warps of a block take at once
  constexpr int64_t kMerging = 96;
  constexpr int64_t kMergingInMemory = 256;
  constexpr int64_t kMostSplits = 32;
  const int64_t blocks = int64_t{sequences} * args.num_kv_heads;
  const auto parts_fit = [&](int64_t parts) {
    return blocks * parts * cuda::partial_floats(args.group, args.head_dim) <= kSplitPartialFloats;
  };
  cuda::DecodePlan plan;
  plan.counters = static_cast<int32_t*>(split_counters_);
  plan.partial = static_cast<float*>(split_partials_);
  const bool grouped = hopper_ && args.window == 0 && !batch.host_prefix_groups.empty();
  if (grouped) plan_prefixes(plan, args, batch);
  if (!parts_fit(plan.prefix_splits)) plan.num_groups = plan.prefix_splits = 0;
  const std::span<const PrefixGroup> groups =
      plan.num_groups > 0 ? batch.host_prefix_groups : std::span<const PrefixGroup>();
  int64_t longest = 1;
  int64_t total = 0;
  auto group = groups.begin();
  for (int32_t s = 0; s < sequences; ++s) {
    while (group != groups.end() && s >= group->first_sequence + group->num_sequences) ++group;
    const bool member = group != groups.end() && s >= group->first_sequence;
    int64_t own =
        batch.host_context_lens[static_cast<size_t>(s)] - (member ? group->num_tokens : 0);
    if (args.window > 0) own = std::min<int64_t>(own, args.window + 15);  // from a tile's begin on
    longest = std::max(longest, own);
    total += own;
  }
  const int64_t least = total * args.num_kv_heads * 5 / (3 * num_processors_);
  const auto up = [](int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; };
  int64_t fastest = std::numeric_limits<int64_t>::max();
  for (int64_t splits = 1; splits <= kMostSplits; ++splits) {
    const int64_t tokens = up((longest + splits - 1) / splits, 16);
    if ((longest + tokens - 1) / tokens != splits) continue;
    const bool clusters = hopper_ && splits > 1 && splits <= cuda::DecodePlan::kMostInCluster;
    if (splits > 1 && !clusters &&
        (blocks > kSplitCounters || !parts_fit(plan.prefix_splits + splits))) {
      break;
    }
    const int64_t merging = splits == 1 ? 0 : clusters ? kMerging : kMergingInMemory;
    const int64_t time = std::max(up(tokens, kRound), least) + merging;
    if (time >= fastest) continue;
    fastest = time;
    plan.num_splits = static_cast<int32_t>(splits);
    plan.tokens_per_split = static_cast<int32_t>(tokens);
    plan.clusters = clusters;
  }
  if (plan.num_groups > 0) {
    check_maps(cuda::attention_prefix_hopper(stream_of(stream), args, plan), args);
  }
  cuda::attention_decode(stream_of(stream), args, sequences, plan);
}

void CudaBackend::plan_prefixes(cuda::DecodePlan& plan, const cuda::AttentionArgs& args,
                                const AttentionBatch& batch) const {
  constexpr int64_t kRows = 128;  // of a block
  constexpr int64_t kTokens = 128;
  constexpr int64_t kLeast = 256;
  constexpr int64_t kMostSplits = 16;
  int64_t blocks = 0;
  int64_t longest = 0;
  for (const PrefixGroup& group : batch.host_prefix_groups) {
    blocks += (int64_t{group.num_sequences} * args.group + kRows - 1) / kRows * args.num_kv_heads;
    longest = std::max<int64_t>(longest, group.num_tokens);
    plan.most_sequences = std::max(plan.most_sequences, group.num_sequences);
  }
  const int64_t wanted =
      std::clamp<int64_t>(2 * num_processors_ / std::max<int64_t>(1, blocks), 1, kMostSplits);
  const int64_t tokens =
      (std::max(kLeast, (longest + wanted - 1) / wanted) + kTokens - 1) / kTokens * kTokens;
  plan.num_groups = checked_cast<int32_t>(batch.host_prefix_groups.size());
  plan.groups = reinterpret_cast<const cuda::PrefixGroup*>(batch.prefix_groups);
  plan.prefix_lens = batch.prefix_lens;
  plan.tokens_per_prefix_split = checked_cast<int32_t>(tokens);
  plan.prefix_splits = checked_cast<int32_t>((longest + tokens - 1) / tokens);
}

void CudaBackend::attention(Stream stream, const Matrix& out, const Matrix& q, const KvView& kv,
                            const AttentionBatch& batch, const AttentionOptions& options) {
  const int64_t q_heads = check_attention(out, q, kv, batch, options);
  MPINFER_CHECK(kv.latent_dim > 0 || kv.head_dim <= 256, "KV heads of {}, more than 256",
                kv.head_dim);
  const auto sequences = static_cast<size_t>(batch.num_sequences);
  if (sequences == 0) return;
  const cuda::AttentionArgs args{.out = view(out),
                                 .q = view(q),
                                 .k = kv.k,
                                 .v = kv.v,
                                 .block_stride = kv.block_stride,
                                 .head_stride = kv.head_stride,
                                 .block_size = kv.block_size,
                                 .num_kv_heads = kv.num_kv_heads,
                                 .group = static_cast<int32_t>(q_heads / kv.num_kv_heads),
                                 .head_dim = kv.head_dim,
                                 .value_dim = kv.value_dim(),
                                 .cu_seqlens_q = batch.cu_seqlens_q,
                                 .context_lens = batch.context_lens,
                                 .block_table = batch.block_table,
                                 .block_table_stride = batch.block_table_stride,
                                 .scale = options.scale,
                                 .window = options.window,
                                 .sinks = options.sinks,
                                 .softcap = options.softcap,
                                 .task_counter = static_cast<int32_t*>(split_counters_) +
                                                 kSplitCounters + static_cast<int64_t>(stream),
                                 .num_processors = num_processors_};
  if (kv.latent_dim > 0) return attend_latent(stream, args, batch);
  const auto most_rows = [&](size_t begin) {
    int32_t most = 0;
    for (size_t s = begin; s < sequences; ++s) {
      most = std::max(most, batch.host_cu_seqlens_q[s + 1] - batch.host_cu_seqlens_q[s]);
    }
    return most;
  };
  const bool fast = cuda::attention_is_fast(args);
  // Deterministic: a row that is computed again with its prompt goes through the same kernel.
  const bool apart = fast && args.group <= 8 && !options_.deterministic;
  const auto decodes = static_cast<size_t>(apart ? batch.num_decodes : 0);
  if (decodes > 0) decode(stream, args, batch, static_cast<int32_t>(decodes));
  if (decodes < sequences) {
    const auto first = static_cast<int32_t>(decodes);
    const auto count = static_cast<int32_t>(sequences - decodes);
    if (fast && hopper_) {
      check_maps(cuda::attention_prefill_hopper(stream_of(stream), args, first, count), args);
    } else {
      const auto launch = fast ? cuda::attention_prefill : cuda::attention_any;
      launch(stream_of(stream), args, first, count, most_rows(decodes));
    }
  }
  check_launch();
}

// Deterministic: a row's bits would depend on how many there are.
bool CudaBackend::takes_few_rows(const cuda::ProductArgs& args) const {
  return hopper_ && !options_.deterministic && cuda::product_hopper_takes(args);
}

cuda::BalancedMemory CudaBackend::balanced_memory(Stream stream) {
  static_assert(cuda::kBalancedSums * cuda::kBalancedProcessors * 4 <= CudaGemm::kWorkspaceBytes);
  return {static_cast<float*>(gemm_workspace(stream)),
          static_cast<int32_t*>(balanced_left_) +
              static_cast<size_t>(stream) * 2 * static_cast<size_t>(num_processors_)};
}

bool CudaBackend::multiply_few(Stream stream, const Matrix& out, const Matrix& a,
                               const Weight& weight, const void* bias, float scale) {
  const cuda::ProductArgs args = product_of(a, weight);
  if (!takes_few_rows(args) || !cuda::product_split_takes(args, view(out)) ||
      !cuda::product_split_hopper(stream_of(stream), args, view(out),
                                  static_cast<const float*>(bias), scale, num_processors_)) {
    return false;
  }
  check_launch();
  return true;
}

void CudaBackend::gemm_gated(Stream stream, const Matrix& out, const Matrix& gate_up,
                             const Matrix& a, const Weight& weight, const void* bias,
                             Activation activation) {
  MPINFER_CHECK(out.rows == a.rows && 2 * out.cols == weight.out_features &&
                    a.cols == weight.in_features && a.dtype == weight.dtype,
                "[{}, {}] of gate and up = [{}, {}] times [{}, {}] transposed", out.rows, out.cols,
                a.rows, a.cols, weight.out_features, weight.in_features);
  if (a.rows == 0) return;
  const cuda::ProductArgs args = product_of(a, weight);
  const bool stored = out.dtype == a.dtype && out.cols % 4 == 0 && out.stride % 4 == 0 &&
                      reinterpret_cast<uintptr_t>(out.data) % 8 == 0;
  if (hopper_ && !options_.deterministic &&
      cuda::product_balanced_takes(args, view(out), num_processors_) &&
      cuda::product_gated_balanced(stream_of(stream), args, view(out),
                                   static_cast<const float*>(bias), gate_of(activation),
                                   balanced_memory(stream), num_processors_)) {
    return check_launch();
  }
  if (stored && takes_few_rows(args) &&
      cuda::product_gated_hopper(stream_of(stream), args, view(out),
                                 static_cast<const float*>(bias), gate_of(activation),
                                 num_processors_)) {
    return check_launch();
  }
  Backend::gemm_gated(stream, out, gate_up, a, weight, bias, activation);
}

void CudaBackend::gated_activation(Stream stream, const Matrix& out, const Matrix& gate_up,
                                   Activation activation) {
  MPINFER_CHECK(out.rows == gate_up.rows && 2 * out.cols == gate_up.cols, "[{}, {}] from [{}, {}]",
                out.rows, out.cols, gate_up.rows, gate_up.cols);
  if (out.rows == 0) return;
  cuda::gated_activation(stream_of(stream), view(out), view(gate_up), out.rows, out.cols,
                         gate_of(activation));
  check_launch();
}

void CudaBackend::gather_rows(Stream stream, const Matrix& out, const Matrix& x,
                              const int32_t* rows) {
  MPINFER_CHECK(out.cols == x.cols && out.dtype == x.dtype, "{} columns from {}", out.cols, x.cols);
  if (out.rows == 0) return;
  cuda::gather_rows(stream_of(stream), view(out), view(x), out.rows, out.cols, rows);
  check_launch();
}

void CudaBackend::gather_slots(Stream stream, int32_t* ids, const int32_t* last_token,
                               const int32_t* slots, int64_t rows) {
  if (rows == 0) return;
  cuda::gather_slots(stream_of(stream), ids, last_token, slots, rows);
  check_launch();
}

void CudaBackend::scatter_slots(Stream stream, int32_t* last_token, const int32_t* ids,
                                const int32_t* slots, int64_t rows) {
  if (rows == 0) return;
  cuda::scatter_slots(stream_of(stream), last_token, ids, slots, rows);
  check_launch();
}

void CudaBackend::copy(Stream stream, const Matrix& out, const Matrix& x) {
  check_same_shape(out, x);
  MPINFER_CHECK((out.dtype == DType::kI32) == (x.dtype == DType::kI32), "{} from {}",
                name_of(out.dtype), name_of(x.dtype));
  if (out.rows == 0) return;
  cuda::copy(stream_of(stream), view(out), view(x), out.rows, out.cols);
  check_launch();
}

void CudaBackend::fill(Stream stream, const Matrix& out, float value) {
  if (out.rows == 0) return;
  cuda::fill(stream_of(stream), view(out), out.rows, out.cols, value);
  check_launch();
}

void CudaBackend::fill_bytes(Stream stream, void* data, int byte, int64_t bytes) {
  MPINFER_CUDA(cudaMemsetAsync(data, byte, static_cast<size_t>(bytes), stream_of(stream)));
}

void CudaBackend::accumulate(Stream stream, void* out, const void* x, DType dtype, int64_t count) {
  if (count == 0) return;
  cuda::accumulate(stream_of(stream), out, x, element_type(dtype), count);
  check_launch();
}

}  // namespace mpinfer::backend
