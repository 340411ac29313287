#include "lib/model/attention.h"

#include <tuple>

namespace mpinfer::model {

Partial attend(const AttentionLayer& layer, backend::Stream stream, const backend::Matrix& x,
               const BatchInput& batch, const AttentionBuffers& buffers) {
  const ModelConfig& config = layer.config;
  const auto group_id = static_cast<size_t>(layer.layer.cache_group);
  const GroupInput& group = batch.groups[group_id];
  const int64_t q_width = buffers.attended.cols;
  column_parallel(layer.backend, stream, buffers.qkv, x, layer.weights.qkv, layer.weights.qkv_bias);
  if (config.qk_norm_whole) {
    const int64_t kv_width = (buffers.qkv.cols - q_width) / 2;
    for (const auto& [begin, width, norm] : {std::tuple(int64_t{0}, q_width, layer.weights.q_norm),
                                             std::tuple(q_width, kv_width, layer.weights.k_norm)}) {
      const backend::Matrix part = buffers.qkv.slice_cols(begin, width);
      layer.backend.rms_norm(stream, part, part, norm, config.rms_norm_eps);
    }
  }
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
