// Launchers of the CUDA kernels. Raw device pointers, sizes and strides in elements, one stream;
// nothing here allocates, synchronises or checks shapes: lib/backend/cuda_ops does. A launch that
// the driver refuses is found by the caller's cudaGetLastError. ElementType is DType without the
// rest of lib/core, whose headers nvcc does not take.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_types.h>

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
constexpr int kMostPeers = 8;
constexpr int kPeerSumBlocks = 1024;                                         // at most
constexpr int64_t kPeerSumFlags = 2 * int64_t{kPeerSumBlocks} * kMostPeers;  // u32, zero at first

// residual += scale * sum over ranks of partial, for this rank's rows alone; out of every rank =
// rms_norm(residual) * weight. Pointers of all ranks as this one sees them; every rank calls it
// with the same rows, cols and round, which grows by one a call.
struct PeerSumArgs {
  int rank = 0;
  int size = 1;
  const void* partial[kMostPeers] = {};  // [rows, cols] each
  void* out[kMostPeers] = {};            // likewise
  uint32_t* flags[kMostPeers] = {};      // [kPeerSumFlags] each
  const uint32_t* abandoned = nullptr;   // host memory; not 0: nobody is waited for any more
  uint32_t round = 1;
  View residual;  // this rank's
  int64_t rows = 0;
  int64_t first_row = 0;  // this rank's rows
  int64_t end_row = 0;
  int64_t cols = 0;
  float scale = 1.0F;
  const float* weight = nullptr;  // null: no norm; out, where given, is the residual
  float eps = 0.0F;
};
bool peer_sum_takes(const View& residual, int64_t cols);
// num_processors: of the smallest of the ranks' GPUs.
void peer_sum(cudaStream_t stream, const PeerSumArgs& args, int32_t num_processors);

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

struct LatentRopeWriteArgs {  // backend::LatentRopeWriteKv
  View q_latent;
  View q;
  View latent_kv;
  int64_t rows = 0;
  int32_t num_heads = 0;
  int32_t q_head_dim = 0;
  int32_t latent_dim = 0;
  int32_t rotary_dim = 0;
  const float* norm = nullptr;
  float norm_eps = 0.0F;
  const float* cos_sin = nullptr;
  bool interleaved = true;
  const int32_t* positions = nullptr;
  const int32_t* slot_mapping = nullptr;
  void* cache = nullptr;
  int64_t block_stride = 0;
  int32_t block_size = 0;
};
void latent_rope_write(cudaStream_t stream, const LatentRopeWriteArgs& args);

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
  int32_t value_dim = 0;  // of attention_latent; the others' is head_dim
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* context_lens = nullptr;
  const int32_t* block_table = nullptr;
  int64_t block_table_stride = 0;
  float scale = 1.0F;
  int32_t window = 0;
  const float* sinks = nullptr;
  float softcap = 0.0F;
  // Of the kernels of compute capability 9.x, whose blocks stay: one counter, zero before and
  // after.
  int32_t* task_counter = nullptr;
  int32_t num_processors = 0;
};
// Decode sequences that begin with the same num_tokens tokens in the same blocks.
struct PrefixGroup {  // laid out like backend::PrefixGroup
  int32_t first_sequence, num_sequences, num_tokens, reserved;
};
// A part of a row's context leaves unnormalised sums: for a (sequence, KV head) `parts` pieces of
// partial_floats, those of the prefix first: [group][head_dim] sums, [group] highest scores (in
// units of log2), [group] totals, up to a multiple of 16 bytes.
constexpr int64_t partial_floats(int32_t group, int32_t head_dim) {
  return (int64_t{group} * (head_dim + 2) + 3) / 4 * 4;
}
// How decode rows' contexts are cut. Own tokens in num_splits > 1 pieces need one zeroed counter a
// (sequence, KV head), which the kernel leaves zero, or clusters.
struct DecodePlan {
  static constexpr int32_t kMostInCluster = 8;
  int32_t num_splits = 1;
  int32_t tokens_per_split = 0;  // a multiple of 16
  // Compute capability 9.0 on, up to kMostInCluster splits: the blocks of a context are a cluster
  // and leave no partial sums in memory.
  bool clusters = false;
  int32_t* counters = nullptr;
  int32_t num_groups = 0;  // of sequences with a common prefix; the rest of these is for them
  int32_t most_sequences = 0;
  const PrefixGroup* groups = nullptr;
  const int32_t* prefix_lens = nullptr;  // [sequences]: tokens of the group's prefix, or 0
  int32_t prefix_splits = 0;
  int32_t tokens_per_prefix_split = 0;  // a multiple of 128
  float* partial = nullptr;
  __host__ __device__ int32_t num_parts() const {
    return prefix_splits + (num_splits > 1 && !clusters ? num_splits : 0);
  }
};
// Whether the tensor-core kernels take these sizes (16-bit types, head dim 64 or 128, block size a
// multiple of 16, rows aligned to 16 bytes); attention_any takes everything else.
bool attention_is_fast(const AttentionArgs& args);
// Sequences [0, sequences): one row each, group <= 8. Behind a prefix that has been computed.
void attention_decode(cudaStream_t stream, const AttentionArgs& args, int32_t sequences,
                      const DecodePlan& plan);
// Sequences [first, first + sequences) with up to max_rows rows.
void attention_prefill(cudaStream_t stream, const AttentionArgs& args, int32_t first,
                       int32_t sequences, int32_t max_rows);
// The same on devices of compute capability 9.x alone. False: the driver makes no tensor maps of
// these K and V.
bool attention_prefill_hopper(cudaStream_t stream, const AttentionArgs& args, int32_t first,
                              int32_t sequences);
// The prefixes of groups of decode sequences, into partial; groups stand in the order of their
// sequences.
bool attention_prefix_hopper(cudaStream_t stream, const AttentionArgs& args,
                             const DecodePlan& plan);
void attention_any(cudaStream_t stream, const AttentionArgs& args, int32_t first, int32_t sequences,
                   int32_t max_rows);

// Over latent rows k [.., head_dim <= kMostLatentWidth], whose first value_dim elements are the
// values; no window, sinks or softcap.
inline constexpr int32_t kMostLatentWidth = 1024;
void attention_latent(cudaStream_t stream, const AttentionArgs& args, int32_t first,
                      int32_t sequences, int32_t max_rows);

enum class Gate : uint8_t { kSilu, kGelu, kGeluTanh };
void gated_activation(cudaStream_t stream, const View& out, const View& gate_up, int64_t rows,
                      int64_t cols, Gate gate);

// A product a[rows, k] · weight[n, k]ᵀ of few rows.
struct ProductArgs {
  View a;
  const void* weight = nullptr;  // row-major, of a's type; nothing on the stream writes it
  int64_t rows = 0;
  int64_t n = 0;
  int64_t k = 0;
};
inline constexpr int32_t kProductRows = 256;  // rows at most
// Whether product_gated_hopper and product_max_hopper take these sizes: 16-bit types, k and strides
// in eights, data aligned to 16 bytes.
bool product_hopper_takes(const ProductArgs& args);
// out[rows, n / 2] = gate(product[2i]) * product[2i + 1], with bias [n] or none; out of a's type, n
// in eights, out's stride in fours, out aligned to 8 bytes. False: the driver makes no tensor maps.
bool product_gated_hopper(cudaStream_t stream, const ProductArgs& args, const View& out,
                          const float* bias, Gate gate, int num_processors);
// Whether product_gated_balanced takes these sizes and is faster than what others compute: 129 to
// 256 or 1,025 to 4,096 rows, n in sixteens, tiles of 256 outputs and rows for every second
// processor, else as product_hopper_takes; out of a's type in eights and aligned to 16 bytes.
bool product_balanced_takes(const ProductArgs& args, const View& out, int num_processors);
inline constexpr int64_t kBalancedSums = int64_t{256} * 128;  // of a processor
inline constexpr int32_t kBalancedProcessors = 256;           // at most

struct BalancedMemory {     // of one stream
  float* sums = nullptr;    // kBalancedSums a processor
  int32_t* left = nullptr;  // two a processor, zeros before the first launch
};
// What product_gated_hopper gives, of what product_balanced_takes.
bool product_gated_balanced(cudaStream_t stream, const ProductArgs& args, const View& out,
                            const float* bias, Gate gate, const BalancedMemory& memory,
                            int num_processors);
// Whether product_split_hopper takes these sizes and is faster than what others compute: those of
// product_hopper_takes, out f32, or of a's type in eights and aligned to 16 bytes.
bool product_split_takes(const ProductArgs& args, const View& out);
// out[rows, n] = scale * product + bias [n] or none. False: the driver makes no tensor maps.
bool product_split_hopper(cudaStream_t stream, const ProductArgs& args, const View& out,
                          const float* bias, float scale, int num_processors);
void gather_rows(cudaStream_t stream, const View& out, const View& x, int64_t rows, int64_t cols,
                 const int32_t* index);

struct RouteArgs {
  const float* logits = nullptr;  // [rows, num_experts], stride apart
  int64_t stride = 0;
  int64_t rows = 0;
  int32_t num_experts = 0;  // <= 1024
  int32_t top_k = 1;        // <= 32
  bool sigmoid = false;
  bool renormalise = false;
  float scale = 1.0F;
  int32_t num_groups = 1;  // <= 32
  int32_t top_groups = 1;
  int32_t best_of_group = 1;
  const float* bias = nullptr;
  const float* correction = nullptr;
  unsigned long long* counts = nullptr;
};
void route(cudaStream_t stream, int32_t* experts, float* weights, const RouteArgs& args);
void add_gated(cudaStream_t stream, const View& out, const View& x, const View& gate, int64_t rows,
               int64_t cols);

// An expert's weight [out, in] is kept in tiles of 256 rows and 64 columns, each one run of memory
// [row][8 chunks of 8 elements], chunk c of row r at place c ^ (r % 8): what a shared-memory tile
// of the tensor cores looks like, so that it is fetched by one copy. In each sixteen of its rows
// the even ones of the weight (gates) come before the odd ones. Rows and columns beyond the
// weight's are zeros.
inline constexpr int64_t kExpertTileRows = 256;
inline constexpr int64_t kExpertTileCols = 64;
inline int64_t expert_elements(int64_t out_features, int64_t in_features) {
  return (out_features + kExpertTileRows - 1) / kExpertTileRows * kExpertTileRows *
         ((in_features + kExpertTileCols - 1) / kExpertTileCols * kExpertTileCols);
}
// source [rows, in_features] of the weight's type on the device → rows first_row + i * row_step.
void pack_expert_rows(cudaStream_t stream, void* weight, const void* source, ElementType dtype,
                      int64_t in_features, int64_t first_row, int64_t row_step, int64_t rows);

// Rows first_row + i * row_step of a weight, drawn by place (backend::NormalRows). Columns
// together: a row is consecutive in the tensor, and rows are line_stride apart; else the other way
// round.
struct NormalArgs {
  void* weight = nullptr;
  ElementType dtype = ElementType::kBF16;
  ElementType declared = ElementType::kBF16;
  bool tiled = false;
  int64_t in_features = 0;
  int64_t first_row = 0;
  int64_t row_step = 1;
  int64_t rows = 0;
  uint64_t seed = 0;
  uint64_t tensor = 0;
  int64_t begin = 0;
  int64_t line_stride = 0;
  bool columns_together = true;
  float deviation = 1.0F;
};
void draw_rows(cudaStream_t stream, const NormalArgs& args);

inline constexpr int32_t kExpertPlaces = 16;
struct ExpertTile {  // of rows in the sorted choices
  int32_t expert, place, rows;
};
// Choices (row * top_k + place) of local experts sorted by expert, each expert's from a place that
// is a multiple of kExpertPlaces (-1 behind its last), and the row tiles of that list, as long as
// each other in an expert but for the last, two and two: those of one expert, then the last ones of
// experts with an odd number of tiles; the one that is left over is the last. Made on the device;
// counters: [num_experts + 1], zero before and after.
struct ExpertOrder {
  int32_t* choices = nullptr;  // [places]
  int32_t* places = nullptr;   // [choices], where each local one stands in that list
  int32_t* offsets = nullptr;  // [num_experts + 1] into choices
  int32_t* cursors = nullptr;  // [num_experts], of many choices alone
  ExpertTile* tiles = nullptr;
  int32_t* num_tiles = nullptr;  // one
  int32_t* counters = nullptr;
};
void sort_choices(cudaStream_t stream, const ExpertOrder& order, const int32_t* experts,
                  int64_t num_choices, int32_t first_expert, int32_t num_experts,
                  int32_t tile_rows);

enum class ExpertGate : uint8_t { kNone, kSilu, kGelu, kGeluTanh, kClampedSwiglu };

// One grouped product over the sorted choices. With a gate: a is x, row choice / top_k; out
// [places, out_features / 2]. Without, over the same order right after that one: a is what it left;
// out [places, out_features].
struct ExpertProduct {
  View out;
  View a;
  ExpertOrder order;
  int32_t num_experts = 0;
  int32_t top_k = 1;
  int64_t max_choices = 0;  // bound of the local choices
  int64_t max_places = 0;   // and of their places
  const void* weights = nullptr;
  int64_t stride_bytes = 0;  // from one expert to the next
  int64_t out_features = 0;
  int64_t in_features = 0;
  const float* bias = nullptr;  // [num_experts, out_features] or null
  ExpertGate gate = ExpertGate::kNone;
  float alpha = 0.0F;
  float limit = 0.0F;
};
// Whether the tensor-core kernels take these sizes (16-bit types, features in eights, rows aligned
// to 16 bytes); the _any kernel takes everything.
bool expert_product_is_fast(const ExpertProduct& args);
inline constexpr int32_t kExpertRows = 64;         // tile rows of expert_product
inline constexpr int32_t kExpertRowsHopper = 128;  // and of expert_product_hopper
void expert_product(cudaStream_t stream, const ExpertProduct& args, int num_processors);
// False: the driver makes no tensor maps.
bool expert_product_hopper(cudaStream_t stream, const ExpertProduct& args, int num_processors);
void expert_product_any(cudaStream_t stream, const ExpertProduct& args);
// out[r] = sum over the local choices of row r, in their order, of weights * parts[places[choice]].
// With a residual: residual += scale * that sum, rounded; out = rms_norm(residual) * norm_weight,
// without a weight the residual alone.
struct CombineArgs {
  View out;
  View parts;  // [places, cols]
  const int32_t* places = nullptr;
  const int32_t* experts = nullptr;  // [rows, top_k]
  const float* weights = nullptr;    // [rows, top_k]
  int64_t rows = 0;
  int64_t cols = 0;
  int32_t top_k = 1;
  int32_t first_expert = 0;
  int32_t num_experts = 0;
  View residual = {};
  float scale = 1.0F;
  const float* norm_weight = nullptr;
  float eps = 0.0F;
};
// False: a residual of this width or alignment is not taken.
bool combine_experts(cudaStream_t stream, const CombineArgs& args);

struct MaxPair {
  float value;
  int32_t id;
};
// Merges the maximum of logits [rows, cols] f32, whose column 0 is id first_id, into out; starts
// anew when first_tile.
void max_tile(cudaStream_t stream, MaxPair* out, const float* logits, int64_t stride, int64_t rows,
              int64_t cols, int32_t first_id, bool first_tile);
// The maximum of each row of a product into parts [returned, rows], at most num_processors of them;
// 0: the driver makes no tensor maps. merge_parts makes one of them.
int product_max_hopper(cudaStream_t stream, const ProductArgs& args, MaxPair* parts,
                       int32_t first_id, int num_processors);
void merge_parts(cudaStream_t stream, MaxPair* out, const MaxPair* parts, int32_t count,
                 int64_t rows, int32_t first_id);
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
struct LogprobEntry {  // laid out like backend::LogprobEntry
  float logprob;
  int32_t id;
};
void mask_logits(cudaStream_t stream, float* logits, int64_t stride, int64_t rows, int32_t cols,
                 const uint32_t* masks, const int32_t* row_masks);
void log_softmax_top_k(cudaStream_t stream, LogprobEntry* out, const float* logits, int64_t stride,
                       int64_t rows, int32_t cols, const int32_t* ids, int32_t num_top);
void sample(cudaStream_t stream, int32_t* ids, float* logits, int64_t stride, int64_t rows,
            int32_t cols, const SampleRow* params, const int32_t* adjustment_offsets,
            const LogitAdjustment* adjustments);

void gather_slots(cudaStream_t stream, int32_t* ids, const int32_t* last_token,
                  const int32_t* slots, int64_t rows);
void scatter_slots(cudaStream_t stream, int32_t* last_token, const int32_t* ids,
                   const int32_t* slots, int64_t rows);

// Occupies the stream for so long.
void hold(cudaStream_t stream, int64_t nanoseconds);
// i32 copies to i32 only; the float types convert.
void copy(cudaStream_t stream, const View& out, const View& x, int64_t rows, int64_t cols);
void fill(cudaStream_t stream, const View& out, int64_t rows, int64_t cols, float value);
void accumulate(cudaStream_t stream, void* out, const void* x, ElementType dtype, int64_t count);

}  // namespace mpinfer::kernels::cuda
