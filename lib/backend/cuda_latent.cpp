// Latent attention's own ops of the CUDA backend: checks and launches.
#include <algorithm>

#include "lib/backend/cuda_backend_impl.h"

namespace mpinfer::backend {

namespace cuda = kernels::cuda;

void CudaBackend::head_gemm(Stream stream, const HeadGemm& args) {
  check_head_gemm(args);
  const Weight& weight = args.weights.first;
  MPINFER_CHECK(args.a.dtype == weight.dtype, "rows of {} by weights of {}", name_of(args.a.dtype),
                name_of(weight.dtype));
  if (args.a.rows == 0) return;
  gemm_->multiply(stream_of(stream), gemm_workspace(stream),
                  args.out.slice_cols(0, weight.out_features),
                  args.a.slice_cols(0, weight.in_features), weight.data, 1.0F,
                  {.count = args.num_heads,
                   .out_step = args.out_step,
                   .a_step = args.a_step,
                   .weight_step = args.weights.stride_bytes / size_of(weight.dtype)});
}

void CudaBackend::latent_rope_write_kv(Stream stream, const LatentRopeWriteKv& args) {
  check_latent_rope_write(args);
  MPINFER_CHECK(args.kv.dtype == args.latent_kv.dtype && args.q.dtype == args.latent_kv.dtype &&
                    args.q_latent.dtype == args.latent_kv.dtype,
                "KV of {} beside rows of {}", name_of(args.kv.dtype),
                name_of(args.latent_kv.dtype));
  if (args.latent_kv.rows == 0) return;
  cuda::latent_rope_write(stream_of(stream),
                          {.q_latent = view(args.q_latent),
                           .q = view(args.q),
                           .latent_kv = view(args.latent_kv),
                           .rows = args.latent_kv.rows,
                           .num_heads = args.num_heads,
                           .q_head_dim = static_cast<int32_t>(args.q.cols / args.num_heads),
                           .latent_dim = args.kv.latent_dim,
                           .rotary_dim = args.rope.rotary_dim,
                           .norm = static_cast<const float*>(args.norm),
                           .norm_eps = args.norm_eps,
                           .cos_sin = args.rope.cos_sin,
                           .interleaved = args.interleaved,
                           .positions = args.positions,
                           .slot_mapping = args.slot_mapping,
                           .cache = args.kv.k,
                           .block_stride = args.kv.block_stride,
                           .block_size = args.kv.block_size});
  check_launch();
}

// Decode rows apart from chunks, so that no block is launched for rows that a sequence lacks.
void CudaBackend::attend_latent(Stream stream, const cuda::AttentionArgs& args,
                                const AttentionBatch& batch) {
  MPINFER_CHECK(args.head_dim <= cuda::kMostLatentWidth, "latent rows of {}, more than {}",
                args.head_dim, cuda::kMostLatentWidth);
  const auto launch = [&](int32_t begin, int32_t end) {
    if (begin == end) return;
    int32_t most = 0;
    for (auto s = static_cast<size_t>(begin); s < static_cast<size_t>(end); ++s) {
      most = std::max(most, batch.host_cu_seqlens_q[s + 1] - batch.host_cu_seqlens_q[s]);
    }
    cuda::attention_latent(stream_of(stream), args, begin, end - begin, most);
  };
  launch(0, batch.num_decodes);
  launch(batch.num_decodes, batch.num_sequences);
  check_launch();
}

}  // namespace mpinfer::backend
