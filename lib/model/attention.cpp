#include "lib/model/attention.h"

namespace mpinfer::model {

namespace {

using backend::Matrix;

// qkv from all_qkv, or in place.
void norm_all_heads(const AttentionLayer& layer, backend::Stream stream, const Matrix& qkv,
                    const Matrix& computed, bool cut, int64_t q) {
  const ModelConfig& config = layer.config;
  const int64_t dim = config.head_dim;
  const int64_t all_q = config.num_attention_heads * dim;
  const int64_t all_k = config.num_key_value_heads * dim;
  const int64_t kv = (qkv.cols - q) / 2;
  const Matrix queries = computed.slice_cols(0, all_q);
  const Matrix keys = computed.slice_cols(all_q, all_k);
  layer.backend.rms_norm(stream, queries, queries, layer.weights.q_norm, config.rms_norm_eps);
  layer.backend.rms_norm(stream, keys, keys, layer.weights.k_norm, config.rms_norm_eps);
  if (!cut) return;
  layer.backend.copy(stream, qkv.slice_cols(0, q), queries.slice_cols(layer.first_q_head * dim, q));
  layer.backend.copy(stream, qkv.slice_cols(q, kv), keys.slice_cols(layer.first_kv_head * dim, kv));
  layer.backend.copy(stream, qkv.slice_cols(q + kv, kv), computed.slice_cols(all_q + all_k, kv));
}

}  // namespace

void project_qkv(const AttentionLayer& layer, backend::Stream stream, const Matrix& x,
                 const RowPiece& piece, const AttentionBuffers& buffers) {
  const bool all_heads = buffers.all_qkv.cols > 0;
  const Matrix qkv = buffers.qkv.slice_rows(piece.begin, piece.rows);
  const Matrix computed = all_heads ? buffers.all_qkv.slice_rows(piece.begin, piece.rows) : qkv;
  column_parallel(layer.backend, stream, computed, x, layer.weights.qkv, layer.weights.qkv_bias);
  if (layer.config.qk_norm_whole)
    norm_all_heads(layer, stream, qkv, computed, all_heads, buffers.attended.cols);
}

void attend(const AttentionLayer& layer, backend::Stream stream, const BatchInput& batch,
            const AttentionBuffers& buffers) {
  const ModelConfig& config = layer.config;
  const auto group_id = static_cast<size_t>(layer.layer.cache_group);
  const GroupInput& group = batch.groups[group_id];
  const int64_t q_width = buffers.attended.cols;
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
}

Partial project_out(const AttentionLayer& layer, backend::Stream stream, const Matrix& out,
                    const RowPiece& piece, const AttentionBuffers& buffers) {
  return row_parallel(layer.backend, stream, out,
                      buffers.attended.slice_rows(piece.begin, piece.rows), layer.weights.o,
                      layer.weights.o_bias);
}

}  // namespace mpinfer::model
