// Launchers of the CUDA kernels. Raw device pointers, sizes and strides in elements, one stream;
// nothing here allocates, synchronises or checks shapes: lib/backend/cuda_ops does. A launch that
// the driver refuses is found by the caller's cudaGetLastError. ElementType is DType without the
// rest of lib/core, whose headers nvcc does not take.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace mpinfer::kernels::cuda {

enum class ElementType : uint8_t { kF32, kF16, kBF16, kI32 };

// [rows, cols], row r at data + r * stride elements.
struct View {
  void* data = nullptr;
  int64_t stride = 0;
  ElementType dtype = ElementType::kF32;
};

void embedding(cudaStream_t stream, const View& out, int64_t rows, int64_t cols, const void* table,
               int64_t table_rows, const int32_t* ids, int32_t first_id, float scale);
// residual may be empty (plain norm of x), out may be empty (sum alone). residual += scale * x.
void add_norm(cudaStream_t stream, const View& out, const View& residual, const View& x,
              int64_t rows, int64_t cols, float scale, const float* weight, float eps);
void add_bias(cudaStream_t stream, const View& out, int64_t rows, int64_t cols, const float* bias);

struct RopeWriteArgs {
  View qkv;
  int64_t rows = 0;
  int32_t num_q_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float norm_eps = 0.0F;
  const float* cos_sin = nullptr;
  int32_t rotary_dim = 0;
  const int32_t* positions = nullptr;
  const int32_t* slot_mapping = nullptr;
  void* k = nullptr;
  void* v = nullptr;
  int64_t block_stride = 0;
  int64_t head_stride = 0;
  int32_t block_size = 0;
};
void rope_write(cudaStream_t stream, const RopeWriteArgs& args);

struct AttentionArgs {
  View out;
  View q;
  const void* k = nullptr;
  const void* v = nullptr;
  int64_t block_stride = 0;
  int64_t head_stride = 0;
  int32_t block_size = 0;
  int32_t num_kv_heads = 0;
  int32_t group = 1;  // query heads a KV head
  int32_t head_dim = 0;
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* context_lens = nullptr;
  const int32_t* block_table = nullptr;
  int64_t block_table_stride = 0;
  float scale = 1.0F;
  int32_t window = 0;
  const float* sinks = nullptr;
  float softcap = 0.0F;
};
// Partial results of split decode: num_splits > 1 needs floats of decode_scratch_floats() and one
// zeroed counter a (sequence, KV head); the kernel leaves the counters zero.
struct DecodeSplits {
  int32_t num_splits = 1;
  int32_t tokens_per_split = 0;  // a multiple of 16
  float* partial = nullptr;
  int32_t* counters = nullptr;
};
int64_t decode_scratch_floats(int64_t sequences, int32_t kv_heads, int32_t head_dim,
                              int32_t num_splits);
// Whether the tensor-core kernels take these sizes (16-bit types, head dim 64 or 128, block size a
// multiple of 16, rows aligned to 16 bytes); attention_any takes everything else.
bool attention_is_fast(const AttentionArgs& args);
// Sequences [0, sequences): one row each, group <= 8.
void attention_decode(cudaStream_t stream, const AttentionArgs& args, int32_t sequences,
                      const DecodeSplits& splits);
// Sequences [first, first + sequences) with up to max_rows rows.
void attention_prefill(cudaStream_t stream, const AttentionArgs& args, int32_t first,
                       int32_t sequences, int32_t max_rows);
// The same on devices of compute capability 9.x alone.
void attention_prefill_hopper(cudaStream_t stream, const AttentionArgs& args, int32_t first,
                              int32_t sequences, int32_t max_rows);
void attention_any(cudaStream_t stream, const AttentionArgs& args, int32_t first, int32_t sequences,
                   int32_t max_rows);

enum class Gate : uint8_t { kSilu, kGelu, kGeluTanh };
void gated_activation(cudaStream_t stream, const View& out, const View& gate_up, int64_t rows,
                      int64_t cols, Gate gate);
void gather_rows(cudaStream_t stream, const View& out, const View& x, int64_t rows, int64_t cols,
                 const int32_t* index);

struct MaxPair {
  float value;
  int32_t id;
};
// Merges the maximum of logits [rows, cols] f32, whose column 0 is id first_id, into out; starts
// anew when first_tile.
void max_tile(cudaStream_t stream, MaxPair* out, const float* logits, int64_t stride, int64_t rows,
              int64_t cols, int32_t first_id, bool first_tile);
void merge_max(cudaStream_t stream, int32_t* ids, const MaxPair* gathered, int32_t parts,
               int64_t rows);

struct SampleRow {  // laid out like backend::SampleRow
  float temperature, top_p, min_p;
  int32_t top_k;
  uint64_t seed, index;
  uint32_t sample, position;
  float repetition_penalty, frequency_penalty, presence_penalty;
  int32_t reserved;
};
struct LogitAdjustment {  // laid out like backend::LogitAdjustment
  int32_t token, output_count;
  float bias;
  uint8_t in_context, banned, reserved[2];
};
void sample(cudaStream_t stream, int32_t* ids, float* logits, int64_t stride, int64_t rows,
            int32_t cols, const SampleRow* params, const int32_t* adjustment_offsets,
            const LogitAdjustment* adjustments);

void gather_slots(cudaStream_t stream, int32_t* ids, const int32_t* last_token,
                  const int32_t* slots, int64_t rows);
void scatter_slots(cudaStream_t stream, int32_t* last_token, const int32_t* ids,
                   const int32_t* slots, int64_t rows);

// i32 copies to i32 only; the float types convert.
void copy(cudaStream_t stream, const View& out, const View& x, int64_t rows, int64_t cols);
void fill(cudaStream_t stream, const View& out, int64_t rows, int64_t cols, float value);
void accumulate(cudaStream_t stream, void* out, const void* x, ElementType dtype, int64_t count);

}  // namespace mpinfer::kernels::cuda
