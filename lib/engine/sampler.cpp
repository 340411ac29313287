#include "lib/engine/sampler.h"

#include <algorithm>
#include <cstring>

#include "lib/core/error.h"

namespace mpinfer::engine {
namespace {

backend::SampleRow sample_row(const PlanEntry& entry, uint64_t run_seed) {
  const Request& request = entry.sequence->request;
  const SamplingParams& s = request.sampling;
  backend::SampleRow row;
  row.temperature = s.temperature;
  row.top_p = s.top_p;
  row.min_p = s.min_p;
  row.top_k = s.top_k;
  row.seed = s.seed.value_or(run_seed);
  row.index = s.seed.has_value() ? ~0ULL : static_cast<uint64_t>(request.index);
  row.position = static_cast<uint32_t>(entry.completion_position);
  row.repetition_penalty = s.repetition_penalty;
  row.frequency_penalty = s.frequency_penalty;
  row.presence_penalty = s.presence_penalty;
  return row;
}

// Starts with the prompt's tokens at zero draws: they count for the repetition penalty alone.
std::map<int32_t, int32_t>& counts_of(Sequence& sequence) {
  if (sequence.drawn_counts.empty()) {
    for (const int32_t token : sequence.request.prompt_token_ids)
      sequence.drawn_counts.try_emplace(token, 0);
  }
  return sequence.drawn_counts;
}

constexpr int64_t align(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

}  // namespace

Sampler::Sampler(backend::Backend& backend, uint64_t run_seed, std::vector<int32_t> eos_token_ids,
                 int32_t max_rows, int32_t ring)
    : backend_(backend), run_seed_(run_seed), eos_token_ids_(std::move(eos_token_ids)) {
  const int64_t bytes =
      align(int64_t{max_rows} * static_cast<int64_t>(sizeof(backend::SampleRow))) +
      align((int64_t{max_rows} + 1) * 4) + 65536;
  for (int32_t i = 0; i < ring; ++i)
    ring_.push_back({backend.allocate_host(bytes), backend.allocate(bytes)});
}

bool Sampler::needs_history(const StepPlan& plan) {
  return std::any_of(
      plan.logit_entries.begin() + plan.num_greedy, plan.logit_entries.end(), [&](int32_t entry) {
        return plan.entries[static_cast<size_t>(entry)].sequence->request.sampling.penalised();
      });
}

void Sampler::observe(const StepPlan& plan, std::span<const int32_t> ids) {
  for (size_t i = 0; i < ids.size(); ++i) {
    Sequence& sequence = *plan.entries[static_cast<size_t>(plan.logit_entries[i])].sequence;
    if (sequence.request.sampling.penalised() && ids[i] >= 0) ++counts_of(sequence)[ids[i]];
  }
}

void Sampler::add_adjustments(std::vector<backend::LogitAdjustment>& out,
                              const PlanEntry& entry) const {
  Sequence& sequence = *entry.sequence;
  const SamplingParams& s = sequence.request.sampling;
  const size_t begin = out.size();
  if (s.penalised()) {
    for (const auto& [token, count] : counts_of(sequence)) {
      backend::LogitAdjustment adjustment;
      adjustment.token = token;
      adjustment.output_count = count;
      adjustment.in_context = 1;
      out.push_back(adjustment);
    }
  }
  if (entry.completion_position >= s.min_tokens) return;
  const auto ban = [&](int32_t token) {
    const auto found = std::find_if(out.begin() + static_cast<std::ptrdiff_t>(begin), out.end(),
                                    [token](const auto& a) { return a.token == token; });
    if (found != out.end()) {
      found->banned = 1;
    } else {
      backend::LogitAdjustment adjustment;
      adjustment.token = token;
      adjustment.banned = 1;
      out.push_back(adjustment);
    }
  };
  for (const int32_t token : eos_token_ids_) ban(token);
  for (const int32_t token : s.stop_token_ids) ban(token);
}

model::SamplingInput Sampler::prepare(backend::Stream stream, const StepPlan& plan) {
  std::vector<backend::SampleRow> rows;
  std::vector<int32_t> offsets = {0};
  std::vector<backend::LogitAdjustment> adjustments;
  for (auto i = static_cast<size_t>(plan.num_greedy); i < plan.logit_entries.size(); ++i) {
    const PlanEntry& entry = plan.entries[static_cast<size_t>(plan.logit_entries[i])];
    rows.push_back(sample_row(entry, run_seed_));
    add_adjustments(adjustments, entry);
    offsets.push_back(checked_cast<int32_t>(adjustments.size()));
  }
  const auto bytes_of = [](const auto& v) { return static_cast<int64_t>(v.size() * sizeof(v[0])); };
  const int64_t offsets_at = align(bytes_of(rows));
  const int64_t adjustments_at = offsets_at + align(bytes_of(offsets));
  const int64_t bytes = adjustments_at + align(bytes_of(adjustments));
  Staging& staging = ring_[static_cast<size_t>(plan.number) % ring_.size()];
  if (bytes > staging.host.bytes()) {
    staging.host = backend_.allocate_host(2 * bytes);
    staging.device = backend_.allocate(2 * bytes);
  }
  char* host = static_cast<char*>(staging.host.data());
  char* device = static_cast<char*>(staging.device.data());
  std::memcpy(host, rows.data(), rows.size() * sizeof(rows[0]));
  std::memcpy(host + offsets_at, offsets.data(), offsets.size() * sizeof(offsets[0]));
  if (!adjustments.empty()) {
    std::memcpy(host + adjustments_at, adjustments.data(),
                adjustments.size() * sizeof(adjustments[0]));
  }
  backend_.upload(stream, device, host, bytes);
  model::SamplingInput input;
  input.rows = reinterpret_cast<const backend::SampleRow*>(device);
  if (!adjustments.empty()) {
    input.adjustment_offsets = reinterpret_cast<const int32_t*>(device + offsets_at);
    input.adjustments = reinterpret_cast<const backend::LogitAdjustment*>(device + adjustments_at);
  }
  return input;
}

}  // namespace mpinfer::engine
