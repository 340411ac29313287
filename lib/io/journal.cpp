#include "lib/io/journal.h"

#include <cerrno>
#include <charconv>
#include <optional>

#include "lib/core/error.h"
#include "lib/core/fault_point.h"
#include "lib/core/log.h"
#include "lib/core/thread_name.h"
#include "lib/io/index.h"

namespace mpinfer::io {
namespace {

constexpr size_t kHeadBytes =
    2 + 17 + 17 + 9 + 9 + 9;       // kind, row, key, tokens, length and their spaces
constexpr size_t kTailBytes = 17;  // space and checksum
constexpr size_t kMaxPendingBytes = size_t{8} << 20;
constexpr int64_t kMaxJournalLine = int64_t{1} << 31;

std::optional<uint64_t> hexadecimal(std::string_view digits) {
  uint64_t value = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  if (result.ec != std::errc{} || result.ptr != digits.data() + digits.size()) return std::nullopt;
  return value;
}

std::optional<JournalRecord> parse_line(const Line& line) {
  const std::string_view bytes = line.bytes;
  if (line.too_long || bytes.size() < kHeadBytes + kTailBytes) return std::nullopt;
  const std::string_view checked = bytes.substr(0, bytes.size() - kTailBytes + 1);
  const auto checksum = hexadecimal(bytes.substr(checked.size()));
  if (!checksum || *checksum != hash_of(checked)) return std::nullopt;
  const char kind = bytes[0];
  const auto row = hexadecimal(bytes.substr(2, 16));
  const auto key = hexadecimal(bytes.substr(19, 16));
  const auto prompt = hexadecimal(bytes.substr(36, 8));
  const auto completion = hexadecimal(bytes.substr(45, 8));
  const auto length = hexadecimal(bytes.substr(54, 8));
  const bool known = kind == 'H' || kind == 'A' || kind == 'E' || kind == 'P';
  if (!known || !row || !key || !prompt || !completion || !length || *row > INT64_MAX) {
    return std::nullopt;
  }
  if (*length != bytes.size() - kHeadBytes - kTailBytes) return std::nullopt;
  return JournalRecord{
      .row = static_cast<int64_t>(*row),
      .key = *key,
      .offset = line.offset + static_cast<int64_t>(kHeadBytes),
      .length = static_cast<uint32_t>(*length),
      .tokens = {static_cast<uint32_t>(*prompt), static_cast<uint32_t>(*completion)},
      .kind = static_cast<RecordKind>(kind)};
}

}  // namespace

std::string journal_line(RecordKind kind, int64_t row, uint64_t key, std::string_view payload,
                         TokenCounts tokens) {
  MPINFER_CHECK(payload.find('\n') == std::string_view::npos, "row {}: newline in a result", row);
  std::string line =
      fmt::format("{} {:016x} {:016x} {:08x} {:08x} {:08x} ", static_cast<char>(kind), row, key,
                  tokens.prompt, tokens.completion, checked_cast<uint32_t>(payload.size()));
  line += payload;
  line += ' ';
  line += fmt::format("{:016x}\n", hash_of(line));
  return line;
}

JournalWriter::JournalWriter(File file, const Options& options, std::string_view header)
    : file_(std::move(file)), options_(options) {
  thread_ = std::thread([this] { work(); });
  append_line(journal_line(RecordKind::kHeader, 0, 0, header));
}

JournalWriter::~JournalWriter() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

// Goes on where a full disk stopped it, for a while; then cuts the group off again.
void JournalWriter::write_group(std::string_view group) {
  const int64_t before = options_.durable ? file_bytes(file_) : 0;
  const auto give_up = std::chrono::steady_clock::now() + options_.full_disk_patience;
  std::string_view rest = group;
  fault_point("commit-write");
  while (!rest.empty()) {
    const int fault = fault_point("journal");
    const WriteResult result = fault > 0 ? WriteResult{0, fault} : write_some(file_, rest);
    rest.remove_prefix(result.written);
    if (result.error == 0) continue;
    const bool full = result.error == ENOSPC || result.error == EDQUOT;
    if (!full || std::chrono::steady_clock::now() >= give_up) {
      if (options_.durable) cut_off(file_, before);
      throw write_error(file_, result.error, rest.size());
    }
    if (!stalled_.exchange(true)) {
      spdlog::warn("{}: the disk is full; waiting {} s for room, no rows are admitted until then",
                   file_.name(), options_.full_disk_patience.count() / 1000);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
  stalled_ = false;
  fault_point("commit-sync");
  if (options_.durable) sync_data(file_);
  fault_point("commit-done");
}

void JournalWriter::work() {
  name_this_thread("journal");
  std::unique_lock lock(mutex_);
  while (true) {
    const auto due = [this] {
      return stop_ || commit_now_ || pending_rows_ >= options_.group_rows ||
             pending_.size() >= kMaxPendingBytes;
    };
    if (pending_rows_ == 0) {
      changed_.wait(lock, [this] { return stop_ || pending_rows_ > 0; });
    }
    if (!due()) changed_.wait_until(lock, oldest_ + options_.group_time, due);
    if (pending_rows_ == 0) {
      if (stop_) return;
      continue;
    }
    const std::string group = std::move(pending_);
    pending_.clear();
    pending_rows_ = 0;
    commit_now_ = false;
    const int64_t target = appended_;
    lock.unlock();
    try {
      write_group(group);
    } catch (...) {
      lock.lock();
      failure_ = std::current_exception();
      changed_.notify_all();
      return;
    }
    lock.lock();
    committed_ = target;
    changed_.notify_all();
  }
}

void JournalWriter::append_line(std::string line) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return failure_ || pending_.size() < kMaxPendingBytes; });
  if (failure_) std::rethrow_exception(failure_);
  if (pending_rows_ == 0) oldest_ = std::chrono::steady_clock::now();
  pending_ += line;
  ++pending_rows_;
  ++appended_;
  if (pending_rows_ == 1 || pending_rows_ >= options_.group_rows) changed_.notify_all();
}

void JournalWriter::append(RecordKind kind, int64_t row, uint64_t key, std::string_view payload,
                           TokenCounts tokens) {
  append_line(journal_line(kind, row, key, payload, tokens));
}

bool JournalWriter::stalled() const {
  const std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
  return stalled_;
}

void JournalWriter::commit() {
  std::unique_lock lock(mutex_);
  const int64_t target = appended_;
  commit_now_ = committed_ < target;
  changed_.notify_all();
  changed_.wait(lock, [&] { return failure_ || committed_ >= target; });
  if (failure_) std::rethrow_exception(failure_);
}

File JournalWriter::close() {
  commit();
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
  return std::move(file_);
}

JournalContents read_journal(const File& file) {
  std::vector<JournalRecord> records;
  JournalContents contents = scan_journal(
      file, [&](const JournalRecord& record, std::string_view) { records.push_back(record); });
  contents.records = std::move(records);
  return contents;
}

JournalContents scan_journal(
    const File& file,
    const std::function<void(const JournalRecord& record, std::string_view payload)>& visit) {
  JournalContents contents;
  LineReader reader(file, 0, file_bytes(file), kMaxJournalLine);
  Line line;
  while (reader.next(&line)) {
    if (!line.terminated) {
      contents.torn_bytes = line.length;
      break;
    }
    const auto record = parse_line(line);
    if (!record) {
      ++contents.num_damaged;
      spdlog::warn("{}: line {} is damaged and left out; its row counts as not done", file.name(),
                   line.number);
    } else if (record->kind == RecordKind::kHeader) {
      contents.header = line.bytes.substr(kHeadBytes, record->length);
    } else {
      visit(*record, line.bytes.substr(kHeadBytes, record->length));
    }
  }
  return contents;
}

}  // namespace mpinfer::io
