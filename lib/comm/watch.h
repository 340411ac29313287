// Watch: no wait without a deadline. A wait arms it with a label; one thread looks at the clock and
// calls no MPI. At the deadline it marks the wait as expired, so that the main thread's next
// check() throws Error(kPeerFailure) and main can flush and abort; if the main thread does not come
// back within a short grace (it hangs inside a library), the thread writes one line and ends the
// process with exit code 7.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "lib/comm/heartbeat.h"

namespace mpinfer::comm {

struct WatchOptions {
  double first_seconds = 600.0;  // before the first step: start and load
  double step_seconds = 60.0;    // --step-timeout
  double grace_seconds = 5.0;
  int rank = 0;
  std::string host;
  // Called with the report before the process is ended from the watch's thread.
  std::function<void(const std::string&)> last_words = {};
  Heartbeat* heartbeat = nullptr;  // borrowed; polled by check()
};

class Watch {
 public:
  explicit Watch(const WatchOptions& options);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // Armed until it goes. Nested arming keeps the outer deadline. label must outlive it (a literal).
  class Armed {
   public:
    explicit Armed(Watch* watch) : watch_(watch) {}
    ~Armed();
    Armed(const Armed&) = delete;
    Armed& operator=(const Armed&) = delete;

   private:
    Watch* watch_;
  };
  [[nodiscard]] Armed arm(const char* label, int64_t step);
  // Throws Error(kPeerFailure) naming rank, host, label, step and seconds once the deadline has
  // passed.
  void check();
  // From now on the shorter deadline of a step holds.
  void first_step_done();
  // The end of the run: the last words of a rank may take long (one file, one fsync).
  void ending();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace mpinfer::comm
