#include "lib/model/latent_attention.h"

namespace mpinfer::model {

using backend::Matrix;

LatentBuffers take_latent_buffers(backend::Workspace& workspace, const ModelConfig& config,
                                  int64_t num_heads, const Matrix& partial) {
  const LatentConfig& latent = config.latent;
  const auto take = [&](int64_t cols) { return workspace.take(partial.rows, cols, partial.dtype); };
  LatentBuffers out;
  out.partial = partial;
  if (latent.q_rank > 0) out.q_a = take(latent.q_rank);
  out.q = take(num_heads * latent.q_head_dim());
  out.latent_kv = take(config.head_dim);
  out.q_latent = take(num_heads * config.head_dim);
  out.attended_latent = take(num_heads * latent.kv_rank);
  out.attended = take(num_heads * latent.value_dim);
  return out;
}

Partial attend_latent(const AttentionLayer& layer, backend::Stream stream, const Matrix& x,
                      const BatchInput& batch, const LatentBuffers& buffers) {
  const ModelConfig& config = layer.config;
  const LatentConfig& latent = config.latent;
  const LatentWeights& weights = layer.weights.latent;
  const GroupInput& group = batch.groups[static_cast<size_t>(layer.layer.cache_group)];
  const auto num_heads = static_cast<int32_t>(buffers.q.cols / latent.q_head_dim());
  backend::Backend& backend = layer.backend;
  if (latent.q_rank > 0) {
    column_parallel(backend, stream, buffers.q_a, x, weights.q_a, nullptr);
    backend.rms_norm(stream, buffers.q_a, buffers.q_a, weights.q_a_norm, latent.norm_eps);
  }
  column_parallel(backend, stream, buffers.q, latent.q_rank > 0 ? buffers.q_a : x, weights.q_b,
                  nullptr);
  column_parallel(backend, stream, buffers.latent_kv, x, weights.kv_a, nullptr);
  backend.head_gemm(stream, {.out = buffers.q_latent,
                             .out_step = config.head_dim,
                             .a = buffers.q,
                             .a_step = latent.q_head_dim(),
                             .weights = weights.key_up,
                             .num_heads = num_heads});
  backend.latent_rope_write_kv(stream, {.q_latent = buffers.q_latent,
                                        .q = buffers.q,
                                        .latent_kv = buffers.latent_kv,
                                        .norm = weights.kv_a_norm,
                                        .norm_eps = latent.norm_eps,
                                        .rope = layer.rope,
                                        .interleaved = latent.interleaved,
                                        .positions = batch.positions,
                                        .slot_mapping = group.slot_mapping,
                                        .kv = layer.kv,
                                        .num_heads = num_heads});
  backend.attention(stream, buffers.attended_latent, buffers.q_latent, layer.kv, group.attention,
                    {.scale = config.attention_scale});
  backend.head_gemm(stream, {.out = buffers.attended,
                             .out_step = latent.value_dim,
                             .a = buffers.attended_latent,
                             .a_step = latent.kv_rank,
                             .weights = weights.value_up,
                             .num_heads = num_heads});
  return row_parallel(backend, stream, buffers.partial, buffers.attended, layer.weights.o, nullptr);
}

}  // namespace mpinfer::model
