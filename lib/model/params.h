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
  kSinks,
  kRouter,
  kRouterBias,
  kRouterCorrection,
  kExpertGateUp,
  kExpertGateUpBias,
  kExpertDown,
  kExpertDownBias,
  kSharedGateUp,
  kSharedDown,
  kSharedGate,
  // Latent attention, instead of kQkv:
  kLatentQA,
  kLatentQANorm,
  kLatentQB,
  kLatentKvA,
  kLatentKvANorm,
  kLatentKeyUp,
  kLatentValueUp,
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
  kQHeads,  // elements, one a query head
  kSharedGateRows,
  kSharedUpRows,
  kSharedCols,
  // Experts: of the rank's experts; with ep 1, of all experts the rank's part of the intermediate
  // size.
  kExpertGateRows,
  kExpertUpRows,
  kExpertCols,
  kExpertGateUpTransposed,  // gpt-oss: [experts, hidden, 2 * intermediate], interleaved already
  kExpertDownTransposed,    // gpt-oss: [experts, intermediate, hidden]
  kExpertGateUpBiases,      // [experts, 2 * intermediate]
  kRouterRows,              // one row an expert, every expert
  kExpertDownBiases,        // [experts, hidden]: where an expert is cut, on TP rank 0 alone
  // Latent attention: of the rank's heads. kv_b_proj holds for each head the rows of its keys,
  // which are kept transposed to go into the queries, then those of its values.
  kLatentQRows,
  kLatentKeyUp,
  kLatentValueUp,
  kLatentOCols,
};

struct Parameter {
  std::string name;
  Slot slot = Slot::kEmbedding;
  ShardRule rule = ShardRule::kReplicated;
  int32_t layer = -1;  // -1: not in a layer
  int64_t rows = 0;
  int64_t cols = 0;     // 0: a vector of rows elements
  int32_t expert = -1;  // of a tensor that is one expert's
  int64_t outer = 0;    // > 0: a tensor of that many such matrices or vectors, one an expert
};

// A rectangle of a tensor and its place in a target: source row i goes to row first_row + i *
// row_step.
// Of a stacked tensor, rows are counted through all its matrices. Transposed: rows and cols are the
// target's, whose (r, c) is the source's (source_row + c, source_col + r).
struct Piece {
  int64_t source_row = 0;
  int64_t source_col = 0;
  int64_t rows = 0;
  int64_t cols = 0;  // 1 for a vector
  int64_t first_row = 0;
  int64_t row_step = 1;
  int64_t expert = 0;  // of the target, or a head: counted among the rank's
  bool transposed = false;
};

// One weight or vector of a rank.
struct Target {
  Slot slot = Slot::kEmbedding;
  int32_t layer = -1;
  int64_t rows = 0;
  int64_t cols = 0;     // 0: f32 vector of rows elements
  int64_t experts = 0;  // > 0: that many experts' weights, each [rows, cols]
  int64_t heads = 0;    // > 0: likewise of heads
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

// Experts of a rank: the first (experts mod ep) ranks hold one more.
Part expert_part(const ModelConfig& config, int ep, int ep_rank);
// Its part of each expert's intermediate size: all of it unless experts are cut by TP (ep 1).
Part expert_intermediate(const ModelConfig& config, const ShardOf& shard);

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
