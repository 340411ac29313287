#include "lib/job/result_writer.h"

#include "lib/core/error.h"
#include "lib/job/result_format.h"
#include "lib/job/stop_strings.h"

namespace mpinfer::job {
namespace {

constexpr size_t kMaxQueued = 4096;

}  // namespace

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

uint64_t ResultWriter::key_of(const io::Row& row) const {
  const uint64_t words[2] = {row.entry.hash, options_.request_fingerprint};
  return io::hash_of({reinterpret_cast<const char*>(words), sizeof(words)});
}

void ResultWriter::admitted(const io::Row& row, const Request& request) {
  Pending pending;
  pending.row = row;
  pending.num_prompt_tokens = static_cast<int64_t>(request.prompt_token_ids.size());
  pending.sampling = request.sampling;
  running_.emplace(row.index, std::move(pending));
}

void ResultWriter::finished(Completion completion) {
  auto node = running_.extract(completion.index);
  MPINFER_CHECK(!node.empty(), "row {} finished but was not admitted", completion.index);
  Pending& pending = node.mapped();
  pending.completion = std::move(completion);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return failure_ || queue_.size() < kMaxQueued; });
  rethrow();
  queue_.push_back(std::move(pending));
  changed_.notify_all();
}

void ResultWriter::refused(const io::Row& row, std::string_view line, const RowError& error) {
  const std::string text = format_refusal(line, {.index = row.index,
                                                 .error = &error,
                                                 .file = input_.path(row.entry),
                                                 .line = row.entry.line,
                                                 .write_token_ids = options_.return_token_ids});
  journal_.append(io::RecordKind::kError, row.index, key_of(row), text);
  const std::lock_guard lock(mutex_);
  ++counts_.num_failed;
  ++counts_.errors[error.code];
}

void ResultWriter::work() {
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

std::string ResultWriter::text_of(const Pending& pending) const {
  const std::vector<int32_t>& ids = pending.completion.token_ids;
  if (!std::holds_alternative<std::string>(pending.completion.stop_reason)) {
    return tokenizer_->decode(ids, pending.sampling.skip_special_tokens);
  }
  StopScan scan(*tokenizer_, pending.sampling);
  for (size_t i = 0; i < ids.size(); ++i) scan.push(ids[i], static_cast<int32_t>(i + 1));
  return scan.text();
}

void ResultWriter::write(const Pending& pending) {
  const io::Row& row = pending.row;
  const Completion& completion = pending.completion;
  const std::string line = input_.read(row.entry);
  if (completion.error) {
    refused(row, line, *completion.error);
    return;
  }
  const std::string output = tokenizer_ != nullptr ? text_of(pending) : std::string();
  const std::string text =
      format_answer(line, {.index = row.index,
                           .output = tokenizer_ != nullptr ? &output : nullptr,
                           .finish_reason = completion.finish_reason,
                           .stop_reason = completion.stop_reason,
                           .num_prompt_tokens = pending.num_prompt_tokens,
                           .token_ids = &completion.token_ids,
                           .write_token_ids = options_.return_token_ids || tokenizer_ == nullptr});
  journal_.append(io::RecordKind::kAnswer, row.index, key_of(row), text);
  const std::lock_guard lock(mutex_);
  ++counts_.num_answered;
  counts_.prompt_tokens += pending.num_prompt_tokens;
  counts_.completion_tokens += static_cast<int64_t>(completion.token_ids.size());
}

void ResultWriter::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return failure_ || (queue_.empty() && !busy_); });
  rethrow();
}

ResultCounts ResultWriter::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

}  // namespace mpinfer::job
