// KvCache: the paged KV memory of one rank's stage: for every cache group a pool of blocks, for
// every layer a view into it. Only this file computes a cache address.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lib/backend/backend.h"
#include "lib/model/config.h"

namespace mpinfer::model {

struct StageLayers {  // half-open range of layers of one pipeline stage
  int32_t begin = 0;
  int32_t end = 0;
};

// KV heads a rank of tp holds: num_key_value_heads / tp, at least 1 (replicated when tp is a
// multiple of them).
int32_t local_kv_heads(const ModelConfig& config, int tp);
// Bytes of one block of group on a rank of this stage (K and V, or latent rows, which no tp cuts;
// all its layers of that group); 0 if it has none.
int64_t kv_block_bytes(const ModelConfig& config, const StageLayers& stage, int tp, int32_t group,
                       int32_t block_size, DType dtype);

class KvCache {
 public:
  // num_blocks: per cache group, equal on every rank of the replica.
  KvCache(backend::Backend& backend, const ModelConfig& config, const StageLayers& stage, int tp,
          int32_t block_size, std::span<const int32_t> num_blocks, DType dtype);
  const backend::KvView& layer(int32_t layer) const;  // global layer index

 private:
  StageLayers stage_;
  std::vector<backend::Buffer> pools_;
  std::vector<backend::KvView> views_;
};

}  // namespace mpinfer::model
