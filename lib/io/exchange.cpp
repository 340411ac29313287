#include "lib/io/exchange.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <span>
#include <thread>

#include "lib/core/error.h"
#include "lib/core/fault_point.h"
#include "lib/core/log.h"

namespace mpinfer::io {
namespace {

constexpr int kProgressTag = 71;
constexpr int kStopTag = 72;

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <class Container>
void append_values(const std::string& bytes, Container* values) {
  using T = typename Container::value_type;
  MPINFER_CHECK(bytes.size() % sizeof(T) == 0, "{} bytes are no whole records", bytes.size());
  for (size_t at = 0; at < bytes.size(); at += sizeof(T)) {
    std::memcpy(&values->emplace_back(), bytes.data() + at, sizeof(T));
  }
}

template <class T>
std::vector<T> values_of(const std::string& bytes) {
  std::vector<T> values;
  append_values(bytes, &values);
  return values;
}

int64_t broadcast_number(const comm::HostComm& comm, int64_t value) {
  comm.broadcast(&value, sizeof(value), 0);
  return value;
}

}  // namespace

Rows scatter_rows(const comm::HostComm& leaders, Rows all, const std::vector<int32_t>& owner,
                  int64_t window_rows) {
  const bool root = leaders.rank() == 0;
  const int64_t num_rows = broadcast_number(leaders, static_cast<int64_t>(all.size()));
  Rows mine = std::move(all);
  size_t kept = 0;  // of rank 0's, at the beginning of the same rows
  for (int64_t begin = 0; begin < num_rows; begin += window_rows) {
    std::vector<std::string> parts(root ? static_cast<size_t>(leaders.size()) : 0);
    const int64_t end = std::min(num_rows, begin + window_rows);
    for (int64_t i = begin; root && i < end; ++i) {
      const auto at = static_cast<size_t>(i);
      const Row row = mine[at];
      if (owner[at] == 0) {
        mine[kept++] = row;
      } else {
        parts[static_cast<size_t>(owner[at])].append(reinterpret_cast<const char*>(&row),
                                                     sizeof(row));
      }
    }
    append_values(leaders.scatter(parts, 0), &mine);
  }
  if (root) mine.resize(kept);
  return mine;
}

void broadcast_blocks(const comm::HostComm& leaders, Rows* rows, std::vector<int64_t>* starts) {
  constexpr size_t kWindow = 1 << 13;
  const bool root = leaders.rank() == 0;
  std::string bytes = root ? bytes_of(*starts) : std::string();
  leaders.broadcast(bytes, 0);
  if (!root) append_values(bytes, starts);
  const auto num_rows = static_cast<size_t>(starts->back());
  for (size_t begin = 0; begin < num_rows; begin += kWindow) {
    std::vector<Row> window;
    const size_t end = std::min(num_rows, begin + kWindow);
    for (size_t i = begin; root && i < end; ++i) window.push_back((*rows)[i]);
    bytes = bytes_of(window);
    leaders.broadcast(bytes, 0);
    if (!root) append_values(bytes, rows);
  }
}

InputLines::InputLines(const comm::HostComm& leaders, const std::vector<std::string>& paths,
                       const std::vector<int64_t>& expected_bytes, Rows* rows, int64_t round_bytes,
                       bool can_read)
    : names_(paths) {
  try {
    for (size_t i = 0; can_read && i < paths.size(); ++i) {
      files_.push_back(open_input(paths[i]));
      const int64_t bytes = file_bytes(files_.back());
      if (bytes != expected_bytes[i]) {
        throw Error(ExitCode::kUsage,
                    fmt::format("input {} on {}: {} bytes, rank 0 sees {}; give every rank the "
                                "same file",
                                paths[i], comm::host_name(), bytes, expected_bytes[i]));
      }
    }
  } catch (const Error& error) {
    if (error.exit_code() != ExitCode::kInputUnreadable || leaders.rank() == 0) throw;
    can_read = false;
  }
  if (leaders.all_reduce_min(can_read ? 1 : 0) == 1) return;
  MPINFER_CHECK(leaders.rank() != 0 || can_read, "rank 0 cannot read the input it indexed");
  if (!can_read) {
    files_.clear();
    copy_ = make_anonymous_file();
    spdlog::info("{} does not see the input: rank 0 sends {} lines", comm::host_name(),
                 rows->size());
  }
  receive_lines(leaders, rows, round_bytes);
}

void InputLines::receive_lines(const comm::HostComm& leaders, Rows* rows, int64_t round_bytes) {
  const int64_t budget = std::max<int64_t>(1, round_bytes / leaders.size());
  size_t next = copied() ? 0 : rows->size();
  int64_t offset = 0;
  while (true) {
    std::vector<RowEntry> wanted;
    const size_t first = next;
    int64_t bytes = 0;
    while (next < rows->size() && bytes < budget) {
      const RowEntry& entry = (*rows)[next++].entry;
      if (entry.length == RowEntry::kTooLong) continue;
      wanted.push_back(entry);
      bytes += entry.length;
    }
    if (leaders.all_reduce_max(static_cast<int64_t>(next - first)) == 0) return;
    const auto requests = leaders.gather(bytes_of(wanted), 0);
    std::vector<std::string> replies(requests.size());
    for (size_t rank = 0; rank < requests.size(); ++rank) {
      for (const RowEntry& line : values_of<RowEntry>(requests[rank])) {
        replies[rank] += read_row(files_[static_cast<size_t>(line.file)], line);
      }
    }
    const std::string lines = leaders.scatter(replies, 0);
    if (!copied()) continue;
    write_all(copy_, lines);
    for (size_t i = first; i < next; ++i) {
      RowEntry& entry = (*rows)[i].entry;
      if (entry.length == RowEntry::kTooLong) continue;
      entry.offset = static_cast<uint64_t>(offset) & RowEntry::kMaxOffset;
      offset += entry.length;
    }
  }
}

std::string InputLines::read(const RowEntry& row) const {
  return read_row(copied() ? copy_ : files_[static_cast<size_t>(row.file)], row);
}

ProgressExchange::ProgressExchange(const comm::HostComm& leaders)
    : leaders_(leaders), replicas_(static_cast<size_t>(leaders.size())) {}

void ProgressExchange::post(const ReplicaProgress& progress) {
  if (leaders_.rank() == 0) {
    replicas_[0] = progress;
    return;
  }
  if (under_way_ && !under_way_->test()) return;
  outgoing_ = progress;
  under_way_ = leaders_.start_send(&outgoing_, sizeof(outgoing_), 0, kProgressTag);
}

void ProgressExchange::post_last(const ReplicaProgress& progress) {
  const auto wait = [this] {
    while (under_way_ && !under_way_->test()) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    under_way_.reset();
  };
  wait();
  ReplicaProgress last = progress;
  last.finished = 1;
  post(last);
  wait();
}

void ProgressExchange::collect() {
  comm::HostComm::Message message;
  while (leaders_.try_receive(&message, kProgressTag)) {
    MPINFER_CHECK(message.bytes.size() == sizeof(ReplicaProgress), "progress report of {} bytes",
                  message.bytes.size());
    std::memcpy(&replicas_[static_cast<size_t>(message.source)], message.bytes.data(),
                sizeof(ReplicaProgress));
  }
}

void ProgressExchange::request_stop(int level) {
  if (level <= stop_) return;
  stop_ = level;
  sent_levels_.push_back(level);
  for (int peer = 1; peer < leaders_.size(); ++peer) {
    stops_.push_back(leaders_.start_send(&sent_levels_.back(), sizeof(int), peer, kStopTag));
  }
}

int ProgressExchange::stop_requested() {
  comm::HostComm::Message message;
  while (leaders_.rank() != 0 && leaders_.try_receive(&message, kStopTag)) {
    int level = 0;
    MPINFER_CHECK(message.bytes.size() == sizeof(level), "stop of {} bytes", message.bytes.size());
    std::memcpy(&level, message.bytes.data(), sizeof(level));
    stop_ = std::max(stop_, level);
  }
  return stop_;
}

bool ProgressExchange::all_finished() const {
  return std::all_of(replicas_.begin(), replicas_.end(),
                     [](const ReplicaProgress& replica) { return replica.finished != 0; });
}

}  // namespace mpinfer::io
