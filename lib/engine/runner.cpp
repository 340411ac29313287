#include "lib/engine/runner.h"

#include <algorithm>

#include "lib/core/error.h"

namespace mpinfer::engine {

using backend::Matrix;
using backend::Stream;

namespace {

constexpr int64_t align(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

BatchLimits batch_limits(const EngineOptions& options) {
  BatchLimits limits;
  limits.max_rows = options.max_num_batched_tokens;
  limits.max_sequences = options.max_num_seqs;
  limits.max_blocks =
      (int64_t{options.max_model_len} + options.block_size - 1) / options.block_size;
  limits.num_groups = options.num_blocks.size();
  limits.block_size = options.block_size;
  return limits;
}

int32_t lanes_of(int num_stages) {
  return std::max(1, num_stages);
}
// Plans in flight (lanes + 1) and one more being built.
int32_t ring_of(int num_stages) {
  return lanes_of(num_stages) + 2;
}

}  // namespace

struct Runner::Message {
  backend::Buffer memory;  // [max_num_seqs] int32, then [max_num_batched_tokens, hidden_size]
  std::vector<std::unique_ptr<comm::Pending>> sending;

  bool sent() {
    std::erase_if(sending, [](const auto& pending) { return pending->test(); });
    return sending.empty();
  }
};

struct Runner::Drawn {
  backend::Buffer device;  // [max_num_seqs] int32
  backend::Buffer host;
  backend::Buffer logprobs;  // LogprobEntry [num_logprob_rows, 1 + num_top_logprobs]; grows
  backend::Buffer host_logprobs;
  std::unique_ptr<backend::Event> arrived;

  void reserve_logprobs(backend::Backend& backend, int64_t bytes) {
    if (bytes <= logprobs.bytes()) return;
    logprobs = backend.allocate(2 * bytes);
    host_logprobs = backend.allocate_host(2 * bytes);
  }
  const int32_t* slots = nullptr;  // device: whose last tokens these are
};

Runner::Runner(const EngineOptions& options, const EngineParts& parts, WaitLoop& wait)
    : options_(options),
      parts_(parts),
      wait_(wait),
      stage_(parts.pp_ring.rank()),
      num_stages_(parts.pp_ring.size()),
      num_lanes_(lanes_of(num_stages_)),
      row_bytes_(parts.config.hidden_size * size_of(parts.backend.activation_dtype())),
      builder_(parts.backend, batch_limits(options), ring_of(num_stages_)),
      sampler_(parts.backend, options.seed, parts.config.eos_token_ids, parts.config.vocab_size,
               options.max_num_seqs, ring_of(num_stages_), parts.grammars) {
  backend::Backend& backend = parts_.backend;
  const int64_t ids = align(int64_t{options_.max_num_seqs} * 4);
  const int32_t num_messages = num_stages_ == 1 ? 1 : ring_of(num_stages_);
  for (int32_t i = 0; i < num_messages; ++i) {
    messages_.push_back({backend.allocate(ids + options_.max_num_batched_tokens * row_bytes_), {}});
  }
  for (int32_t i = 0; i < ring_of(num_stages_); ++i) {
    drawn_.push_back({backend.allocate(ids), backend.allocate_host(ids), {}, {}, nullptr, nullptr});
  }
  last_token_ = backend.allocate(ids);
  backend.fill_bytes(Stream::kCompute, last_token_.data(), 0, ids);
  if (last()) hidden_ = backend.allocate(options_.max_num_seqs * row_bytes_);
}

Runner::~Runner() = default;

int64_t Runner::buffer_bytes(const EngineOptions& options, const model::ModelConfig& config,
                             int num_stages, DType activation) {
  const int64_t row = config.hidden_size * size_of(activation);
  const int64_t ids = align(int64_t{options.max_num_seqs} * 4);
  const int64_t ring = ring_of(num_stages);
  const int64_t messages =
      (num_stages == 1 ? 1 : ring) * (ids + options.max_num_batched_tokens * row);
  return messages + ring * (BatchBuilder::bytes(batch_limits(options)) + ids) + ids +
         options.max_num_seqs * row;
}

Runner::Message& Runner::message_of(int64_t number) {
  return messages_[static_cast<size_t>(number) % messages_.size()];
}

Runner::Drawn& Runner::drawn_of(int64_t number) {
  return drawn_[static_cast<size_t>(number) % drawn_.size()];
}

// Ids region in front of the residual; the last stage drew them itself and needs none.
int64_t Runner::ids_bytes(const StepPlan* plan) const {
  return plan == nullptr ? 0 : plan->num_logit_rows() * 4;
}

int64_t Runner::logprob_bytes(const StepPlan* plan) {
  if (plan == nullptr) return 0;
  return plan->num_logprob_rows() * (1 + int64_t{plan->num_top_logprobs}) *
         static_cast<int64_t>(sizeof(backend::LogprobEntry));
}

int64_t Runner::residual_bytes(const StepPlan& plan) const {
  return plan.num_rows * row_bytes_;
}

void Runner::launch(const StepPlan& plan, const StepPlan* lane_before,
                    std::span<const int64_t> group_rows) {
  if (!plan.empty()) {
    batch_ = builder_.build(Stream::kCompute, plan);
    drawn_of(plan.number).slots = batch_.logit_slots;
  }
  if (num_stages_ > 1) receive(plan, lane_before);
  if (!plan.empty()) {
    forward(plan, group_rows);
  } else if (std::any_of(group_rows.begin(), group_rows.end(), [](auto n) { return n > 0; })) {
    // Its experts work for the others' rows.
    const int64_t width = parts_.config.hidden_size;
    const Matrix none{nullptr, parts_.backend.activation_dtype(), 0, width, width};
    parts_.transformer.forward(Stream::kCompute, {.group_rows = group_rows}, none);
  }
  if (last()) draw(plan, lane_before);
  if (num_stages_ > 1) send(plan, lane_before);
}

void Runner::receive(const StepPlan& plan, const StepPlan* lane_before) {
  Message& message = message_of(plan.number);
  wait_.until("send of an earlier plan's stage shift", plan.number, [&] { return message.sent(); });
  const int before = (stage_ + num_stages_ - 1) % num_stages_;
  char* memory = static_cast<char*>(message.memory.data());
  const int64_t ids = last() ? 0 : ids_bytes(lane_before);
  const int64_t residual_at = align(int64_t{options_.max_num_seqs} * 4);
  std::unique_ptr<comm::Pending> ids_pending;
  std::unique_ptr<comm::Pending> residual_pending;
  if (ids > 0)
    ids_pending = parts_.pp_ring.start_send_recv(Stream::kShift, {}, {memory, ids, before});
  // From the last stage to the first alone, which is the leader's.
  const int64_t logprobs = first() ? logprob_bytes(lane_before) : 0;
  std::unique_ptr<comm::Pending> logprobs_pending;
  if (logprobs > 0) {
    Drawn& drawn = drawn_of(lane_before->number);
    drawn.reserve_logprobs(parts_.backend, logprobs);
    logprobs_pending = parts_.pp_ring.start_send_recv(Stream::kShift, {},
                                                      {drawn.logprobs.data(), logprobs, before});
  }
  if (!first() && !plan.empty()) {
    residual_pending = parts_.pp_ring.start_send_recv(
        Stream::kShift, {}, {memory + residual_at, residual_bytes(plan), before});
  }
  wait_.until("stage shift", plan.number, [&] {
    if (ids_pending != nullptr && ids_pending->test()) ids_pending.reset();
    if (residual_pending != nullptr && residual_pending->test()) residual_pending.reset();
    if (logprobs_pending != nullptr && logprobs_pending->test()) logprobs_pending.reset();
    return ids_pending == nullptr && residual_pending == nullptr && logprobs_pending == nullptr;
  });
  if (ids > 0 || logprobs > 0) {
    Drawn& drawn = drawn_of(lane_before->number);
    if (ids > 0) parts_.backend.download(Stream::kCompute, drawn.host.data(), memory, ids);
    if (logprobs > 0) {
      parts_.backend.download(Stream::kCompute, drawn.host_logprobs.data(), drawn.logprobs.data(),
                              logprobs);
    }
    drawn.arrived = parts_.backend.record(Stream::kCompute);
    if (first() && ids > 0) {
      parts_.backend.scatter_slots(Stream::kCompute, static_cast<int32_t*>(last_token_.data()),
                                   reinterpret_cast<const int32_t*>(memory), drawn.slots,
                                   lane_before->num_logit_rows());
    }
  }
}

Matrix Runner::residual_of(const StepPlan& plan) {
  char* memory = static_cast<char*>(message_of(plan.number).memory.data());
  const int64_t width = parts_.config.hidden_size;
  return {memory + align(int64_t{options_.max_num_seqs} * 4), parts_.backend.activation_dtype(),
          plan.num_rows, width, width};
}

void Runner::forward(const StepPlan& plan, std::span<const int64_t> group_rows) {
  backend::Backend& backend = parts_.backend;
  if (first() && plan.num_decodes > 0) {
    backend.gather_slots(Stream::kCompute, batch_.ids,
                         static_cast<const int32_t*>(last_token_.data()), batch_.row_slots,
                         plan.num_decodes);
  }
  batch_.input.group_rows = group_rows;
  parts_.transformer.forward(Stream::kCompute, batch_.input, residual_of(plan));
}

void Runner::draw(const StepPlan& plan, const StepPlan* lane_before) {
  // The wait for the lane's last ids comes after forward was launched, and only if a row needs
  // them.
  if (lane_before != nullptr && Sampler::needs_history(plan)) results(*lane_before);
  if (plan.logit_entries.empty() && plan.logprob_rows.empty()) return;
  backend::Backend& backend = parts_.backend;
  const int64_t width = parts_.config.hidden_size;
  const DType dtype = backend.activation_dtype();
  const Matrix residual = residual_of(plan);
  const Matrix hidden{hidden_.data(), dtype, plan.num_logit_rows(), width, width};
  Drawn& drawn = drawn_of(plan.number);
  auto* ids = static_cast<int32_t*>(drawn.device.data());
  if (plan.num_logit_rows() > 0)
    parts_.lm_head->gather(Stream::kCompute, hidden, residual, batch_.logit_rows);
  const int64_t num_greedy = plan.num_greedy;
  if (num_greedy > 0)
    parts_.lm_head->greedy(Stream::kCompute, ids, hidden.slice_rows(0, num_greedy));
  if (num_greedy < plan.num_logit_rows()) {
    const model::SamplingInput input = sampler_.prepare(Stream::kCompute, plan);
    parts_.lm_head->sample(Stream::kCompute, ids + num_greedy,
                           hidden.slice_rows(num_greedy, plan.num_logit_rows() - num_greedy),
                           input);
  }
  if (num_stages_ == 1 && plan.num_logit_rows() > 0) {
    backend.scatter_slots(Stream::kCompute, static_cast<int32_t*>(last_token_.data()), ids,
                          batch_.logit_slots, plan.num_logit_rows());
  }
  if (!plan.logprob_rows.empty()) look_at_logprobs(plan);
  if (plan.num_logit_rows() > 0)
    backend.download(Stream::kCompute, drawn.host.data(), ids, plan.num_logit_rows() * 4);
  drawn.arrived = backend.record(Stream::kCompute);
}

// The logits of these rows are computed once more: their draw may have overwritten them.
void Runner::look_at_logprobs(const StepPlan& plan) {
  backend::Backend& backend = parts_.backend;
  const int64_t width = parts_.config.hidden_size;
  const DType dtype = backend.activation_dtype();
  const Matrix residual = residual_of(plan);
  Drawn& drawn = drawn_of(plan.number);
  drawn.reserve_logprobs(backend, logprob_bytes(&plan));
  if (plan.num_logit_rows() > 0) {
    backend.gather_slots(Stream::kCompute, batch_.logprob_ids,
                         static_cast<const int32_t*>(drawn.device.data()), batch_.logprob_draws,
                         plan.num_logprob_rows());
  }
  auto* out = static_cast<backend::LogprobEntry*>(drawn.logprobs.data());
  const int64_t at_once = options_.max_num_seqs;
  for (int64_t begin = 0; begin < plan.num_logprob_rows(); begin += at_once) {
    const int64_t rows = std::min(at_once, plan.num_logprob_rows() - begin);
    const Matrix hidden{hidden_.data(), dtype, rows, width, width};
    parts_.lm_head->gather(Stream::kCompute, hidden, residual, batch_.logprob_rows + begin);
    parts_.lm_head->logprobs(Stream::kCompute, out + begin * (1 + int64_t{plan.num_top_logprobs}),
                             hidden, batch_.logprob_ids + begin, plan.num_top_logprobs);
  }
  if (num_stages_ == 1) {
    backend.download(Stream::kCompute, drawn.host_logprobs.data(), out, logprob_bytes(&plan));
  }
}

void Runner::send(const StepPlan& plan, const StepPlan* lane_before) {
  const int after = (stage_ + 1) % num_stages_;
  char* memory = static_cast<char*>(message_of(plan.number).memory.data());
  const bool after_is_last = after + 1 == num_stages_;
  std::vector<comm::Transfer> transfers;
  if (last()) {
    // The first stage takes these with plan number + lanes.
    if (!plan.logit_entries.empty()) {
      transfers.push_back({drawn_of(plan.number).device.data(), ids_bytes(&plan), after});
    }
    if (logprob_bytes(&plan) > 0) {
      transfers.push_back({drawn_of(plan.number).logprobs.data(), logprob_bytes(&plan), after});
    }
  } else {
    if (!after_is_last && ids_bytes(lane_before) > 0)
      transfers.push_back({memory, ids_bytes(lane_before), after});
    if (!plan.empty()) {
      transfers.push_back(
          {memory + align(int64_t{options_.max_num_seqs} * 4), residual_bytes(plan), after});
    }
  }
  if (transfers.empty()) return;
  const auto computed = parts_.backend.record(Stream::kCompute);
  parts_.backend.wait(Stream::kShift, *computed);
  for (const comm::Transfer& transfer : transfers) {
    message_of(plan.number)
        .sending.push_back(parts_.pp_ring.start_send_recv(Stream::kShift, transfer, {}));
  }
}

std::span<const int32_t> Runner::results(const StepPlan& plan) {
  std::span<const int32_t> ids;
  if (!plan.logit_entries.empty() || (first() && !plan.logprob_rows.empty())) {
    Drawn& drawn = drawn_of(plan.number);
    MPINFER_CHECK(drawn.arrived != nullptr, "ids of plan {} asked for before they were drawn",
                  plan.number);
    wait_.until("ids of a plan", plan.number, [&] { return drawn.arrived->query(); });
    ids = {static_cast<const int32_t*>(drawn.host.data()),
           static_cast<size_t>(plan.num_logit_rows())};
  }
  if (plan.number == num_observed_) {
    ++num_observed_;
    if (last()) sampler_.observe(plan, ids);
  }
  return ids;
}

std::span<const backend::LogprobEntry> Runner::logprobs(const StepPlan& plan) {
  if (plan.logprob_rows.empty()) return {};
  const Drawn& drawn = drawn_of(plan.number);
  return {static_cast<const backend::LogprobEntry*>(drawn.host_logprobs.data()),
          static_cast<size_t>(logprob_bytes(&plan)) / sizeof(backend::LogprobEntry)};
}

void Runner::flush() {
  for (Message& message : messages_) {
    wait_.until("last stage shifts", -1, [&] { return message.sent(); });
  }
}

}  // namespace mpinfer::engine
