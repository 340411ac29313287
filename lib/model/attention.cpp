#include "lib/model/attention.h"

namespace mpinfer::model {

namespace {

using backend::Matrix;

void norm_all_heads(const AttentionLayer& layer, backend::Stream stream,
                    const AttentionBuffers& buffers) {
  const ModelConfig& config = layer.config;
  const int64_t dim = config.head_dim;
  const int64_t all_q = config.num_attention_heads * dim;
  const int64_t all_k = config.num_key_value_heads * dim;
  const int64_t q = buffers.attended.cols;
  const int64_t kv = (buffers.qkv.cols - q) / 2;
  const bool cut = buffers.all_qkv.cols > 0;
  const Matrix& computed = cut ? buffers.all_qkv : buffers.qkv;
  const Matrix queries = computed.slice_cols(0, all_q);
  const Matrix keys = computed.slice_cols(all_q, all_k);
  layer.backend.rms_norm(stream, queries, queries, layer.weights.q_norm, config.rms_norm_eps);
  layer.backend.rms_norm(stream, keys, keys, layer.weights.k_norm, config.rms_norm_eps);
  if (!cut) return;
  layer.backend.copy(stream, buffers.qkv.slice_cols(0, q),
                     queries.slice_cols(layer.first_q_head * dim, q));
  layer.backend.copy(stream, buffers.qkv.slice_cols(q, kv),
                     keys.slice_cols(layer.first_kv_head * dim, kv));
  layer.backend.copy(stream, buffers.qkv.slice_cols(q + kv, kv),
                     computed.slice_cols(all_q + all_k, kv));
}

}  // namespace

Partial attend(const AttentionLayer& layer, backend::Stream stream, const Matrix& x,
               const BatchInput& batch, const AttentionBuffers& buffers) {
  const ModelConfig& config = layer.config;
  const auto group_id = static_cast<size_t>(layer.layer.cache_group);
  const GroupInput& group = batch.groups[group_id];
  const int64_t q_width = buffers.attended.cols;
  const bool all_heads = buffers.all_qkv.cols > 0;
  column_parallel(layer.backend, stream, all_heads ? buffers.all_qkv : buffers.qkv, x,
                  layer.weights.qkv, layer.weights.qkv_bias);
  if (config.qk_norm_whole) norm_all_heads(layer, stream, buffers);
  layer.backend.qk_norm_rope_write_kv(
      stream, {.qkv = buffers.qkv,
               .q_norm = config.qk_norm_whole ? nullptr : layer.weights.q_norm,
               .k_norm = config.qk_norm_whole ? nullptr : layer.weights.k_norm,
               .norm_eps = config.rms_norm_eps,
               .rope = layer.layer.rope ? layer.rope : backend::RopeView{},
               .positions = batch.positions,
               .slot_mapping = group.slot_mapping,
               .kv = layer.kv,
               .num_q_heads = static_cast<int32_t>(q_width / config.head_dim)});
  layer.backend.attention(stream, buffers.attended, buffers.qkv.slice_cols(0, q_width), layer.kv,
                          group.attention,
                          {.scale = config.attention_scale,
                           .window = config.cache_groups[group_id].window,
                           .sinks = static_cast<const float*>(layer.weights.sinks)});
  return row_parallel(layer.backend, stream, buffers.partial, buffers.attended, layer.weights.o,
                      layer.weights.o_bias);
}

}  // namespace mpinfer::model
