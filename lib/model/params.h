// The parameter table: every tensor a checkpoint of a ModelConfig has, by Hugging Face name and
// shape, and which part of it goes where on a rank. One table drives loading, the memory sums and
// the check that every tensor is consumed exactly once. No file is touched here.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "lib/model/config.h"
#include "lib/model/loader.h"

namespace mpinfer::model {

// What a rank holds: the members of StageWeights and LayerWeights.
enum class Slot : uint8_t {
  kEmbedding,
  kFinalNorm,
  kLmHead,
  kInputNorm,
  kQkv,
  kQkvBias,
  kQNorm,
  kKNorm,
  kO,
  kOBias,
  kPostAttentionNorm,
  kGateUp,
  kGateUpBias,
  kDown,
  kDownBias,
};

// Which part of a tensor a TP rank takes.
enum class ShardRule : uint8_t {
  kReplicated,
  kFirstRank,  // whole, only on TP rank 0: biases of row-parallel linears
  kVocabRows,  // ceil(vocab / tp) rows
  kQRows,      // rows of the rank's query heads
  kKRows,      // rows of the rank's KV heads (replicated heads where tp is a multiple of them)
  kVRows,
  kQkvRows,   // Phi-3: q, k and v under one name
  kGateRows,  // ceil(intermediate / tp) rows, interleaved with up
  kUpRows,
  kGateUpRows,  // Phi-3: all of gate, then all of up
  kQCols,       // columns of the rank's query heads
  kIntermediateCols,
};

struct Parameter {
  std::string name;
  Slot slot = Slot::kEmbedding;
  ShardRule rule = ShardRule::kReplicated;
  int32_t layer = -1;  // -1: not in a layer
  int64_t rows = 0;
  int64_t cols = 0;  // 0: a vector of rows elements
};

// A rectangle of a tensor and its place in a target: source row i goes to row first_row + i *
// row_step.
struct Piece {
  int64_t source_row = 0;
  int64_t source_col = 0;
  int64_t rows = 0;
  int64_t cols = 0;  // 1 for a vector
  int64_t first_row = 0;
  int64_t row_step = 1;
};

// One weight or vector of a rank.
struct Target {
  Slot slot = Slot::kEmbedding;
  int32_t layer = -1;
  int64_t rows = 0;
  int64_t cols = 0;  // 0: f32 vector of rows elements
};

struct Part {  // [begin, begin + size)
  int64_t begin = 0;
  int64_t size = 0;
};

// Rank's part of total in ceil(total / parts) pieces; the last may be shorter.
Part ceil_part(int64_t total, int parts, int rank);
// Query heads and KV heads of a TP rank.
Part query_heads(const ModelConfig& config, int tp, int tp_rank);
Part kv_heads(const ModelConfig& config, int tp, int tp_rank);

std::vector<Parameter> parameter_table(const ModelConfig& config);

// What the rank holds, in the order of its memory.
std::vector<Target> shard_targets(const ModelConfig& config, const ShardOf& shard);

// The slots that parameter fills on this rank: none, one, or (a tied embedding with pp > 1, which
// the last stage needs too) the LM head instead of the embedding.
bool holds(const ShardOf& shard, const ModelConfig& config, const Parameter& parameter, Slot* slot);

std::vector<Piece> shard_pieces(const ModelConfig& config, const ShardOf& shard,
                                const Parameter& parameter);

// Tensors that a checkpoint may have beside the table: ones that are computed here or tied.
bool is_harmless_extra(const ModelConfig& config, const std::string& name);

}  // namespace mpinfer::model
