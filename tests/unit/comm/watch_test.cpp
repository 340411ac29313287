// The deadline: a wait that expires throws on the main thread; a main thread that never comes back
// is ended with exit code 7.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "lib/comm/watch.h"
#include "lib/core/error.h"
#include "tests/support/catch.h"

namespace mpinfer::comm {
namespace {

void sleep_seconds(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

}  // namespace

TEST_CASE("a wait beyond the deadline throws, naming rank, host, wait and step", "[watch]") {
  Watch watch(
      {.first_seconds = 0.2, .step_seconds = 0.2, .grace_seconds = 60, .rank = 3, .host = "node7"});
  const auto armed = watch.arm("all-reduce tp", 42);
  watch.check();
  sleep_seconds(0.6);
  try {
    watch.check();
    FAIL("no error at the deadline");
  } catch (const Error& error) {
    CHECK(error.exit_code() == ExitCode::kPeerFailure);
    const std::string what = error.what();
    CHECK(what.find("rank 3 on node7") != std::string::npos);
    CHECK(what.find("all-reduce tp at step 42") != std::string::npos);
  }
}

TEST_CASE("time without a wait, and a wait that ends, cost nothing", "[watch]") {
  Watch watch(
      {.first_seconds = 0.2, .step_seconds = 0.2, .grace_seconds = 60, .rank = 0, .host = "h"});
  sleep_seconds(0.5);
  watch.check();
  for (int i = 0; i < 4; ++i) {
    const auto armed = watch.arm("short", i);
    sleep_seconds(0.1);
    watch.check();
  }
}

TEST_CASE("the first step may take longer than the others", "[watch]") {
  Watch watch(
      {.first_seconds = 60, .step_seconds = 0.1, .grace_seconds = 60, .rank = 0, .host = "h"});
  {
    const auto armed = watch.arm("load", 0);
    sleep_seconds(0.4);
    watch.check();
  }
  watch.first_step_done();
  const auto armed = watch.arm("step", 1);
  sleep_seconds(0.5);
  CHECK_THROWS_AS(watch.check(), Error);
}

TEST_CASE("a main thread that hangs is ended with exit code 7", "[watch]") {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    Watch watch(
        {.first_seconds = 0.1, .step_seconds = 0.1, .grace_seconds = 0.2, .rank = 1, .host = "h"});
    const auto armed = watch.arm("hang", 5);
    sleep_seconds(30);
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 7);
}

}  // namespace mpinfer::comm
