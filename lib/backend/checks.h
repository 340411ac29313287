// Checks that every backend's ops share.
#pragma once

#include "lib/backend/backend.h"

namespace mpinfer::backend {

void check_same_shape(const Matrix& a, const Matrix& b);
void check_head_gemm(const HeadGemm& args);
void check_latent_rope_write(const LatentRopeWriteKv& args);
// Returns the query heads of out, q and kv together.
int64_t check_attention(const Matrix& out, const Matrix& q, const KvView& kv,
                        const AttentionBatch& batch, const AttentionOptions& options);

}  // namespace mpinfer::backend
