// Shape checks of ops with many operands, the same on every backend.
#include "lib/backend/checks.h"

namespace mpinfer::backend {

void check_head_gemm(const HeadGemm& args) {
  const Weight& weight = args.weights.first;
  const int64_t last = args.num_heads - 1;
  MPINFER_CHECK(args.num_heads > 0 && args.out.rows == args.a.rows &&
                    args.out_step >= weight.out_features && args.a_step >= weight.in_features &&
                    last * args.out_step + weight.out_features <= args.out.cols &&
                    last * args.a_step + weight.in_features <= args.a.cols,
                "{} heads of [{}, {}], {} apart, from [{}, {}], {} apart, by [{}, {}]",
                args.num_heads, args.out.rows, args.out.cols, args.out_step, args.a.rows,
                args.a.cols, args.a_step, weight.out_features, weight.in_features);
}

void check_latent_rope_write(const LatentRopeWriteKv& args) {
  const int64_t width = args.kv.head_dim;
  const int64_t rows = args.latent_kv.rows;
  MPINFER_CHECK(args.kv.latent_dim > 0 && args.kv.num_kv_heads == 1 &&
                    args.kv.token_stride == width && args.latent_kv.cols == width &&
                    args.rope.cos_sin != nullptr && args.rope.rotary_dim % 2 == 0 &&
                    args.kv.latent_dim + args.rope.rotary_dim == width,
                "rows of {} for a cache of {} with {} latent and {} rotary", args.latent_kv.cols,
                width, args.kv.latent_dim, args.rope.rotary_dim);
  MPINFER_CHECK(args.num_heads > 0 && args.q.rows == rows && args.q_latent.rows == rows &&
                    args.q.cols % args.num_heads == 0 &&
                    args.q.cols / args.num_heads >= args.rope.rotary_dim &&
                    args.q_latent.cols == args.num_heads * width,
                "{} heads of queries [{}, {}] to [{}, {}] beside {} rows", args.num_heads,
                args.q.rows, args.q.cols, args.q_latent.rows, args.q_latent.cols, rows);
}

int64_t check_attention(const Matrix& out, const Matrix& q, const KvView& kv,
                        const AttentionBatch& batch, const AttentionOptions& options) {
  const int64_t width = int64_t{kv.num_kv_heads} * kv.head_dim;
  MPINFER_CHECK(width > 0 && q.cols % width == 0 && out.rows == q.rows &&
                    out.cols == q.cols / kv.head_dim * kv.value_dim() &&
                    kv.value_dim() <= kv.head_dim && kv.token_stride == kv.head_dim,
                "{} columns of q, {} of out for {} KV heads of {}", q.cols, out.cols,
                kv.num_kv_heads, kv.head_dim);
  MPINFER_CHECK(kv.latent_dim == 0 || (options.window == 0 && options.sinks == nullptr &&
                                       options.softcap == 0.0F && kv.num_kv_heads == 1),
                "latent rows with a window of {}, sinks or a softcap", options.window);
  const auto sequences = static_cast<size_t>(batch.num_sequences);
  MPINFER_CHECK(batch.host_cu_seqlens_q.size() == sequences + 1 &&
                    batch.host_context_lens.size() == sequences,
                "{} sequences, {} lengths of context", sequences, batch.host_context_lens.size());
  return q.cols / kv.head_dim;
}

}  // namespace mpinfer::backend
