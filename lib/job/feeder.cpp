#include "lib/job/feeder.h"

#include <algorithm>

namespace mpinfer::job {

Feeder::Feeder(const FeederOptions& options, const io::Rows& rows,
               std::function<NextRange()> next_range, const io::InputLines& input,
               const RequestBuilder& builder, ResultWriter& results, FeederCallbacks callbacks)
    : options_(options),
      rows_(rows),
      next_range_(std::move(next_range)),
      input_(input),
      builder_(builder),
      results_(results),
      callbacks_(std::move(callbacks)) {
  {
    const std::lock_guard lock(mutex_);
    take_ranges();
  }
  for (int i = 0; i < std::max(1, options_.threads); ++i) threads_.emplace_back([this] { work(); });
}

Feeder::~Feeder() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

// Called with the lock held.
void Feeder::take_ranges() {
  while (!closed_ && untaken_ + next_ticket_ - next_delivery_ < options_.few_rows) {
    const NextRange next = next_range_();
    closed_ = next.closed;
    const int64_t count = next.range.end - next.range.begin;
    if (count == 0) return;
    ranges_.push_back(next.range);
    untaken_ += count;
    num_rows_ += count;
  }
}

std::optional<Request> Feeder::prepare(const io::Row& row) {
  if (row.entry.length == io::RowEntry::kTooLong) {
    results_.refused(row, "", RequestBuilder::line_too_long());
    return std::nullopt;
  }
  const std::string line = input_.read(row.entry);
  auto request = builder_.build(row.index, line);
  if (!request) {
    results_.refused(row, line, request.error());
    return std::nullopt;
  }
  return std::move(*request);
}

void Feeder::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] {
      const bool room = next_ticket_ - next_delivery_ < options_.max_ready_rows &&
                        ready_tokens_ < options_.max_ready_tokens;
      return stop_ || (untaken_ > 0 && room) || (untaken_ == 0 && closed_);
    });
    if (stop_ || untaken_ == 0) return;
    RowRange& range = ranges_.front();
    const int64_t position = range.begin++;
    if (range.begin == range.end) ranges_.pop_front();
    --untaken_;
    const int64_t ticket = next_ticket_++;
    lock.unlock();
    Ready ready{.position = position, .request = std::nullopt};
    try {
      ready.request = prepare(rows_[static_cast<size_t>(position)]);
    } catch (...) {
      lock.lock();
      failure_ = std::current_exception();
      return;
    }
    lock.lock();
    if (ready.request) {
      ready_tokens_ += static_cast<int64_t>(ready.request->prompt_token_ids.size());
    }
    ready_.emplace(ticket, std::move(ready));
  }
}

engine::RequestSource::Pull Feeder::pull(int32_t limit) {
  Pull pull;
  const std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
  take_ranges();
  if (callbacks_.stalled()) limit = 0;
  while (static_cast<int32_t>(pull.requests.size()) < limit && !ready_.empty() &&
         ready_.begin()->first == next_delivery_) {
    Ready ready = std::move(ready_.begin()->second);
    ready_.erase(ready_.begin());
    ++next_delivery_;
    if (!ready.request) continue;
    ready_tokens_ -= static_cast<int64_t>(ready.request->prompt_token_ids.size());
    ready.request->begun_token_ids = callbacks_.begun(ready.request->index);
    results_.admitted(rows_[static_cast<size_t>(ready.position)], *ready.request);
    pull.requests.push_back(std::move(*ready.request));
  }
  pull.more_to_come = !closed_ || untaken_ > 0 || next_delivery_ < next_ticket_;
  changed_.notify_all();
  return pull;
}

}  // namespace mpinfer::job
