// The class behind make_cuda_backend, for cuda_backend.cpp (memory, streams, weights), cuda_ops.cpp
// (ops) and its neighbours. It checks shapes and launches; kernels/cuda computes. Weights are kept
// row-major in the activation type.
#pragma once

#include <array>
#include <mutex>
#include <set>
#include <vector>

#include "kernels/cuda.h"
#include "lib/backend/checks.h"
#include "lib/backend/cuda_backend.h"
#include "lib/backend/cuda_gemm.h"
#include "lib/backend/cuda_handles.h"

namespace mpinfer::backend {

// What the files of the CUDA backend share: views and checks for launchers.
kernels::cuda::ElementType element_type(DType dtype);
kernels::cuda::View view(const Matrix& m);
void check_launch();
kernels::cuda::ProductArgs product_of(const Matrix& a, const Weight& weight);

// Layout tag of a weight: the type it was declared with, and whether it is tiled for moe_experts.
inline constexpr int32_t kExpertLayout = 0x100;
inline DType declared_dtype(const Weight& weight) {
  return static_cast<DType>(weight.layout & ~kExpertLayout);
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options);
  ~CudaBackend() override;

  std::string description() const override { return description_; }
  DType activation_dtype() const override { return options_.activation_dtype; }

  Buffer allocate(int64_t bytes) override;
  void release(void* data, int64_t bytes) noexcept override;
  MemoryInfo memory_info() override;
  void upload(Stream stream, void* device, const void* host, int64_t bytes) override;
  void download(Stream stream, void* host, const void* device, int64_t bytes) override;
  Buffer allocate_host(int64_t bytes) override;
  std::unique_ptr<Event> record(Stream stream) override;
  void wait(Stream stream, Event& event) override;
  void synchronize() override;

  int64_t packed_bytes(int64_t out_features, int64_t in_features, DType dtype) const override;
  Weight make_weight(void* data, int64_t out_features, int64_t in_features,
                     DType dtype) const override;
  void pack_rows(const Weight& weight, int64_t first_row, int64_t row_step, const void* source,
                 DType source_dtype, int64_t rows, int64_t source_stride) override;

  void draw_rows(const NormalRows& args) override;
  int64_t packed_expert_bytes(int64_t out_features, int64_t in_features,
                              DType dtype) const override;
  Weight make_expert_weight(void* data, int64_t out_features, int64_t in_features,
                            DType dtype) const override;

  void embedding(Stream stream, const Matrix& out, const Weight& table, const int32_t* ids,
                 int32_t first_id, float scale) override;
  void rms_norm(Stream stream, const Matrix& out, const Matrix& x, const void* weight,
                float eps) override;
  void add_rms_norm(Stream stream, const Matrix& out, const Matrix& residual, const Matrix& x,
                    float scale, const void* weight, float eps) override;
  void add(Stream stream, const Matrix& residual, const Matrix& x, float scale) override;
  void gemm(Stream stream, const Matrix& out, const Matrix& a, const Weight& weight,
            const void* bias) override;
  void qk_norm_rope_write_kv(Stream stream, const QkNormRopeWriteKv& args) override;
  void head_gemm(Stream stream, const HeadGemm& args) override;
  void latent_rope_write_kv(Stream stream, const LatentRopeWriteKv& args) override;
  void attention(Stream stream, const Matrix& out, const Matrix& q, const KvView& kv,
                 const AttentionBatch& batch, const AttentionOptions& options) override;
  void gated_activation(Stream stream, const Matrix& out, const Matrix& gate_up,
                        Activation activation) override;
  void gemm_gated(Stream stream, const Matrix& out, const Matrix& gate_up, const Matrix& a,
                  const Weight& weight, const void* bias, Activation activation) override;
  void gather_rows(Stream stream, const Matrix& out, const Matrix& x, const int32_t* rows) override;
  void route(Stream stream, int32_t* experts, float* weights, const Matrix& logits,
             const RouteOptions& options) override;
  void moe_experts(Stream stream, const MoeExperts& args) override;
  void add_gated(Stream stream, const Matrix& out, const Matrix& x, const Matrix& gate) override;
  void lm_head_max(Stream stream, MaxPair* out, const Matrix& x, const Weight& weight,
                   int32_t first_id) override;
  void merge_max(Stream stream, int32_t* ids, const MaxPair* gathered, int32_t parts,
                 int64_t rows) override;
  void lm_head_logits(Stream stream, const Matrix& logits, const Matrix& x, const Weight& weight,
                      float scale) override;
  void mask_logits(Stream stream, const Matrix& logits, const uint32_t* masks,
                   const int32_t* row_masks) override;
  void log_softmax_top_k(Stream stream, LogprobEntry* out, const Matrix& logits, const int32_t* ids,
                         int32_t num_top) override;
  void sample(Stream stream, int32_t* ids, const SampleBatch& batch) override;
  void gather_slots(Stream stream, int32_t* ids, const int32_t* last_token, const int32_t* slots,
                    int64_t rows) override;
  void scatter_slots(Stream stream, int32_t* last_token, const int32_t* ids, const int32_t* slots,
                     int64_t rows) override;
  void copy(Stream stream, const Matrix& out, const Matrix& x) override;
  void fill(Stream stream, const Matrix& out, float value) override;
  void fill_bytes(Stream stream, void* data, int byte, int64_t bytes) override;
  void accumulate(Stream stream, void* out, const void* x, DType dtype, int64_t count) override;

  cudaStream_t stream_of(Stream stream) const { return streams_[static_cast<size_t>(stream)]; }

 private:
  // Whether the products of few rows take these.
  bool takes_few_rows(const kernels::cuda::ProductArgs& args) const;
  kernels::cuda::BalancedMemory balanced_memory(Stream stream);
  // False: the library's are to be used.
  bool multiply_few(Stream stream, const Matrix& out, const Matrix& a, const Weight& weight,
                    const void* bias, float scale);
  void attend_latent(Stream stream, const kernels::cuda::AttentionArgs& args,
                     const AttentionBatch& batch);
  void decode(Stream stream, const kernels::cuda::AttentionArgs& args, const AttentionBatch& batch,
              int32_t sequences);
  void plan_prefixes(kernels::cuda::DecodePlan& plan, const kernels::cuda::AttentionArgs& args,
                     const AttentionBatch& batch) const;
  // Rows in the weight's own type, host → the tiles of an expert's weight.
  void pack_expert(const Weight& weight, int64_t first_row, int64_t row_step, const void* source,
                   int64_t rows, int64_t source_bytes);
  // Workspace of matrix products on this stream.
  void* gemm_workspace(Stream stream);

  CudaOptions options_;
  std::string description_;
  int num_processors_ = 0;
  bool hopper_ = false;
  std::array<cudaStream_t, kNumStreams> streams_{};
  std::array<void*, kNumStreams> gemm_workspaces_{};
  std::unique_ptr<CudaGemm> gemm_;
  std::mutex host_mutex_;
  std::set<void*> host_memory_;  // pinned pieces: freed by another call than device memory
  void* logits_tile_ = nullptr;  // f32, of lm_head_max
  void* split_partials_ = nullptr;
  void* split_counters_ = nullptr;
  void* balanced_left_ = nullptr;    // BalancedMemory::left of each stream
  void* expert_counters_ = nullptr;  // zero between calls, a part for each stream
  Buffer expert_staging_;            // rows on their way into tiles
};

}  // namespace mpinfer::backend
