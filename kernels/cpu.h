// CPU kernels: serial functions over a range of work, one table of them per SIMD target; the caller
// splits ranges over threads and owns all memory. They trust their arguments. Every output element
// is computed by the same operations in the same order whatever range it is part of, so splitting
// never changes a bit. Weights are panels of panel_width outputs: [out_features /
// panel_width][depth][panel_width], the last panel padded with zeros; inside a bf16 panel row,
// outputs j and j + panel_width / 2 share a 32-bit word (low, high), so that a shift and a mask
// widen them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lib/core/dtype.h"

namespace mpinfer::kernels::cpu {

// Attention walks keys in tiles of this many, aligned at absolute positions.
inline constexpr int64_t kKeyTile = 64;
inline constexpr int64_t kMaxHeadDim = 1024;

// The rows of a GEMM cut into tiles of nearly equal height, at most row_tile.
struct RowTiles {
  int64_t rows = 0;
  int64_t row_tile = 1;
  int64_t count() const { return (rows + row_tile - 1) / row_tile; }
  int64_t begin(int64_t tile) const {
    const int64_t n = count();
    const int64_t longer = rows % n;
    return tile * (rows / n) + (tile < longer ? tile : longer);
  }
  int64_t size(int64_t tile) const { return begin(tile + 1) - begin(tile); }
};

struct GemmArgs {
  float* out = nullptr;  // [rows, out_features], rows out_stride apart
  int64_t out_stride = 0;
  const float* packed_a = nullptr;  // pack_a of every row tile, one after the other: [rows * depth]
  int64_t rows = 0;
  int64_t depth = 0;
  int64_t out_features = 0;
  const void* panels = nullptr;
  DType dtype = DType::kBF16;
  const float* bias = nullptr;  // [out_features] or null
  float scale = 1.0F;           // out = scale * sum + bias
};

// Running maximum of each row in each lane of a panel. best starts at -inf, id at INT32_MAX,
// has_nan at 0.
struct MaxState {
  float* best = nullptr;       // [rows, panel_width]
  int32_t* id = nullptr;       // [rows, panel_width]
  uint8_t* has_nan = nullptr;  // [rows]
};

struct AttentionArgs {
  float* out = nullptr;  // [rows, num_q_heads * value_dim]
  int64_t out_stride = 0;
  const float* q = nullptr;  // [rows, num_q_heads * head_dim]
  int64_t q_stride = 0;
  const float* k = nullptr;  // (block, head) pieces, strides in elements: K [head_dim][block_size],
  const float* v = nullptr;  // V [block_size][head_dim]
  bool latent = false;       // k [block_size][head_dim], v is k
  int64_t block_stride = 0;
  int64_t head_stride = 0;
  int64_t block_size = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;  // head_dim, or less: leading columns of V that count
  int64_t group = 1;      // query heads that share a KV head
  float scale = 1.0F;
  int64_t window = 0;            // 0: all
  const float* sinks = nullptr;  // [num_q_heads] or null
  float softcap = 0.0F;          // 0: off
};

// Consecutive rows of one sequence against one KV head; or, with shared_tokens, the last rows of
// neighbouring sequences whose first shared_tokens lie in the same blocks.
struct AttentionTask {
  const int32_t* block_table = nullptr;  // of the (first) sequence
  int64_t kv_head = 0;
  int64_t first_row = 0;
  int64_t num_rows = 0;
  int64_t first_position = 0;         // position of first_row in the sequence
  int64_t shared_tokens = 0;          // a multiple of kKeyTile; no window then
  int64_t block_table_stride = 0;     // from one sequence's table to the next
  const int32_t* contexts = nullptr;  // [num_rows] tokens, the row's own included
};

struct RopeWriteArgs {
  float* qkv = nullptr;  // [rows, (num_q_heads + 2 num_kv_heads) * head_dim]
  int64_t qkv_stride = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  const float* q_norm = nullptr;  // [head_dim] or null
  const float* k_norm = nullptr;
  float norm_eps = 0.0F;
  const float* cos_sin = nullptr;  // [positions, rotary_dim] or null
  int64_t rotary_dim = 0;
  const int32_t* positions = nullptr;
  const int32_t* slot_mapping = nullptr;
  float* k = nullptr;  // as in AttentionArgs
  float* v = nullptr;
  int64_t block_stride = 0;
  int64_t head_stride = 0;
  int64_t block_size = 0;
};

struct LatentRopeWriteArgs {  // backend::LatentRopeWriteKv
  float* q_latent = nullptr;  // [rows, num_heads * (latent_dim + rotary_dim)]
  int64_t q_latent_stride = 0;
  const float* q = nullptr;  // [rows, num_heads * q_head_dim]
  int64_t q_stride = 0;
  int64_t q_head_dim = 0;
  const float* latent_kv = nullptr;  // [rows, latent_dim + rotary_dim]
  int64_t latent_kv_stride = 0;
  int64_t num_heads = 0;
  int64_t latent_dim = 0;
  int64_t rotary_dim = 0;
  const float* norm = nullptr;  // [latent_dim]
  float norm_eps = 0.0F;
  const float* cos_sin = nullptr;  // [positions, rotary_dim]
  bool interleaved = true;
  const int32_t* positions = nullptr;
  const int32_t* slot_mapping = nullptr;
  float* cache = nullptr;  // blocks [block_size][latent_dim + rotary_dim]
  int64_t block_stride = 0;
  int64_t block_size = 0;
};

struct NormArgs {
  float* out = nullptr;
  int64_t out_stride = 0;
  const float* x = nullptr;
  int64_t x_stride = 0;
  float* residual = nullptr;  // null: norm of x alone; else residual += scale * x first
  int64_t residual_stride = 0;
  float scale = 1.0F;
  const float* weight = nullptr;  // [cols]; null: no norm, residual only
  float eps = 0.0F;
  int64_t cols = 0;
};

enum class Gate : uint8_t { kSilu, kGelu, kGeluTanh };

struct RowMax {
  float value = 0.0F;
  int64_t index = 0;  // lowest index of the largest value
  bool has_nan = false;
};

struct KernelTable {
  std::string target;
  int64_t panel_width = 0;
  int64_t row_tile = 0;

  // rows <= row_tile rows of a [rows, depth] → packed [depth][rows].
  void (*pack_a)(float* packed, const float* a, int64_t stride, int64_t rows, int64_t depth);
  // Panels [panel_begin, panel_end) of the product; scratch: gemm_scratch(rows) floats of this
  // thread.
  void (*gemm)(const GemmArgs& args, float* scratch, int64_t panel_begin, int64_t panel_end);
  // Like gemm, but keeps only the maximum; ids start at first_id.
  void (*gemm_max)(const GemmArgs& args, const MaxState& state, float* scratch, int32_t first_id,
                   int64_t panel_begin, int64_t panel_end);
  int64_t (*gemm_scratch)(int64_t rows);
  // Where output feature j of a panel row lies: one table for bf16, one for other types.
  int64_t (*panel_position)(DType dtype, int64_t j);

  // In floats, for tasks of so many queries (rows times group).
  int64_t (*attention_scratch)(int64_t head_dim, int64_t queries, int64_t group);
  void (*attention)(const AttentionArgs& args, const AttentionTask& task, float* scratch);

  void (*norm)(const NormArgs& args, int64_t row_begin, int64_t row_end);
  // out[n] = gate(x[2i]) * x[2i + 1]
  void (*gated)(float* out, const float* x, int64_t n, Gate gate);
  void (*rope_write)(const RopeWriteArgs& args, int64_t row_begin, int64_t row_end);
  void (*latent_rope_write)(const LatentRopeWriteArgs& args, int64_t row_begin, int64_t row_end);
  void (*accumulate)(float* out, const float* x, int64_t n);
  RowMax (*row_max)(const float* x, int64_t n);
  // x → exp((x - max) * inverse_temperature), 0 where x < threshold or the result < min_weight.
  void (*weights)(float* x, int64_t n, float max, float inverse_temperature, float threshold,
                  float min_weight);
  // For benchmarks: steps of independent multiply-adds in registers; returns the operations of one
  // step.
  int64_t (*multiply_add_loop)(int64_t steps);
};

struct RouteArgs {
  int64_t num_experts = 0;
  int64_t top_k = 0;
  bool sigmoid = false;  // else softmax
  bool renormalise = false;
  float scale = 1.0F;
  int64_t num_groups = 1;
  int64_t top_groups = 1;
  int64_t best_of_group = 1;
  const float* bias = nullptr;
  const float* correction = nullptr;
};
// One row's choice (backend::RouteOptions says the rule). scratch: route_scratch floats.
int64_t route_scratch(const RouteArgs& args);
void route(int32_t* experts, float* weights, const float* logits, const RouteArgs& args,
           float* scratch);
// out[n] from x[2i] = gate, x[2i + 1] = up (backend::Activation::kClampedSwiglu).
void clamped_swiglu(float* out, const float* x, int64_t n, float alpha, float limit);

// Names of the compiled targets that this CPU has, best first.
std::vector<std::string> simd_targets();
// name must be one of simd_targets(); throws Error(kUsage) naming them otherwise.
KernelTable kernels_for(const std::string& name);

}  // namespace mpinfer::kernels::cpu
