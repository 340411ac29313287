// Layout of a pool: for every layer of the group, all K blocks, then all V blocks, each
// [num_blocks, kv_heads, block_size, head_dim]; a latent group has the first of the two alone.
#include "lib/model/kv_cache.h"

#include "lib/core/error.h"

namespace mpinfer::model {
namespace {

int32_t layers_of_group(const ModelConfig& config, const StageLayers& stage, int32_t group) {
  int32_t count = 0;
  for (int32_t layer = stage.begin; layer < stage.end; ++layer) {
    if (config.layers[static_cast<size_t>(layer)].cache_group == group) ++count;
  }
  return count;
}

// Pieces of a block: K and V, or latent rows.
int64_t pieces_of(const ModelConfig& config, int32_t group) {
  return config.cache_groups[static_cast<size_t>(group)].latent ? 1 : 2;
}

}  // namespace

int32_t local_kv_heads(const ModelConfig& config, int tp) {
  return std::max(1, config.num_key_value_heads / tp);
}

int64_t kv_block_bytes(const ModelConfig& config, const StageLayers& stage, int tp, int32_t group,
                       int32_t block_size, DType dtype) {
  const int64_t elements = int64_t{local_kv_heads(config, tp)} * block_size * config.head_dim;
  return pieces_of(config, group) * elements * size_of(dtype) *
         layers_of_group(config, stage, group);
}

KvCache::KvCache(backend::Backend& backend, const ModelConfig& config, const StageLayers& stage,
                 int tp, int32_t block_size, std::span<const int32_t> num_blocks, DType dtype)
    : stage_(stage) {
  MPINFER_CHECK(num_blocks.size() == config.cache_groups.size(), "{} block counts for {} groups",
                num_blocks.size(), config.cache_groups.size());
  const int32_t heads = local_kv_heads(config, tp);
  const int64_t block_elements = int64_t{heads} * block_size * config.head_dim;
  views_.resize(static_cast<size_t>(stage.end - stage.begin));
  for (size_t group = 0; group < num_blocks.size(); ++group) {
    const auto group_id = static_cast<int32_t>(group);
    const int64_t half = num_blocks[group] * block_elements * size_of(dtype);  // a layer's K
    const int64_t pieces = pieces_of(config, group_id);
    const int64_t bytes = pieces * half * layers_of_group(config, stage, group_id);
    if (bytes == 0) continue;
    pools_.push_back(backend.allocate(bytes));
    char* at = static_cast<char*>(pools_.back().data());
    for (int32_t layer = stage.begin; layer < stage.end; ++layer) {
      if (config.layers[static_cast<size_t>(layer)].cache_group != group_id) continue;
      views_[static_cast<size_t>(layer - stage.begin)] = {
          .k = at,
          .v = pieces == 2 ? at + half : nullptr,
          .dtype = dtype,
          .block_stride = block_elements,
          .head_stride = int64_t{block_size} * config.head_dim,
          .token_stride = config.head_dim,
          .block_size = block_size,
          .num_kv_heads = heads,
          .head_dim = config.head_dim,
          .latent_dim = pieces == 2 ? 0 : config.latent.kv_rank};
      at += pieces * half;
    }
  }
}

const backend::KvView& KvCache::layer(int32_t layer) const {
  MPINFER_CHECK(layer >= stage_.begin && layer < stage_.end, "layer {} of stage [{}, {})", layer,
                stage_.begin, stage_.end);
  return views_[static_cast<size_t>(layer - stage_.begin)];
}

}  // namespace mpinfer::model
