// Runner: carries one plan through this rank's stage: upload, stage shift, forward, drawing, ids
// back to the host. Only this file of the engine moves tensors between ranks. Nothing here waits
// for the device but through the wait loop.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lib/engine/batch_builder.h"
#include "lib/engine/engine.h"
#include "lib/engine/sampler.h"
#include "lib/engine/sequence.h"
#include "lib/engine/wait.h"

namespace mpinfer::engine {

class Runner {
 public:
  Runner(const EngineOptions& options, const EngineParts& parts, WaitLoop& wait);
  ~Runner();

  // Plans in order. lane_before: plan number - lanes, whose ids this plan's decode rows continue
  // (null before there is one).
  // group_rows: rows of every member of a lockstep group, which enter the model's collectives
  // together; empty without one.
  void launch(const StepPlan& plan, const StepPlan* lane_before,
              std::span<const int64_t> group_rows);
  // Ids that plan drew, in the order of its logit entries; waits until they are on the host. A
  // stage other than the last has them once plan + lanes is launched there. First asked for in plan
  // order.
  std::span<const int32_t> results(const StepPlan& plan);
  // The log-probabilities of the plan's logprob rows, [num_logprob_rows, 1 + num_top_logprobs]:
  // on the first stage, once results() has been asked for.
  std::span<const backend::LogprobEntry> logprobs(const StepPlan& plan);
  // Waits until all that was sent has left.
  void flush();

  static int64_t buffer_bytes(const EngineOptions& options, const model::ModelConfig& config,
                              int num_stages, DType activation);

 private:
  struct Message;  // what crosses a stage border for one plan: ids of the lane's plan before, then
                   // the residual rows
  struct Drawn;    // ids of one plan on the device and on the host

  Message& message_of(int64_t number);
  Drawn& drawn_of(int64_t number);
  backend::Matrix residual_of(const StepPlan& plan);  // [num_rows, hidden_size], in its message
  void receive(const StepPlan& plan, const StepPlan* lane_before);
  void send(const StepPlan& plan, const StepPlan* lane_before);
  void forward(const StepPlan& plan, std::span<const int64_t> group_rows);
  void draw(const StepPlan& plan, const StepPlan* lane_before);
  void look_at_logprobs(const StepPlan& plan);
  int64_t ids_bytes(const StepPlan* plan) const;
  static int64_t logprob_bytes(const StepPlan* plan);
  int64_t residual_bytes(const StepPlan& plan) const;
  bool first() const { return stage_ == 0; }
  bool last() const { return stage_ + 1 == num_stages_; }

  EngineOptions options_;
  EngineParts parts_;
  WaitLoop& wait_;
  int stage_;
  int num_stages_;
  int32_t num_lanes_;
  int64_t row_bytes_;
  BatchBuilder builder_;
  Sampler sampler_;
  DeviceBatch batch_;              // of the plan being launched
  std::vector<Message> messages_;  // ring by plan number
  std::vector<Drawn> drawn_;       // ring by plan number
  backend::Buffer last_token_;  // [max_num_seqs] int32: last drawn id of every slot (first stage)
  backend::Buffer hidden_;    // [max_num_seqs, hidden_size]: normalised rows that draw (last stage)
  int64_t num_observed_ = 0;  // plans whose ids the sampler has counted
};

}  // namespace mpinfer::engine
