#include "lib/model/moe.h"

#include <algorithm>

#include "lib/model/params.h"

namespace mpinfer::model {
namespace {

using backend::Matrix;

// Enough rows that experts are not streamed more often than arithmetic allows, within a bound of
// memory: a GPU has a gigabyte for it, a host 64 MiB (and what alignment adds: moe_places).
int64_t chunk_rows(const ModelConfig& config, const MoeSizes& sizes, int64_t rows, DType dtype) {
  const int64_t bound = int64_t{1} << (dtype == DType::kF32 ? 26 : 30);
  constexpr int64_t kLeastRows = 1024;
  const int64_t a_row =
      sizes.members * config.moe.top_k * (sizes.intermediate + sizes.hidden) * size_of(dtype);
  const int64_t least = std::max<int64_t>(1, kLeastRows / sizes.members);
  return std::min(rows, std::max(least, bound / a_row));
}

Matrix first_rows(const Matrix& matrix, int64_t rows) {
  return matrix.slice_rows(0, rows);
}

void add_shared(const MoeLayer& layer, backend::Stream stream, const Matrix& out, const Matrix& x,
                const MoeBuffers& buffers) {
  const Matrix gate_up = first_rows(buffers.shared_gate_up, x.rows);
  const Matrix activated = first_rows(buffers.shared_activated, x.rows);
  const Matrix shared = first_rows(buffers.shared, x.rows);
  layer.backend.gemm_gated(stream, activated, gate_up, x, layer.weights.shared_gate_up, nullptr,
                           layer.config.activation);
  row_parallel(layer.backend, stream, shared, activated, layer.weights.shared_down, nullptr);
  if (!layer.config.moe.shared_gate) return layer.backend.add(stream, out, shared, 1.0F);
  const Matrix gate = first_rows(buffers.shared_gate, x.rows);
  layer.backend.lm_head_logits(stream, gate, x, layer.weights.shared_gate, 1.0F);
  layer.backend.add_gated(stream, out, shared, gate);
}

void choose(const MoeLayer& layer, backend::Stream stream, const Matrix& x,
            const MoeBuffers& buffers) {
  const MoeConfig& moe = layer.config.moe;
  const Matrix logits = first_rows(buffers.logits, x.rows);
  layer.backend.lm_head_logits(stream, logits, x, layer.weights.router, 1.0F);
  layer.backend.route(stream, buffers.experts, buffers.weights, logits,
                      {.top_k = moe.top_k,
                       .score = moe.score,
                       .renormalise = moe.renormalise,
                       .scale = moe.scale,
                       .num_groups = moe.num_groups,
                       .top_groups = moe.top_groups,
                       .best_of_group = moe.best_of_group,
                       .bias = static_cast<const float*>(layer.weights.router_bias),
                       .correction = static_cast<const float*>(layer.weights.router_correction),
                       .counts = layer.counts});
}

void compute(const MoeLayer& layer, backend::Stream stream, const Matrix& out, const Matrix& x,
             const int32_t* experts, const float* factors, const MoeBuffers& buffers,
             const std::optional<backend::AddNorm>& then = std::nullopt) {
  const MoeConfig& moe = layer.config.moe;
  const LayerWeights& weights = layer.weights;
  layer.backend.moe_experts(stream,
                            {.out = out,
                             .x = x,
                             .experts = experts,
                             .weights = factors,
                             .top_k = moe.top_k,
                             .first_expert = layer.stage.first_expert,
                             .num_experts = layer.stage.num_experts,
                             .gate_up = weights.expert_gate_up,
                             .down = weights.expert_down,
                             .gate_up_bias = static_cast<const float*>(weights.expert_gate_up_bias),
                             .down_bias = static_cast<const float*>(weights.expert_down_bias),
                             .activation = moe.activation,
                             .swiglu_alpha = moe.swiglu_alpha,
                             .swiglu_limit = moe.swiglu_limit,
                             .scratch = buffers.scratch,
                             .scratch_bytes = buffers.scratch_bytes,
                             .then = then});
}

// One chunk of every member's rows; own [begin, begin + rows) of x may be none.
void run_group_chunk(const MoeLayer& layer, backend::Stream stream, const Matrix& x, int64_t begin,
                     const MoeBuffers& buffers) {
  const int tp = layer.stage.tp;
  const int64_t hidden = layer.config.hidden_size;
  const int64_t top_k = layer.config.moe.top_k;
  const int member = layer.ep->rank() / tp;
  std::vector<int64_t> slices;  // rows that each rank of the group brings
  Part mine;
  int64_t rows = 0;
  for (size_t m = 0; m < layer.group_rows.size(); ++m) {
    const int64_t here = std::clamp<int64_t>(layer.group_rows[m] - begin, 0, buffers.chunk_rows);
    rows += here;
    for (int t = 0; t < tp; ++t) slices.push_back(ceil_part(here, tp, t).size);
    if (static_cast<int>(m) == member) mine = ceil_part(here, tp, layer.stage.tp_rank);
  }
  const auto times = [&](int64_t factor) {
    std::vector<int64_t> counts = slices;
    for (int64_t& count : counts) count *= factor;
    return counts;
  };
  Matrix slice = x.slice_rows(std::min(begin + mine.begin, x.rows), mine.size);
  if (mine.size > 0) choose(layer, stream, slice, buffers);
  const Matrix all = first_rows(buffers.group_x, rows);
  const Matrix sums = first_rows(buffers.group_sums, rows);
  layer.ep->all_gather_v(stream, all.data, slice.data, times(hidden * size_of(x.dtype)));
  layer.ep->all_gather_v(stream, buffers.group_experts, buffers.experts, times(top_k * 4));
  layer.ep->all_gather_v(stream, buffers.group_weights, buffers.weights, times(top_k * 4));
  compute(layer, stream, sums, all, buffers.group_experts, buffers.group_weights, buffers);
  const int64_t own_rows = std::clamp<int64_t>(x.rows - begin, 0, buffers.chunk_rows);
  const Matrix own = buffers.partial.slice_rows(std::min(begin, x.rows), own_rows);
  if (tp > 1) layer.backend.fill(stream, own, 0.0F);  // the other ranks' slices
  layer.ep->reduce_scatter_sum_v(stream,
                                 own.slice_rows(std::min(mine.begin, own_rows), mine.size).data,
                                 sums.data, x.dtype, times(hidden));
  if (layer.config.moe.shared_intermediate_size > 0 && own_rows > 0) {
    add_shared(layer, stream, own, x.slice_rows(begin, own_rows), buffers);
  }
}

void run_chunk(const MoeLayer& layer, backend::Stream stream, const Matrix& out, const Matrix& x,
               const MoeBuffers& buffers, const std::optional<backend::AddNorm>& then) {
  choose(layer, stream, x, buffers);
  const bool shared = layer.config.moe.shared_intermediate_size > 0;
  compute(layer, stream, out, x, buffers.experts, buffers.weights, buffers,
          shared ? std::nullopt : then);
  if (!shared) return;
  add_shared(layer, stream, out, x, buffers);
  if (then) layer.backend.add_norm(stream, *then, out);
}

std::optional<backend::AddNorm> rows_of(const std::optional<backend::AddNorm>& then, int64_t begin,
                                        int64_t rows) {
  if (!then) return then;
  backend::AddNorm part = *then;
  part.residual = then->residual.slice_rows(begin, rows);
  if (then->norm_weight != nullptr) part.normed = then->normed.slice_rows(begin, rows);
  return part;
}

}  // namespace

MoeSizes moe_sizes(const ModelConfig& config, const ShardOf& shard) {
  return {.hidden = config.hidden_size,
          .intermediate = expert_intermediate(config, shard).size,
          .experts = expert_part(config, shard.ep, shard.ep_rank).size,
          .shared = ceil_part(config.moe.shared_intermediate_size, shard.tp, shard.tp_rank).size,
          .members = std::max(1, shard.ep / shard.tp)};
}

MoeBuffers take_moe_buffers(backend::Workspace& workspace, const ModelConfig& config,
                            const MoeSizes& sizes, const Matrix& partial, int64_t max_rows) {
  const MoeConfig& moe = config.moe;
  const int64_t rows = chunk_rows(config, sizes, max_rows, partial.dtype);
  const int64_t all_rows = sizes.members * rows;
  MoeBuffers out;
  out.chunk_rows = rows;
  out.partial = partial;
  out.logits = workspace.take(rows, moe.num_experts, DType::kF32);
  out.experts = workspace.take_array<int32_t>(rows * moe.top_k);
  out.weights = workspace.take_array<float>(rows * moe.top_k);
  if (moe.shared_intermediate_size > 0) {
    out.shared_gate_up = workspace.take(rows, 2 * sizes.shared, partial.dtype);
    out.shared_activated = workspace.take(rows, sizes.shared, partial.dtype);
    out.shared = workspace.take(rows, sizes.hidden, partial.dtype);
    if (moe.shared_gate) out.shared_gate = workspace.take(rows, 1, DType::kF32);
  }
  if (sizes.members > 1) {
    out.group_x = workspace.take(all_rows, sizes.hidden, partial.dtype);
    out.group_sums = workspace.take(all_rows, sizes.hidden, partial.dtype);
    out.group_experts = workspace.take_array<int32_t>(all_rows * moe.top_k);
    out.group_weights = workspace.take_array<float>(all_rows * moe.top_k);
  }
  out.scratch_bytes = backend::moe_scratch_bytes(all_rows, moe.top_k, sizes.experts, sizes.hidden,
                                                 sizes.intermediate, partial.dtype);
  out.scratch = workspace.take_bytes(out.scratch_bytes);
  return out;
}

Partial moe(const MoeLayer& layer, backend::Stream stream, const Matrix& x,
            const MoeBuffers& buffers, const std::optional<backend::AddNorm>& then) {
  const int64_t at_once = buffers.chunk_rows;
  if (layer.ep != nullptr) {
    const int64_t most = *std::max_element(layer.group_rows.begin(), layer.group_rows.end());
    for (int64_t begin = 0; begin < most; begin += at_once) {
      run_group_chunk(layer, stream, x, begin, buffers);
    }
    if (then) layer.backend.add_norm(stream, *then, first_rows(buffers.partial, x.rows));
    return {buffers.partial};
  }
  for (int64_t begin = 0; begin < x.rows; begin += at_once) {
    const int64_t rows = std::min(at_once, x.rows - begin);
    run_chunk(layer, stream, buffers.partial.slice_rows(begin, rows), x.slice_rows(begin, rows),
              buffers, rows_of(then, begin, rows));
  }
  return {buffers.partial};
}

}  // namespace mpinfer::model
