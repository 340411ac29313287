// The class behind make_cpu_backend, for cpu_backend.cpp (memory, weights, row ops) and cpu_ops.cpp
// (matrix ops, attention, sampling). It checks shapes and splits work over threads; kernels/cpu
// computes.
#pragma once

#include "kernels/cpu.h"
#include "kernels/cpu/draw.h"
#include "kernels/cpu/thread_pool.h"
#include "lib/backend/checks.h"
#include "lib/backend/cpu_backend.h"
#include "lib/backend/host_memory.h"

namespace mpinfer::backend {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& options);

  std::string description() const override;
  DType activation_dtype() const override { return DType::kF32; }

  Buffer allocate(int64_t bytes) override;
  void release(void* data, int64_t bytes) noexcept override;
  MemoryInfo memory_info() override;
  void upload(Stream, void* device, const void* host, int64_t bytes) override;
  void download(Stream, void* host, const void* device, int64_t bytes) override;
  Buffer allocate_host(int64_t bytes) override { return allocate(bytes); }
  std::unique_ptr<Event> record(Stream) override;
  void wait(Stream, Event&) override {}
  void synchronize() override {}

  int64_t packed_bytes(int64_t out_features, int64_t in_features, DType dtype) const override;
  Weight make_weight(void* data, int64_t out_features, int64_t in_features,
                     DType dtype) const override;
  void pack_rows(const Weight& weight, int64_t first_row, int64_t row_step, const void* source,
                 DType source_dtype, int64_t rows, int64_t source_stride) override;

  void draw_rows(const NormalRows& args) override;
  int64_t packed_expert_bytes(int64_t out_features, int64_t in_features,
                              DType dtype) const override {
    return packed_bytes(out_features, in_features, dtype);
  }
  Weight make_expert_weight(void* data, int64_t out_features, int64_t in_features,
                            DType dtype) const override {
    return make_weight(data, out_features, in_features, dtype);
  }

  void embedding(Stream, const Matrix& out, const Weight& table, const int32_t* ids,
                 int32_t first_id, float scale) override;
  void rms_norm(Stream, const Matrix& out, const Matrix& x, const void* weight, float eps) override;
  void add_rms_norm(Stream, const Matrix& out, const Matrix& residual, const Matrix& x, float scale,
                    const void* weight, float eps) override;
  void add(Stream, const Matrix& residual, const Matrix& x, float scale) override;
  void gemm(Stream, const Matrix& out, const Matrix& a, const Weight& weight,
            const void* bias) override;
  void qk_norm_rope_write_kv(Stream, const QkNormRopeWriteKv& args) override;
  void head_gemm(Stream, const HeadGemm& args) override;
  void latent_rope_write_kv(Stream, const LatentRopeWriteKv& args) override;
  void attention(Stream, const Matrix& out, const Matrix& q, const KvView& kv,
                 const AttentionBatch& batch, const AttentionOptions& options) override;
  void gated_activation(Stream, const Matrix& out, const Matrix& gate_up,
                        Activation activation) override;
  void gather_rows(Stream, const Matrix& out, const Matrix& x, const int32_t* rows) override;

  void route(Stream, int32_t* experts, float* weights, const Matrix& logits,
             const RouteOptions& options) override;
  void moe_experts(Stream, const MoeExperts& args) override;
  void add_gated(Stream, const Matrix& out, const Matrix& x, const Matrix& gate) override;

  void lm_head_max(Stream, MaxPair* out, const Matrix& x, const Weight& weight,
                   int32_t first_id) override;
  void merge_max(Stream, int32_t* ids, const MaxPair* gathered, int32_t parts,
                 int64_t rows) override;
  void lm_head_logits(Stream, const Matrix& logits, const Matrix& x, const Weight& weight,
                      float scale) override;
  void mask_logits(Stream, const Matrix& logits, const uint32_t* masks,
                   const int32_t* row_masks) override;
  void log_softmax_top_k(Stream, LogprobEntry* out, const Matrix& logits, const int32_t* ids,
                         int32_t num_top) override;
  void sample(Stream, int32_t* ids, const SampleBatch& batch) override;

  void gather_slots(Stream, int32_t* ids, const int32_t* last_token, const int32_t* slots,
                    int64_t rows) override;
  void scatter_slots(Stream, int32_t* last_token, const int32_t* ids, const int32_t* slots,
                     int64_t rows) override;

  void copy(Stream, const Matrix& out, const Matrix& x) override;
  void fill(Stream, const Matrix& out, float value) override;
  void fill_bytes(Stream, void* data, int byte, int64_t bytes) override;
  void accumulate(Stream, void* out, const void* x, DType dtype, int64_t count) override;

 private:
  struct ThreadMemory {
    ScratchFloats floats;
    std::vector<int32_t> ids;
    std::vector<uint8_t> flags;
    kernels::cpu::DrawScratch draw;
  };

  // Calls task(begin, end) over [0, rows) in pieces worth a thread's while; row_work: elements a
  // row.
  template <class Task>
  void for_rows(int64_t rows, int64_t row_work, const Task& task);
  // out = scale * a · weightᵀ + bias.
  void multiply(const Matrix& out, const Matrix& a, const Weight& weight, const float* bias,
                float scale);
  // One expert on some of its rows, which are indices of choices (row * top_k + place).
  void run_expert(const MoeExperts& args, int64_t expert, const int32_t* choices, int64_t count);
  void max_of_rows(MaxPair* out, const kernels::cpu::GemmArgs& args, int32_t first_id);
  bool add_group_tasks(const AttentionBatch& batch, const PrefixGroup& group, int64_t num_kv_heads,
                       int64_t most_rows);
  const float* pack(const Matrix& a);
  void grow_floats(int64_t floats);  // scratch of every thread
  int64_t rows_at_once(int64_t rows, int64_t depth) const;
  void check_weight(const Weight& weight) const;

  kernels::cpu::KernelTable kernels_;
  kernels::cpu::ThreadPool pool_;
  std::vector<ThreadMemory> memory_;  // one a thread
  ScratchFloats packed_a_;
  ScratchFloats expert_floats_;
  std::vector<int32_t> sorted_choices_;
  std::vector<kernels::cpu::AttentionTask> tasks_;
};

kernels::cpu::Gate gate_of(Activation activation);
// f32 matrix, columns within the stride.
void check_f32(const Matrix& matrix, const char* name);

template <class Task>
void CpuBackend::for_rows(int64_t rows, int64_t row_work, const Task& task) {
  constexpr int64_t kWorthATask = 8192;  // elements: a few microseconds
  const int64_t pieces = std::min(rows, rows * row_work / kWorthATask);
  const int64_t count = std::min<int64_t>(pieces, 4 * pool_.size());
  if (count <= 1) {
    if (rows > 0) task(0, rows);
    return;
  }
  pool_.run(count, [&](int64_t i, int) { task(rows * i / count, rows * (i + 1) / count); });
}

}  // namespace mpinfer::backend
