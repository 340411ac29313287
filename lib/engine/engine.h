// Engine: one replica's share of the run, the same deterministic scheduler on every rank of it.
// Contract: README.md here. Rank 0 of the replica (the leader) pulls requests and hands over
// completions; the others follow its control records.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lib/backend/backend.h"
#include "lib/comm/communicator.h"
#include "lib/comm/mpi.h"
#include "lib/comm/watch.h"
#include "lib/core/request.h"
#include "lib/core/result.h"
#include "lib/core/token_grammar.h"
#include "lib/model/config.h"
#include "lib/model/kv_cache.h"
#include "lib/model/lm_head.h"
#include "lib/model/transformer.h"

namespace mpinfer::engine {

struct EngineOptions {
  int32_t block_size = 16;
  std::vector<int32_t> num_blocks;  // per cache group, equal on every rank of the replica
  int32_t max_num_seqs = 256;
  int32_t max_num_batched_tokens = 8192;
  int32_t max_model_len = 0;
  int32_t max_logit_rows = 64;  // stochastic rows whose logits exist at once
  uint64_t seed = 0;
  bool prefix_caching = true;
  int64_t break_even_seqs = 0;  // running sequences up to which some start without their reserve
};

// Where requests come from; called on the leader only, between steps, must not block.
class RequestSource {
 public:
  struct Pull {
    std::vector<Request> requests;
    bool more_to_come = false;  // false: this was the last
  };
  virtual ~RequestSource() = default;
  // At most limit requests, whose order is the order of admission. Empty with more_to_come: nothing
  // is ready now.
  virtual Pull pull(int32_t limit) = 0;
  // Asks the run to stop admitting (drain): waiting requests are given up, running ones finish.
  virtual bool drain_requested() { return false; }
  // After a drain: running sequences are given up too.
  virtual bool cancel_requested() { return false; }
};

// Where completions go; leader only, in the order of finishing.
class CompletionSink {
 public:
  virtual ~CompletionSink() = default;
  virtual void finished(Completion completion) = 0;
  // A sequence with the completion tokens it has so far: those of every running one after
  // wants_unfinished() was true, and of each that is given up. Another run may go on behind them
  // (Request::begun_token_ids).
  virtual void unfinished(int64_t /*index*/, const std::vector<int32_t>& /*token_ids*/) {}
  virtual bool wants_unfinished() { return false; }  // asked at every turn
};

// Looks for stop strings in the text of running sequences; leader only, since only it detokenises.
class StopStringMatcher {
 public:
  virtual ~StopStringMatcher() = default;
  // Called for every committed token of a sample with stop strings, in order. The matched string
  // once it is seen.
  virtual std::optional<std::string> push(const Request& request, int32_t token_id,
                                          int32_t num_tokens) = 0;
  virtual void forget(const Request& request) = 0;  // its sequence ended
};

struct Progress {  // leader's counts so far, for the progress line
  int64_t num_waiting = 0;
  int64_t num_running = 0;
  int64_t kv_blocks_used = 0;
  int64_t kv_blocks_total = 0;
  int64_t prompt_tokens = 0;      // computed
  int64_t completion_tokens = 0;  // committed
};

struct EngineStats {
  int64_t steps = 0;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t finished = 0;
  int64_t preemptions = 0;
  int64_t cached_tokens = 0;         // positions that were not computed again
  int64_t surplus_rows = 0;          // rows computed for sequences that had ended
  double first_token_seconds = 0.0;  // from the start of run(); 0: none
  double compute_seconds = 0.0;
  double wait_seconds = 0.0;  // waiting for peers
  double idle_seconds = 0.0;  // no work
};

// Everything is borrowed. pp_ring: ranks of this (dp, tp) by stage; replica: pp × tp ranks, 0 is
// the leader.
struct EngineParts {
  backend::Backend& backend;
  model::Transformer& transformer;
  model::LmHead* lm_head;  // last stage only
  const model::ModelConfig& config;
  comm::Communicator& pp_ring;
  const comm::HostComm& replica;
  comm::Watch& watch;
  const comm::HostComm* members = nullptr;  // ranks of this place in a lockstep group, or null
  TokenGrammars* grammars = nullptr;        // last stage; null: no row has a grammar
};

// What carries requests to completions: the engine, or a test's stand-in for it.
class Generator {
 public:
  virtual ~Generator() = default;
  // Collective over the replica. source, sink and matcher are used on the leader only (null
  // elsewhere).
  virtual EngineStats run(RequestSource* source, CompletionSink* sink,
                          StopStringMatcher* matcher) = 0;
  virtual Progress progress() const = 0;
  // Rows that chose each expert, [layers of the stage, experts], as far as this rank is the one
  // that counts them; collective over nothing. Empty for a dense model.
  virtual std::vector<int64_t> expert_counts() const { return {}; }
};

class Engine : public Generator {
 public:
  Engine(const EngineOptions& options, const EngineParts& parts);
  ~Engine() override;

  EngineStats run(RequestSource* source, CompletionSink* sink, StopStringMatcher* matcher) override;
  Progress progress() const override;
  // Bytes of device memory for the step's inputs, slots and residual buffers.
  static int64_t buffer_bytes(const EngineOptions& options, const model::ModelConfig& config,
                              int num_stages, DType activation);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mpinfer::engine
