// Backend: one device. Fused ops on row-major matrices plus memory verbs; no op knows a model, a
// request or a rank. Every op is enqueued on a stream and returns at once (CPU: runs at once);
// pointers inside matrices and batches are device pointers unless the name starts with host_.
// Shapes are checked once in the backend (MPINFER_CHECK), kernels trust them. Numbers: the CPU
// backend computes f32 over the stored weights, with a summation order that is fixed per output
// element whatever the batch holds; it is the reference.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "lib/core/dtype.h"

namespace mpinfer::backend {

// Streams of a device, in program order each. CPU: all the same.
enum class Stream : uint8_t { kCompute, kSecondCompute, kShift, kCopy };
inline constexpr int kNumStreams = 4;

// Row-major view: element (r, c) at data + (r * stride + c) * size_of(dtype). Does not own.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // in elements, >= cols

  template <class T>
  T* row(int64_t r) const {
    return static_cast<T*>(data) + r * stride;
  }
  // Rows [begin, begin + count) / columns [begin, begin + count) of this view.
  Matrix slice_rows(int64_t begin, int64_t count) const;
  Matrix slice_cols(int64_t begin, int64_t count) const;
};

// A weight [out_features, in_features] as this backend stores it: packed once, after sharding. Code
// outside the backend never looks into data; layout is the backend's tag (CPU: panel width, CUDA: 0
// = row-major).
struct Weight {
  void* data = nullptr;
  DType dtype = DType::kBF16;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int32_t layout = 0;
  const void* scales = nullptr;       // quantised formats; null for dense
  const void* zero_points = nullptr;  // likewise
  int32_t group_size = 0;
};

// Weights of one kind, of experts or of heads, one after the other: the i-th is like first, i *
// stride_bytes further.
struct WeightStack {
  Weight first;
  int64_t stride_bytes = 0;
  Weight at(int64_t index) const {
    Weight one = first;
    one.data = static_cast<char*>(first.data) + index * stride_bytes;
    return one;
  }
};

// Paged KV of one layer. Element (block, head, token, d) at base + block*block_stride +
// head*head_stride + token*token_stride + d, in elements. Layout [block, kv_head, block_size,
// head_dim] for K and for V. Only the backend's own ops look inside a (block, head) piece; the CPU
// keeps K there as [head_dim, block_size].
struct KvView {
  void* k = nullptr;
  void* v = nullptr;
  DType dtype = DType::kF32;
  int64_t block_stride = 0;
  int64_t head_stride = 0;
  int64_t token_stride = 0;
  int32_t block_size = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  // > 0: latent rows, one a token, [block, 1, block_size, head_dim] on every backend: a whole row
  // is the key, its first latent_dim elements are the value too; v is null.
  int32_t latent_dim = 0;

  int32_t value_dim() const { return latent_dim > 0 ? latent_dim : head_dim; }
};

// Decode sequences [first_sequence, first_sequence + num_sequences) whose contexts begin with the
// same num_tokens tokens, whole blocks that are the same in their block tables.
struct PrefixGroup {
  int32_t first_sequence = 0;
  int32_t num_sequences = 0;
  int32_t num_tokens = 0;
  int32_t reserved = 0;
};

// Rows of a mixed batch: sequence s owns rows [cu_seqlens_q[s], cu_seqlens_q[s+1]), which are the
// last tokens of its context_lens[s] tokens. Sequences with one row (decode) come first.
struct AttentionBatch {
  int32_t num_sequences = 0;
  // Leading sequences with one row, whose earlier tokens older steps computed.
  int32_t num_decodes = 0;
  const int32_t* cu_seqlens_q = nullptr;  // [num_sequences + 1]
  const int32_t* context_lens = nullptr;  // [num_sequences], this step's rows included
  const int32_t* block_table = nullptr;  // [num_sequences, block_table_stride], -1 = freed (window)
  int64_t block_table_stride = 0;
  // Prefixes that a backend may read once for all members; disjoint, ascending; may be none.
  const PrefixGroup* prefix_groups = nullptr;
  const int32_t* prefix_lens = nullptr;  // [num_decodes]: num_tokens of the group, or 0
  std::span<const PrefixGroup> host_prefix_groups = {};
  std::span<const int32_t> host_cu_seqlens_q;
  std::span<const int32_t> host_context_lens;
};

struct AttentionOptions {
  float scale = 1.0F;
  int32_t window = 0;            // a row at position i sees positions > i - window; 0 = all
  const float* sinks = nullptr;  // [num_q_heads] logits of an extra empty key, or null
  float softcap = 0.0F;          // logits = cap * tanh(logits / cap); 0 = off
};

struct RopeView {
  const float* cos_sin =
      nullptr;  // [max_positions, rotary_dim]: first half cos, second half sin; null: no rope
  int32_t rotary_dim = 0;  // NeoX pairing: (d, d + rotary_dim / 2)
};

// qkv rows are [num_q_heads | num_kv_heads (k) | num_kv_heads (v)] × head_dim; q is rewritten in
// place, k and v go to the cache at slot_mapping (block * block_size + offset; -1: padding row,
// skipped).
struct QkNormRopeWriteKv {
  Matrix qkv;
  const void* q_norm = nullptr;  // [head_dim] f32 or null: RMS norm per head before rope
  const void* k_norm = nullptr;
  float norm_eps = 0.0F;
  RopeView rope;
  const int32_t* positions = nullptr;     // [rows]
  const int32_t* slot_mapping = nullptr;  // [rows]
  KvView kv;
  int32_t num_q_heads = 0;
};

// One product a head, [rows, in_features] times [out_features, in_features] transposed: head h
// reads columns [h * a_step, h * a_step + in_features) of a and writes [h * out_step, h * out_step
// + out_features) of out.
struct HeadGemm {
  Matrix out;
  int64_t out_step = 0;
  Matrix a;  // not out
  int64_t a_step = 0;
  WeightStack weights;  // num_heads of them, each packed like gemm's
  int32_t num_heads = 0;
};

// Latent attention, with latent = kv.latent_dim and rotary = rope.rotary_dim. A row of latent_kv is
// [latent | rotary]: RMS norm of the first part, rope of the second, then to the cache at
// slot_mapping (-1: padding row, skipped). The last rotary columns of head h of q turn likewise,
// into the last of head h of q_latent, whose first latent ones stay.
struct LatentRopeWriteKv {
  Matrix q_latent;             // [rows, num_heads * (latent + rotary)]
  Matrix q;                    // [rows, num_heads * q_head_dim]
  Matrix latent_kv;            // [rows, latent + rotary], read alone
  const void* norm = nullptr;  // [latent] f32
  float norm_eps = 0.0F;
  RopeView rope;
  bool interleaved = true;                // pairs are (2i, 2i + 1), else (i, i + rotary / 2)
  const int32_t* positions = nullptr;     // [rows]
  const int32_t* slot_mapping = nullptr;  // [rows]
  KvView kv;
  int32_t num_heads = 0;
};

// kClampedSwiglu (gpt-oss, experts alone): (clamp(up) + 1) * g * sigmoid(alpha * g), g = min(gate,
// limit), up clamped to ±limit.
enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh, kClampedSwiglu };

enum class RouterScore : uint8_t { kSoftmax, kSigmoid };

// How a row chooses its experts. score = softmax or sigmoid of (logits + bias), in f32; chosen by
// score + correction among the best top_groups of num_groups equal runs of experts, ties to the
// lowest id; weight = scale * score (renormalise: over the sum of the chosen scores).
struct RouteOptions {
  int32_t top_k = 1;
  RouterScore score = RouterScore::kSoftmax;
  bool renormalise = false;
  float scale = 1.0F;
  int32_t num_groups = 1;
  int32_t top_groups = 1;
  int32_t best_of_group = 1;          // a group's score: the sum of its best 1 or 2 choices
  const float* bias = nullptr;        // [num_experts] or null
  const float* correction = nullptr;  // [num_experts] or null: counts in the choice alone
  int64_t* counts = nullptr;          // [num_experts] += rows that chose it, or null
};

// residual += scale * x for rows x; normed = rms_norm(residual) * norm_weight, or, without a
// weight, the residual alone.
struct AddNorm {
  Matrix residual;
  Matrix normed;
  float scale = 1.0F;
  const void* norm_weight = nullptr;
  float eps = 0.0F;
};

// out[r] = sum over the local experts e that row r chose of weight * (down_e · activation(gate_up_e
// · x[r] + bias) + bias); zero where it chose none. Sums in f32.
struct MoeExperts {
  Matrix out;                        // [rows, hidden]
  Matrix x;                          // [rows, hidden], not out
  const int32_t* experts = nullptr;  // [rows, top_k] ids; others than the local ones are skipped
  const float* weights = nullptr;    // [rows, top_k]
  int32_t top_k = 1;
  int32_t first_expert = 0;  // local: [first_expert, first_expert + num_experts)
  int32_t num_experts = 0;
  WeightStack gate_up;                  // each [2 * intermediate, hidden], gate and up interleaved
  WeightStack down;                     // each [hidden, intermediate]
  const float* gate_up_bias = nullptr;  // [num_experts, 2 * intermediate] or null
  const float* down_bias = nullptr;     // [num_experts, hidden] or null
  Activation activation = Activation::kSilu;
  float swiglu_alpha = 1.702F;
  float swiglu_limit = 7.0F;
  void* scratch = nullptr;  // moe_scratch_bytes of these sizes
  int64_t scratch_bytes = 0;
  std::optional<AddNorm> then =
      {};  // of out, whose values are not needed any more; normed may be x
};

inline constexpr int64_t kExpertPlaces = 16;     // an expert's places begin at a multiple of it
inline constexpr int64_t kLeastExpertRows = 64;  // the lowest full tile of any backend
// Places of the choices in the order of experts.
int64_t moe_places(int64_t rows, int64_t top_k, int64_t num_experts);
// Scratch memory that moe_experts may use, whatever the backend and the rows' choices.
int64_t moe_scratch_bytes(int64_t rows, int64_t top_k, int64_t num_experts, int64_t hidden,
                          int64_t intermediate, DType activation);

// One row that draws a token. Meaning and order: INTERFACE §4.
struct SampleRow {
  float temperature = 0.0F;  // < 1e-5: greedy
  float top_p = 1.0F;
  float min_p = 0.0F;
  int32_t top_k = 0;  // <= 0: off
  uint64_t seed = 0;  // PhiloxKey of the draw
  uint64_t index = 0;
  uint32_t sample = 0;
  uint32_t position = 0;
  float repetition_penalty = 1.0F;
  float frequency_penalty = 0.0F;
  float presence_penalty = 0.0F;
  int32_t reserved = 0;
};

// One token of one row whose logit is changed before the draw; at most one entry a token and row.
struct LogitAdjustment {
  int32_t token = 0;
  int32_t output_count = 0;  // occurrences in the output: frequency and presence penalties
  float bias = 0.0F;         // logit_bias
  uint8_t in_context = 0;    // seen in prompt or output: repetition penalty
  uint8_t banned = 0;        // logit becomes -inf
  uint8_t reserved[2] = {0, 0};
};

// A mask over the vocabulary: bit token % 32 of word token / 32 says that the token is allowed.
constexpr int64_t mask_words(int64_t vocab_size) {
  return (vocab_size + 31) / 32;
}

struct LogprobEntry {
  float logprob = 0.0F;
  int32_t id = 0;  // entry 0 of a row: the token's rank, from 1
};

// logits: [rows, vocabulary] f32, changed in place.
struct SampleBatch {
  Matrix logits;
  const SampleRow* rows = nullptr;              // [rows]
  const int32_t* adjustment_offsets = nullptr;  // [rows + 1] into adjustments, or null: none
  const LogitAdjustment* adjustments = nullptr;
};

inline constexpr int32_t kMaxTopLogprobs = 20;

struct MaxPair {  // what lm_head_max leaves for a row: 8 bytes
  float value = 0.0F;
  int32_t id = -1;  // -1: the row holds a NaN
};

struct MemoryInfo {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};

// Rows of a packed weight that are drawn where they lie (lib/core/normal.h): row i is weight row
// first_row + i * row_step, its element c is the tensor's at begin + i * row_stride + c *
// column_stride, of which one is 1.
struct NormalRows {
  Weight weight;
  int64_t first_row = 0;
  int64_t row_step = 1;
  int64_t rows = 0;
  uint64_t seed = 0;
  uint64_t tensor = 0;
  int64_t begin = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
  float deviation = 1.0F;
};

class Backend;

// Device memory, freed with its owner. Alignment 256 bytes.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Backend* backend, void* data, int64_t bytes)
      : backend_(backend), data_(data), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer moved(std::move(other));
    swap(moved);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void swap(Buffer& other) {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// A point in a stream. query() is false until everything enqueued before it is done.
class Event {
 public:
  virtual ~Event() = default;
  virtual bool query() = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string description()
      const = 0;  // for the rank table: device name, UUID or SIMD target, threads
  virtual DType activation_dtype() const = 0;  // of hidden states, KV and residual

  // ---- memory
  // -------------------------------------------------------------------------------------------
  // Throws Error(kOutOfResource) naming the bytes asked for and free.
  virtual Buffer allocate(int64_t bytes) = 0;
  // What Buffer's destructor calls, for memory of allocate and allocate_host alike; never throws.
  virtual void release(void* data, int64_t bytes) noexcept = 0;
  virtual MemoryInfo memory_info() = 0;
  // Asynchronous for the CUDA backend when host memory is pinned (allocate_host). Ordered in the
  // stream.
  virtual void upload(Stream stream, void* device, const void* host, int64_t bytes) = 0;
  virtual void download(Stream stream, void* host, const void* device, int64_t bytes) = 0;
  virtual Buffer allocate_host(int64_t bytes) = 0;  // pinned where that means something
  virtual std::unique_ptr<Event> record(Stream stream) = 0;
  virtual void wait(Stream stream, Event& event) = 0;  // later work of stream waits for event
  virtual void synchronize() = 0;  // start, end and errors only; never in a step

  // ---- weights
  // ------------------------------------------------------------------------------------------
  // Bytes of a packed weight; then a Weight over memory of that size; then its rows, in any order
  // and in chunks: source row i goes to row first_row + i * row_step (row_step 2 interleaves gate
  // and up). source: [rows, in_features] of dtype source_dtype, source_stride elements apart, on
  // the host.
  virtual int64_t packed_bytes(int64_t out_features, int64_t in_features, DType dtype) const = 0;
  virtual Weight make_weight(void* data, int64_t out_features, int64_t in_features,
                             DType dtype) const = 0;
  virtual void pack_rows(const Weight& weight, int64_t first_row, int64_t row_step,
                         const void* source, DType source_dtype, int64_t rows,
                         int64_t source_stride) = 0;

  // Fills rows without a source; backends differ in the last bits.
  virtual void draw_rows(const NormalRows& args) = 0;
  // Like packed_bytes and make_weight for one expert's weight, which moe_experts alone reads.
  virtual int64_t packed_expert_bytes(int64_t out_features, int64_t in_features,
                                      DType dtype) const = 0;
  virtual Weight make_expert_weight(void* data, int64_t out_features, int64_t in_features,
                                    DType dtype) const = 0;

  // ---- ops; [rows, …] are token rows; no op writes the arrays of a batch (positions, tables, …)

  // out[r] = scale * table[ids[r] - first_id], zero where the id is outside the local table
  // (vocab-parallel).
  virtual void embedding(Stream, const Matrix& out, const Weight& table, const int32_t* ids,
                         int32_t first_id, float scale) = 0;
  // out = x / sqrt(mean(x²) + eps) * weight; weight [cols] f32. out may be x.
  virtual void rms_norm(Stream, const Matrix& out, const Matrix& x, const void* weight,
                        float eps) = 0;
  // residual += scale * x; out = rms_norm(residual) * weight. Sums in f32. out may be x.
  virtual void add_rms_norm(Stream, const Matrix& out, const Matrix& residual, const Matrix& x,
                            float scale, const void* weight, float eps) = 0;
  // residual += scale * x, no norm (the last row-parallel sum of a stage).
  virtual void add(Stream, const Matrix& residual, const Matrix& x, float scale) = 0;
  void add_norm(Stream stream, const AddNorm& to, const Matrix& x) {
    if (to.norm_weight == nullptr) return add(stream, to.residual, x, to.scale);
    add_rms_norm(stream, to.normed, to.residual, x, to.scale, to.norm_weight, to.eps);
  }
  // out[rows, out_features] = a[rows, in_features] · weightᵀ + bias; bias [out_features] f32 or
  // null.
  virtual void gemm(Stream, const Matrix& out, const Matrix& a, const Weight& weight,
                    const void* bias) = 0;
  virtual void qk_norm_rope_write_kv(Stream, const QkNormRopeWriteKv& args) = 0;
  virtual void head_gemm(Stream, const HeadGemm& args) = 0;
  virtual void latent_rope_write_kv(Stream, const LatentRopeWriteKv& args) = 0;
  // out[rows, num_q_heads * value_dim]; q[rows, num_q_heads * head_dim], row-strided. Causal; GQA
  // by num_q_heads / num_kv_heads.
  // Latent rows take no window, sinks or softcap. Of a decode row, K and V of all tokens but the
  // newest were there before this step.
  virtual void attention(Stream, const Matrix& out, const Matrix& q, const KvView& kv,
                         const AttentionBatch& batch, const AttentionOptions& options) = 0;
  // out[rows, n] = activation(gate) * up; gate_up [rows, 2n] with gate at column 2i, up at 2i + 1.
  virtual void gated_activation(Stream, const Matrix& out, const Matrix& gate_up,
                                Activation activation) = 0;
  // gemm and gated_activation; what gate_up holds afterwards is not said: a backend may do without.
  virtual void gemm_gated(Stream stream, const Matrix& out, const Matrix& gate_up, const Matrix& a,
                          const Weight& weight, const void* bias, Activation activation) {
    gemm(stream, gate_up, a, weight, bias);
    gated_activation(stream, out, gate_up, activation);
  }
  virtual void gather_rows(Stream, const Matrix& out, const Matrix& x, const int32_t* rows) = 0;

  // experts, weights [rows, top_k] by descending choice; logits [rows, num_experts] f32, <= 1024
  // experts.
  virtual void route(Stream, int32_t* experts, float* weights, const Matrix& logits,
                     const RouteOptions& options) = 0;
  virtual void moe_experts(Stream, const MoeExperts& args) = 0;
  // out += sigmoid(gate) * x, gate [rows, 1] f32: a shared expert with a gate.
  virtual void add_gated(Stream, const Matrix& out, const Matrix& x, const Matrix& gate) = 0;

  // Greedy head: per row the largest logit of the local vocabulary and its id + first_id (ties:
  // lowest id); logits are never materialised. out [rows].
  virtual void lm_head_max(Stream, MaxPair* out, const Matrix& x, const Weight& weight,
                           int32_t first_id) = 0;
  // gathered [parts, rows] from each TP rank → ids [rows]; -1 where any part saw a NaN.
  virtual void merge_max(Stream, int32_t* ids, const MaxPair* gathered, int32_t parts,
                         int64_t rows) = 0;
  // logits f32 [rows, out_features] = scale * x · weightᵀ.
  virtual void lm_head_logits(Stream, const Matrix& logits, const Matrix& x, const Weight& weight,
                              float scale) = 0;
  // logits[r, token] = -inf where bit token of mask row_masks[r] is 0; row_masks[r] = -1: none.
  // masks [.., mask_words(logits.cols)].
  virtual void mask_logits(Stream, const Matrix& logits, const uint32_t* masks,
                           const int32_t* row_masks) = 0;
  // out [rows, 1 + num_top]: entry 0 holds the log-probability of ids[r] and its rank, the others
  // the most likely tokens, best first (ties, also of the rank: lower id first). logits f32, may be
  // overwritten. A row that holds a NaN, or whose id is -1, gives NaN and rank 0; num_top <=
  // kMaxTopLogprobs.
  virtual void log_softmax_top_k(Stream, LogprobEntry* out, const Matrix& logits,
                                 const int32_t* ids, int32_t num_top) = 0;
  // ids [rows]; -1 where a row holds a NaN.
  virtual void sample(Stream, int32_t* ids, const SampleBatch& batch) = 0;

  // Row slots. ids[r] = last_token[slots[r]] where slots[r] >= 0, else unchanged.
  virtual void gather_slots(Stream, int32_t* ids, const int32_t* last_token, const int32_t* slots,
                            int64_t rows) = 0;
  // last_token[slots[r]] = ids[r].
  virtual void scatter_slots(Stream, int32_t* last_token, const int32_t* ids, const int32_t* slots,
                             int64_t rows) = 0;

  virtual void copy(Stream, const Matrix& out,
                    const Matrix& x) = 0;  // same shape, may convert f32/bf16/f16
  virtual void fill(Stream, const Matrix& out, float value) = 0;
  virtual void fill_bytes(Stream, void* data, int byte, int64_t bytes) = 0;
  // out += x elementwise over count elements: the sum step of host communicators.
  virtual void accumulate(Stream, void* out, const void* x, DType dtype, int64_t count) = 0;
};

}  // namespace mpinfer::backend
