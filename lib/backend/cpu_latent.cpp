// Latent attention's own ops on the CPU; attention itself is in cpu_ops.cpp.
#include "lib/backend/cpu_backend_impl.h"

namespace mpinfer::backend {

void CpuBackend::head_gemm(Stream, const HeadGemm& args) {
  check_head_gemm(args);
  for (int64_t h = 0; h < args.num_heads; ++h) {
    const Weight weight = args.weights.at(h);
    multiply(args.out.slice_cols(h * args.out_step, weight.out_features),
             args.a.slice_cols(h * args.a_step, weight.in_features), weight, nullptr, 1.0F);
  }
}

void CpuBackend::latent_rope_write_kv(Stream, const LatentRopeWriteKv& args) {
  check_f32(args.q_latent, "q_latent");
  check_f32(args.q, "q");
  check_f32(args.latent_kv, "latent_kv");
  check_latent_rope_write(args);
  MPINFER_CHECK(args.kv.dtype == DType::kF32, "KV of {}", name_of(args.kv.dtype));
  const kernels::cpu::LatentRopeWriteArgs kernel_args = {
      .q_latent = args.q_latent.row<float>(0),
      .q_latent_stride = args.q_latent.stride,
      .q = args.q.row<float>(0),
      .q_stride = args.q.stride,
      .q_head_dim = args.q.cols / args.num_heads,
      .latent_kv = args.latent_kv.row<float>(0),
      .latent_kv_stride = args.latent_kv.stride,
      .num_heads = args.num_heads,
      .latent_dim = args.kv.latent_dim,
      .rotary_dim = args.rope.rotary_dim,
      .norm = static_cast<const float*>(args.norm),
      .norm_eps = args.norm_eps,
      .cos_sin = args.rope.cos_sin,
      .interleaved = args.interleaved,
      .positions = args.positions,
      .slot_mapping = args.slot_mapping,
      .cache = static_cast<float*>(args.kv.k),
      .block_stride = args.kv.block_stride,
      .block_size = args.kv.block_size};
  const int64_t work = args.latent_kv.cols + args.num_heads * int64_t{args.rope.rotary_dim};
  for_rows(args.latent_kv.rows, work, [&](int64_t begin, int64_t end) {
    kernels_.latent_rope_write(kernel_args, begin, end);
  });
}

}  // namespace mpinfer::backend
