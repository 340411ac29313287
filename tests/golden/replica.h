// A whole replica in one process: a thread per TP rank, the stages of a rank one after another. It
// is driven by token sequences and hands back logits and ids, so that a test can compare layouts,
// chunkings and block tables with each other and with goldens.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "lib/core/dtype.h"

namespace mpinfer::model::test {

struct ReplicaOptions {
  std::string directory;
  int tp = 1;
  int pp = 1;
  bool whole_experts = false;  // ep = tp instead of 1
  int64_t chunk = 1024;        // prompt tokens of a sequence and step
  int32_t block_size = 4;
  int threads = 1;  // of each rank's backend
  bool dummy = false;
  int* piece_sums = nullptr;       // given: sums go by pieces (strict_pieces.h), counted here
  bool cuda = false;               // device 0, tp 1 alone
  DType activation = DType::kF32;  // on CUDA
};

struct TokenSequence {
  std::vector<int32_t> tokens;  // prompt and what follows; the last token is not fed
  int64_t prompt_length = 0;
};

struct Answers {
  // By (sequence, position): logits [vocab] of every token fed.
  std::map<std::pair<size_t, int64_t>, std::vector<float>> logits;
  // By (sequence, position) where a sequence emits: the next id by lm_head_max, and by the sampler
  // at temperature 0 over rows dealt to the TP ranks.
  std::map<std::pair<size_t, int64_t>, int32_t> greedy;
  std::map<std::pair<size_t, int64_t>, int32_t> sampled;
};

// One entry a TP rank. Throws what a rank threw.
std::vector<Answers> run_replica(const ReplicaOptions& options,
                                 const std::vector<TokenSequence>& sequences);

}  // namespace mpinfer::model::test
