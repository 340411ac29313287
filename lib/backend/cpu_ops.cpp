// The model's ops of the CPU backend: shape checks, the split over threads, calls into kernels/cpu.
#include <algorithm>

#include "lib/backend/cpu_backend_impl.h"

namespace mpinfer::backend {
namespace {

namespace cpu = kernels::cpu;

constexpr int64_t kPackedFloats = int64_t{1}
                                  << 18;           // 1 MiB of packed rows: half of a usual L2 cache
constexpr int64_t kSerialWork = int64_t{1} << 17;  // multiply-adds that are not worth a fork
constexpr int64_t kQueriesAtOnce = 48;

// Rows of a (block, head) piece follow one another: inside it, K is kept transposed.
void check_kv(const KvView& kv) {
  MPINFER_CHECK(kv.dtype == DType::kF32 && kv.head_dim > 0 && kv.head_dim <= cpu::kMaxHeadDim,
                "KV of {}, head dim {}", name_of(kv.dtype), kv.head_dim);
  MPINFER_CHECK(kv.block_size > 0 && kv.token_stride == kv.head_dim,
                "KV blocks of {} tokens, token stride {}, head dim {}", kv.block_size,
                kv.token_stride, kv.head_dim);
}

}  // namespace

cpu::Gate gate_of(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return cpu::Gate::kSilu;
    case Activation::kGelu:
      return cpu::Gate::kGelu;
    case Activation::kGeluTanh:
      return cpu::Gate::kGeluTanh;
    case Activation::kClampedSwiglu:
      break;
  }
  MPINFER_CHECK(false, "activation {} is for experts alone", static_cast<int>(activation));
  return cpu::Gate::kSilu;
}

void CpuBackend::embedding(Stream, const Matrix& out, const Weight& table, const int32_t* ids,
                           int32_t first_id, float scale) {
  check_f32(out, "out");
  check_weight(table);
  MPINFER_CHECK(out.cols == table.in_features, "{} columns from a table of {}", out.cols,
                table.in_features);
  const int64_t width = kernels_.panel_width;
  for_rows(out.rows, 8 * out.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* to = out.row<float>(r);
      const int64_t id = int64_t{ids[r]} - first_id;
      if (id < 0 || id >= table.out_features) {
        std::fill_n(to, out.cols, 0.0F);
        continue;
      }
      const int64_t at =
          id / width * width * out.cols + kernels_.panel_position(table.dtype, id % width);
      if (table.dtype == DType::kF32) {
        const float* from = static_cast<const float*>(table.data) + at;
        for (int64_t c = 0; c < out.cols; ++c) to[c] = scale * from[c * width];
      } else {
        const uint16_t* from = static_cast<const uint16_t*>(table.data) + at;
        const auto widen = table.dtype == DType::kBF16 ? float_from_bf16 : float_from_f16;
        for (int64_t c = 0; c < out.cols; ++c) to[c] = scale * widen(from[c * width]);
      }
    }
  });
}

void CpuBackend::rms_norm(Stream, const Matrix& out, const Matrix& x, const void* weight,
                          float eps) {
  check_f32(out, "out");
  check_f32(x, "x");
  check_same_shape(out, x);
  const cpu::NormArgs args = {.out = out.row<float>(0),
                              .out_stride = out.stride,
                              .x = x.row<float>(0),
                              .x_stride = x.stride,
                              .weight = static_cast<const float*>(weight),
                              .eps = eps,
                              .cols = x.cols};
  for_rows(x.rows, x.cols, [&](int64_t begin, int64_t end) { kernels_.norm(args, begin, end); });
}

void CpuBackend::add_rms_norm(Stream, const Matrix& out, const Matrix& residual, const Matrix& x,
                              float scale, const void* weight, float eps) {
  check_f32(out, "out");
  check_f32(residual, "residual");
  check_f32(x, "x");
  check_same_shape(residual, x);
  check_same_shape(out, x);
  const cpu::NormArgs args = {.out = out.row<float>(0),
                              .out_stride = out.stride,
                              .x = x.row<float>(0),
                              .x_stride = x.stride,
                              .residual = residual.row<float>(0),
                              .residual_stride = residual.stride,
                              .scale = scale,
                              .weight = static_cast<const float*>(weight),
                              .eps = eps,
                              .cols = x.cols};
  for_rows(x.rows, x.cols, [&](int64_t begin, int64_t end) { kernels_.norm(args, begin, end); });
}

void CpuBackend::add(Stream, const Matrix& residual, const Matrix& x, float scale) {
  check_f32(residual, "residual");
  check_f32(x, "x");
  check_same_shape(residual, x);
  const cpu::NormArgs args = {.x = x.row<float>(0),
                              .x_stride = x.stride,
                              .residual = residual.row<float>(0),
                              .residual_stride = residual.stride,
                              .scale = scale,
                              .cols = x.cols};
  for_rows(x.rows, x.cols, [&](int64_t begin, int64_t end) { kernels_.norm(args, begin, end); });
}

// Rows of A that are packed at once: pieces of nearly equal height.
int64_t CpuBackend::rows_at_once(int64_t rows, int64_t depth) const {
  const int64_t tile = kernels_.row_tile;
  const int64_t most = std::max(tile, kPackedFloats / depth / tile * tile);
  const int64_t pieces = (rows + most - 1) / most;
  return ((rows + pieces - 1) / pieces + tile - 1) / tile * tile;
}

void CpuBackend::grow_floats(int64_t floats) {
  for (ThreadMemory& memory : memory_) memory.floats.grow(floats);
}

const float* CpuBackend::pack(const Matrix& a) {
  const cpu::RowTiles tiles = {.rows = a.rows, .row_tile = kernels_.row_tile};
  packed_a_.grow(a.rows * a.cols);
  for_rows(tiles.count(), tiles.row_tile * a.cols, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernels_.pack_a(packed_a_.data() + tiles.begin(t) * a.cols, a.row<float>(tiles.begin(t)),
                      a.stride, tiles.size(t), a.cols);
    }
  });
  return packed_a_.data();
}

void CpuBackend::multiply(const Matrix& out, const Matrix& a, const Weight& weight,
                          const float* bias, float scale) {
  check_f32(out, "out");
  check_f32(a, "a");
  check_weight(weight);
  MPINFER_CHECK(
      out.rows == a.rows && out.cols == weight.out_features && a.cols == weight.in_features,
      "[{}, {}] = [{}, {}] times [{}, {}] transposed", out.rows, out.cols, a.rows, a.cols,
      weight.out_features, weight.in_features);
  if (a.rows == 0) return;
  const int64_t width = kernels_.panel_width;
  const int64_t panels = (weight.out_features + width - 1) / width;
  const int64_t at_once = rows_at_once(a.rows, a.cols);
  for (int64_t begin = 0; begin < a.rows; begin += at_once) {
    const int64_t rows = std::min(at_once, a.rows - begin);
    const cpu::GemmArgs args = {.out = out.row<float>(begin),
                                .out_stride = out.stride,
                                .packed_a = pack(a.slice_rows(begin, rows)),
                                .rows = rows,
                                .depth = a.cols,
                                .out_features = weight.out_features,
                                .panels = weight.data,
                                .dtype = weight.dtype,
                                .bias = bias,
                                .scale = scale};
    const bool serial = rows * args.depth * args.out_features < kSerialWork;
    const int64_t wanted = serial ? 1 : 8 * pool_.size();
    const int64_t unit = rows < kernels_.row_tile ? 2 : 1;  // few rows take two panels at once
    const int64_t chunk = ((panels + wanted - 1) / wanted + unit - 1) / unit * unit;
    grow_floats(kernels_.gemm_scratch(rows));
    pool_.run((panels + chunk - 1) / chunk, [&](int64_t i, int thread) {
      kernels_.gemm(args, memory_[static_cast<size_t>(thread)].floats.data(), i * chunk,
                    std::min((i + 1) * chunk, panels));
    });
  }
}

void CpuBackend::gemm(Stream, const Matrix& out, const Matrix& a, const Weight& weight,
                      const void* bias) {
  multiply(out, a, weight, static_cast<const float*>(bias), 1.0F);
}

void CpuBackend::lm_head_logits(Stream, const Matrix& logits, const Matrix& x, const Weight& weight,
                                float scale) {
  multiply(logits, x, weight, nullptr, scale);
}

void CpuBackend::qk_norm_rope_write_kv(Stream, const QkNormRopeWriteKv& args) {
  check_f32(args.qkv, "qkv");
  const int64_t heads = args.num_q_heads + 2 * int64_t{args.kv.num_kv_heads};
  check_kv(args.kv);
  MPINFER_CHECK(args.qkv.cols == heads * args.kv.head_dim, "{} columns for {} heads of {}",
                args.qkv.cols, heads, args.kv.head_dim);
  MPINFER_CHECK(args.rope.cos_sin == nullptr ||
                    (args.rope.rotary_dim <= args.kv.head_dim && args.rope.rotary_dim % 2 == 0),
                "rotary dim {} of head dim {}", args.rope.rotary_dim, args.kv.head_dim);
  const cpu::RopeWriteArgs kernel_args = {.qkv = args.qkv.row<float>(0),
                                          .qkv_stride = args.qkv.stride,
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
                                          .k = static_cast<float*>(args.kv.k),
                                          .v = static_cast<float*>(args.kv.v),
                                          .block_stride = args.kv.block_stride,
                                          .head_stride = args.kv.head_stride,
                                          .block_size = args.kv.block_size};
  for_rows(args.qkv.rows, args.qkv.cols,
           [&](int64_t begin, int64_t end) { kernels_.rope_write(kernel_args, begin, end); });
}

// Members of a group together, as far as whole tiles of keys are shared; false: too few are.
bool CpuBackend::add_group_tasks(const AttentionBatch& batch, const PrefixGroup& group,
                                 int64_t num_kv_heads, int64_t most_rows) {
  const int64_t shared = group.num_tokens / cpu::kKeyTile * cpu::kKeyTile;
  if (shared == 0) return false;
  for (int64_t r = 0; r < group.num_sequences; r += most_rows) {
    const int64_t first = group.first_sequence + r;
    for (int64_t head = 0; head < num_kv_heads; ++head) {
      tasks_.push_back({.block_table = batch.block_table + first * batch.block_table_stride,
                        .kv_head = head,
                        .first_row = first,  // decode sequences come first, a row each
                        .num_rows = std::min<int64_t>(most_rows, group.num_sequences - r),
                        .shared_tokens = shared,
                        .block_table_stride = batch.block_table_stride,
                        .contexts = batch.context_lens + first});
    }
  }
  return true;
}

void CpuBackend::attention(Stream, const Matrix& out, const Matrix& q, const KvView& kv,
                           const AttentionBatch& batch, const AttentionOptions& options) {
  check_f32(out, "out");
  check_f32(q, "q");
  check_kv(kv);
  const int64_t q_heads = check_attention(out, q, kv, batch, options);
  const auto sequences = static_cast<size_t>(batch.num_sequences);
  const bool latent = kv.latent_dim > 0;
  const cpu::AttentionArgs args = {.out = out.row<float>(0),
                                   .out_stride = out.stride,
                                   .q = q.row<float>(0),
                                   .q_stride = q.stride,
                                   .k = static_cast<const float*>(kv.k),
                                   .v = static_cast<const float*>(latent ? kv.k : kv.v),
                                   .latent = latent,
                                   .block_stride = kv.block_stride,
                                   .head_stride = kv.head_stride,
                                   .block_size = kv.block_size,
                                   .head_dim = kv.head_dim,
                                   .value_dim = kv.value_dim(),
                                   .group = q_heads / kv.num_kv_heads,
                                   .scale = options.scale,
                                   .window = options.window,
                                   .sinks = options.sinks,
                                   .softcap = options.softcap};
  const int64_t rows_at_once = std::max<int64_t>(1, kQueriesAtOnce / args.group);
  tasks_.clear();
  std::span<const PrefixGroup> groups = batch.host_prefix_groups;
  if (options.window > 0) groups = {};
  for (size_t s = sequences; s-- > 0;) {  // prefill chunks, the longest tasks, first
    if (!groups.empty() &&
        static_cast<int64_t>(s) + 1 == groups.back().first_sequence + groups.back().num_sequences) {
      const PrefixGroup& group = groups.back();
      groups = groups.first(groups.size() - 1);
      if (add_group_tasks(batch, group, kv.num_kv_heads, rows_at_once)) {
        s = static_cast<size_t>(group.first_sequence);
        continue;
      }
    }
    const int64_t first = batch.host_cu_seqlens_q[s];
    const int64_t rows = batch.host_cu_seqlens_q[s + 1] - first;
    const int64_t context = batch.host_context_lens[s];
    MPINFER_CHECK(rows >= 0 && rows <= context && first + rows <= q.rows,
                  "sequence {} has {} rows, context {}", s, rows, context);
    for (int64_t r = (rows - 1) / rows_at_once * rows_at_once; r >= 0 && rows > 0;
         r -= rows_at_once) {
      for (int64_t head = 0; head < kv.num_kv_heads; ++head) {
        tasks_.push_back(
            {.block_table = batch.block_table + static_cast<int64_t>(s) * batch.block_table_stride,
             .kv_head = head,
             .first_row = first + r,
             .num_rows = std::min(rows_at_once, rows - r),
             .first_position = context - rows + r});
      }
    }
  }
  grow_floats(kernels_.attention_scratch(kv.head_dim, rows_at_once * args.group, args.group));
  pool_.run(static_cast<int64_t>(tasks_.size()), [&](int64_t i, int thread) {
    kernels_.attention(args, tasks_[static_cast<size_t>(i)],
                       memory_[static_cast<size_t>(thread)].floats.data());
  });
}

void CpuBackend::gated_activation(Stream, const Matrix& out, const Matrix& gate_up,
                                  Activation activation) {
  check_f32(out, "out");
  check_f32(gate_up, "gate_up");
  MPINFER_CHECK(out.rows == gate_up.rows && 2 * out.cols == gate_up.cols, "[{}, {}] from [{}, {}]",
                out.rows, out.cols, gate_up.rows, gate_up.cols);
  const cpu::Gate gate = gate_of(activation);
  for_rows(out.rows, 4 * out.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernels_.gated(out.row<float>(r), gate_up.row<float>(r), out.cols, gate);
    }
  });
}

}  // namespace mpinfer::backend
