// ResultWriter: completions and refused rows become output lines in the journal, a row's once all
// its samples are there. Text is detokenised and formatted by a thread of its own, away from the
// engine's loop; what that thread meets is thrown by the next call.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>

#include "lib/core/request.h"
#include "lib/engine/engine.h"
#include "lib/io/exchange.h"
#include "lib/io/journal.h"
#include "lib/job/result_format.h"
#include "lib/text/tokenizer.h"

namespace mpinfer::job {

struct ResultCounts {
  int64_t num_answered = 0;
  int64_t num_failed = 0;
  int64_t prompt_tokens = 0;              // of answered rows
  int64_t completion_tokens = 0;          // likewise
  int64_t cached_tokens = 0;              // prompt tokens, over all samples, that were not computed
  std::map<std::string, int64_t> errors;  // by code
};

// The key of a row's records: of its line and of everything else its answer depends on.
uint64_t record_key(uint64_t line_hash, uint64_t fingerprint);

class ResultWriter : public engine::CompletionSink {
 public:
  struct Options {
    FormatOptions format = {};
    uint64_t request_fingerprint =
        0;  // of everything but the line: the other half of a journal key
  };

  // tokenizer may be null. Everything is borrowed.
  ResultWriter(const Options& options, const text::Tokenizer* tokenizer,
               const io::InputLines& input, io::JournalWriter& journal);
  ~ResultWriter() override;

  // The engine has taken this request; finished() will come for each of its samples. Main thread.
  void admitted(const io::Row& row, const Request& request);
  void finished(Completion completion) override;
  // The engine gives up or goes on with a sequence that has these tokens so far.
  void unfinished(int64_t index, const std::vector<int32_t>& token_ids) override;
  bool wants_unfinished() override { return std::exchange(wants_unfinished_, false); }
  // At the engine's next turn, the tokens of every running sequence go to the journal. Main thread.
  void keep_unfinished() { wants_unfinished_ = true; }
  // A row without an answer; any thread.
  void refused(const io::Row& row, std::string_view line, const RowError& error);
  // Waits until every line is in the journal.
  void drain();
  // The same, for a while; any thread.
  void drain_for(std::chrono::milliseconds patience);

  ResultCounts counts() const;

 private:
  struct Pending {
    io::Row row;
    int64_t num_prompt_tokens = 0;
    SamplingParams sampling;
    std::vector<Completion> completions;  // n of them, by sample, once all have come
    int32_t num_missing = 0;
  };

  void work();
  void write(const Pending& pending);
  std::string text_of(const SamplingParams& sampling, const Completion& completion) const;
  uint64_t key_of(const io::Row& row) const {
    return record_key(row.entry.hash, options_.request_fingerprint);
  }
  void rethrow();

  Options options_;
  const text::Tokenizer* tokenizer_;
  const io::InputLines& input_;
  io::JournalWriter& journal_;
  std::unordered_map<int64_t, Pending> running_;  // by index; main thread only
  bool wants_unfinished_ = false;                 // likewise

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Pending> queue_;
  bool busy_ = false;
  bool stop_ = false;
  std::exception_ptr failure_;
  ResultCounts counts_;
  std::thread thread_;
};

}  // namespace mpinfer::job
