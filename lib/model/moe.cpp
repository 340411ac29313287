#include "lib/model/moe.h"

#include <algorithm>

#include "lib/model/params.h"

namespace mpinfer::model {
namespace {

using backend::Matrix;

// Enough rows that experts are not streamed more often than arithmetic allows, within a bound of
// memory: a GPU has a gigabyte for it, a host 64 MiB.
int64_t chunk_rows(const ModelConfig& config, const MoeSizes& sizes, int64_t rows, DType dtype) {
  const int64_t bound = int64_t{1} << (dtype == DType::kF32 ? 26 : 30);
  constexpr int64_t kLeastRows = 1024;
  const int64_t a_row = config.moe.top_k * (sizes.intermediate + sizes.hidden) * size_of(dtype);
  return std::min(rows, std::max(kLeastRows, bound / a_row));
}

Matrix first_rows(const Matrix& matrix, int64_t rows) {
  return matrix.slice_rows(0, rows);
}

void add_shared(const MoeLayer& layer, backend::Stream stream, const Matrix& out, const Matrix& x,
                const MoeBuffers& buffers) {
  const Matrix gate_up = first_rows(buffers.shared_gate_up, x.rows);
  const Matrix activated = first_rows(buffers.shared_activated, x.rows);
  const Matrix shared = first_rows(buffers.shared, x.rows);
  column_parallel(layer.backend, stream, gate_up, x, layer.weights.shared_gate_up, nullptr);
  layer.backend.gated_activation(stream, activated, gate_up, layer.config.activation);
  row_parallel(layer.backend, stream, shared, activated, layer.weights.shared_down, nullptr);
  if (!layer.config.moe.shared_gate) return layer.backend.add(stream, out, shared, 1.0F);
  const Matrix gate = first_rows(buffers.shared_gate, x.rows);
  layer.backend.lm_head_logits(stream, gate, x, layer.weights.shared_gate, 1.0F);
  layer.backend.add_gated(stream, out, shared, gate);
}

void run_chunk(const MoeLayer& layer, backend::Stream stream, const Matrix& out, const Matrix& x,
               const MoeBuffers& buffers) {
  const MoeConfig& moe = layer.config.moe;
  const LayerWeights& weights = layer.weights;
  const Matrix logits = first_rows(buffers.logits, x.rows);
  layer.backend.lm_head_logits(stream, logits, x, weights.router, 1.0F);
  layer.backend.route(stream, buffers.experts, buffers.weights, logits,
                      {.top_k = moe.top_k,
                       .score = moe.score,
                       .renormalise = moe.renormalise,
                       .scale = moe.scale,
                       .num_groups = moe.num_groups,
                       .top_groups = moe.top_groups,
                       .best_of_group = moe.best_of_group,
                       .bias = static_cast<const float*>(weights.router_bias),
                       .correction = static_cast<const float*>(weights.router_correction),
                       .counts = layer.counts});
  layer.backend.moe_experts(stream,
                            {.out = out,
                             .x = x,
                             .experts = buffers.experts,
                             .weights = buffers.weights,
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
                             .scratch_bytes = buffers.scratch_bytes});
  if (moe.shared_intermediate_size > 0) add_shared(layer, stream, out, x, buffers);
}

}  // namespace

MoeSizes moe_sizes(const ModelConfig& config, const ShardOf& shard) {
  return {.hidden = config.hidden_size,
          .intermediate = expert_intermediate(config, shard).size,
          .experts = expert_part(config, shard.ep, shard.ep_rank).size,
          .shared = ceil_part(config.moe.shared_intermediate_size, shard.tp, shard.tp_rank).size};
}

MoeBuffers take_moe_buffers(backend::Workspace& workspace, const ModelConfig& config,
                            const MoeSizes& sizes, const Matrix& partial) {
  const MoeConfig& moe = config.moe;
  const int64_t rows = chunk_rows(config, sizes, partial.rows, partial.dtype);
  MoeBuffers out;
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
  out.scratch_bytes = backend::moe_scratch_bytes(rows, moe.top_k, sizes.experts, sizes.hidden,
                                                 sizes.intermediate, partial.dtype);
  out.scratch = workspace.take_bytes(out.scratch_bytes);
  return out;
}

Partial moe(const MoeLayer& layer, backend::Stream stream, const Matrix& x,
            const MoeBuffers& buffers) {
  const int64_t at_once = buffers.logits.rows;
  for (int64_t begin = 0; begin < x.rows; begin += at_once) {
    const int64_t rows = std::min(at_once, x.rows - begin);
    run_chunk(layer, stream, buffers.partial.slice_rows(begin, rows), x.slice_rows(begin, rows),
              buffers);
  }
  return {buffers.partial};
}

}  // namespace mpinfer::model
