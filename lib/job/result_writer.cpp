#include "lib/job/result_writer.h"

#include "lib/core/error.h"
#include "lib/core/thread_name.h"
#include "lib/job/earlier_results.h"
#include "lib/job/stop_strings.h"

namespace mpinfer::job {
namespace {

constexpr size_t kMaxQueued = 4096;

}  // namespace

uint64_t record_key(uint64_t line_hash, uint64_t fingerprint) {
  const uint64_t words[2] = {line_hash, fingerprint};
  return io::hash_of({reinterpret_cast<const char*>(words), sizeof(words)});
}

ResultWriter::ResultWriter(const Options& options, const text::Tokenizer* tokenizer,
                           const io::InputLines& input, io::JournalWriter& journal)
    : options_(options), tokenizer_(tokenizer), input_(input), journal_(journal) {
  thread_ = std::thread([this] { work(); });
}

ResultWriter::~ResultWriter() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void ResultWriter::rethrow() {
  if (failure_) std::rethrow_exception(failure_);
}

void ResultWriter::unfinished(int64_t index, const std::vector<int32_t>& token_ids) {
  const auto found = running_.find(index);
  if (found == running_.end() || token_ids.empty()) return;
  // Samples and log-probabilities are not in the tokens of one sequence: such a row begins again.
  const SamplingParams& sampling = found->second.sampling;
  if (sampling.n > 1 || sampling.num_logprobs >= 0 || sampling.num_prompt_logprobs >= 0 ||
      sampling.prompt_only) {
    return;
  }
  journal_.append(io::RecordKind::kPartial, index, key_of(found->second.row),
                  format_partial(token_ids));
}

void ResultWriter::admitted(const io::Row& row, const Request& request) {
  Pending pending;
  pending.row = row;
  pending.num_prompt_tokens = static_cast<int64_t>(request.prompt_token_ids.size());
  pending.sampling = request.sampling;
  pending.num_missing = request.sampling.n;
  pending.completions.resize(static_cast<size_t>(request.sampling.n));
  running_.emplace(row.index, std::move(pending));
}

void ResultWriter::finished(Completion completion) {
  const auto found = running_.find(completion.index);
  MPINFER_CHECK(found != running_.end(), "row {} finished but was not admitted", completion.index);
  auto& completions = found->second.completions;
  const auto sample = static_cast<size_t>(completion.sample);
  completions.at(sample) = std::move(completion);
  if (--found->second.num_missing > 0) return;
  auto node = running_.extract(found);
  Pending& pending = node.mapped();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return failure_ || queue_.size() < kMaxQueued; });
  rethrow();
  queue_.push_back(std::move(pending));
  changed_.notify_all();
}

void ResultWriter::refused(const io::Row& row, std::string_view line, const RowError& error) {
  const std::string text = format_refusal(
      line,
      {.index = row.index, .error = &error, .file = input_.path(row.entry), .line = row.entry.line},
      options_.format);
  journal_.append(io::RecordKind::kError, row.index, key_of(row), text);
  const std::lock_guard lock(mutex_);
  ++counts_.num_failed;
  ++counts_.errors[error.code];
}

void ResultWriter::work() {
  name_this_thread("results");
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const Pending pending = std::move(queue_.front());
    queue_.pop_front();
    busy_ = true;
    lock.unlock();
    try {
      write(pending);
    } catch (...) {
      lock.lock();
      failure_ = std::current_exception();
      queue_.clear();
      changed_.notify_all();
      return;
    }
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

std::string ResultWriter::text_of(const SamplingParams& sampling,
                                  const Completion& completion) const {
  const std::vector<int32_t>& ids = completion.token_ids;
  if (!std::holds_alternative<std::string>(completion.stop_reason)) {
    return tokenizer_->decode(ids, sampling.skip_special_tokens);
  }
  StopScan scan(*tokenizer_, sampling);
  for (size_t i = 0; i < ids.size(); ++i) scan.push(ids[i], static_cast<int32_t>(i + 1));
  return scan.text();
}

void ResultWriter::write(const Pending& pending) {
  const io::Row& row = pending.row;
  const std::string line = input_.read(row.entry);
  Answer answer{.index = row.index,
                .samples = {},
                .sampling = &pending.sampling,
                .num_prompt_tokens = pending.num_prompt_tokens};
  int64_t num_tokens = 0;
  for (const Completion& completion : pending.completions) {
    if (completion.error) {
      refused(row, line, *completion.error);
      return;
    }
    SampleAnswer& sample = answer.samples.emplace_back();
    sample.completion = &completion;
    if (tokenizer_ != nullptr) sample.text = text_of(pending.sampling, completion);
    num_tokens += static_cast<int64_t>(completion.token_ids.size());
  }
  if (tokenizer_ != nullptr) {
    answer.token_text = [this](int32_t id) {
      return tokenizer_->decode({&id, 1}, /*skip_special_tokens=*/false);
    };
  }
  journal_.append(io::RecordKind::kAnswer, row.index, key_of(row),
                  format_answer(line, answer, options_.format),
                  {.prompt = checked_cast<uint32_t>(pending.num_prompt_tokens),
                   .completion = checked_cast<uint32_t>(num_tokens)});
  const std::lock_guard lock(mutex_);
  ++counts_.num_answered;
  counts_.prompt_tokens += pending.num_prompt_tokens;
  counts_.completion_tokens += num_tokens;
  for (const Completion& completion : pending.completions)
    counts_.cached_tokens += completion.num_cached_tokens;
}

void ResultWriter::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return failure_ || (queue_.empty() && !busy_); });
  rethrow();
}

void ResultWriter::drain_for(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, patience, [this] { return failure_ || (queue_.empty() && !busy_); });
}

ResultCounts ResultWriter::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

}  // namespace mpinfer::job
