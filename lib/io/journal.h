// The journal: append-only, one file per replica leader and start. A line is
//   <kind> <row> <key> <prompt tokens> <completion tokens> <length> <payload> <checksum>\n
// kind: H header, A answer, E error row, P tokens of an unfinished row; row and key: 16 hexadecimal
// digits; token counts and length (bytes of the payload): 8 digits; checksum: XXH3 of every byte of
// the line before it. key is the hash of the input line and of the request's fingerprint. A payload
// has no newline. A reader drops an unterminated last line and skips, with a warning, any other
// line that does not check.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "lib/io/file.h"

namespace mpinfer::io {

enum class RecordKind : char { kHeader = 'H', kAnswer = 'A', kError = 'E', kPartial = 'P' };

struct TokenCounts {
  uint32_t prompt = 0;
  uint32_t completion = 0;
};

std::string journal_line(RecordKind kind, int64_t row, uint64_t key, std::string_view payload,
                         TokenCounts tokens = {});

// Appends in commit groups: one write and one fdatasync by a thread of its own. append and commit
// may be called from several threads; both rethrow what that thread met: Error(kOutOfResource).
class JournalWriter {
 public:
  struct Options {
    int64_t group_rows = 256;
    std::chrono::milliseconds group_time{1000};
    bool durable = true;  // false: no fdatasync, for files that need not outlive the run
    std::chrono::milliseconds full_disk_patience{20000};  // before a full disk ends the run
  };

  JournalWriter(File file, const Options& options, std::string_view header);
  ~JournalWriter();  // commits what it can; call close() to know
  JournalWriter(const JournalWriter&) = delete;
  JournalWriter& operator=(const JournalWriter&) = delete;

  // Waits while more than 8 MiB are uncommitted.
  void append(RecordKind kind, int64_t row, uint64_t key, std::string_view payload,
              TokenCounts tokens = {});
  // The disk is full and the thread is trying again: admit no more. Throws what ended that thread:
  // while no row is admitted nobody appends, who would learn of it.
  bool stalled() const;
  // Returns when everything appended so far is durable.
  void commit();
  // Commits, stops the thread and hands the file back for reading.
  File close();

 private:
  void work();
  void append_line(std::string line);
  void write_group(std::string_view group);

  File file_;
  Options options_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::string pending_;
  int64_t pending_rows_ = 0;
  int64_t appended_ = 0;
  int64_t committed_ = 0;
  std::chrono::steady_clock::time_point oldest_;
  bool commit_now_ = false;
  bool stop_ = false;
  std::atomic<bool> stalled_ = false;
  std::exception_ptr failure_;
  std::thread thread_;
};

struct JournalRecord {
  int64_t row = 0;
  uint64_t key = 0;
  int64_t offset = 0;  // of the payload
  uint32_t length = 0;
  TokenCounts tokens;
  RecordKind kind = RecordKind::kAnswer;
};

struct JournalContents {
  std::string header;                  // payload of the first line; empty if that is damaged
  std::vector<JournalRecord> records;  // in file order
  int64_t torn_bytes = 0;              // of an unterminated last line
  int64_t num_damaged = 0;             // other lines that do not check
};

// Reads and checks a whole journal; payloads stay in the file.
JournalContents read_journal(const File& file);
// The same without keeping the records: visit gets each with its payload.
JournalContents scan_journal(
    const File& file,
    const std::function<void(const JournalRecord& record, std::string_view payload)>& visit);

}  // namespace mpinfer::io
