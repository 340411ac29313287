// Feeder: the requests of one replica, in order of admission. Threads read the replica's lines and
// tokenise them ahead of the engine, bounded in rows and tokens; bad rows go straight to the
// results. A static share is known at the start; a dynamic one grows by blocks that the main thread
// takes from a counter.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "lib/engine/engine.h"
#include "lib/io/exchange.h"
#include "lib/job/request_builder.h"
#include "lib/job/result_writer.h"

namespace mpinfer::job {

// Half-open range of positions in the rows given to the feeder.
struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;
};

struct NextRange {
  RowRange range;       // empty: none now
  bool closed = false;  // there will be no more
};

struct FeederOptions {
  int threads = 1;
  int64_t few_rows = 32;               // below this many at hand, more are asked for
  int64_t max_ready_rows = 2048;       // tokenised or being tokenised
  int64_t max_ready_tokens = 1 << 22;  // 16 MiB of ids
};

// Called on the main thread at every turn of the engine; cheap.
struct FeederCallbacks {
  std::function<bool()> on_turn;  // true: no more rows are admitted (asked until then)
  std::function<bool()> cancelled = [] { return false; };  // after that: running rows are given up
  std::function<bool()> stalled = [] { return false; };    // true: admit none now
  // Tokens that an earlier attempt drew for a row.
  std::function<std::vector<int32_t>(int64_t index)> begun = [](int64_t) {
    return std::vector<int32_t>();
  };
};

class Feeder : public engine::RequestSource {
 public:
  // next_range: called on the main thread when few rows are left. Everything is borrowed.
  Feeder(const FeederOptions& options, const io::Rows& rows, std::function<NextRange()> next_range,
         const io::InputLines& input, const RequestBuilder& builder, ResultWriter& results,
         FeederCallbacks callbacks);
  ~Feeder() override;

  Pull pull(int32_t limit) override;
  bool drain_requested() override { return callbacks_.on_turn(); }
  bool cancel_requested() override { return callbacks_.cancelled(); }
  int64_t num_rows() const { return num_rows_; }  // of the ranges so far

 private:
  void take_ranges();
  void work();
  std::optional<Request> prepare(const io::Row& row);

  FeederOptions options_;
  const io::Rows& rows_;
  std::function<NextRange()> next_range_;
  const io::InputLines& input_;
  const RequestBuilder& builder_;
  ResultWriter& results_;
  FeederCallbacks callbacks_;
  int64_t num_rows_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<RowRange> ranges_;
  int64_t untaken_ = 0;        // rows in ranges_
  bool closed_ = false;        // no range will follow
  int64_t next_ticket_ = 0;    // of the row taken next
  int64_t next_delivery_ = 0;  // ticket to hand over next
  int64_t ready_tokens_ = 0;
  struct Ready {
    int64_t position = 0;
    std::optional<Request> request;  // empty: the row was refused
  };
  std::map<int64_t, Ready> ready_;  // by ticket
  bool stop_ = false;
  std::exception_ptr failure_;
  std::vector<std::thread> threads_;
};

}  // namespace mpinfer::job
