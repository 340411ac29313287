// Who may have the run directory: live holders, dead ones, other machines, requeued jobs.
#include "lib/io/run_lock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "lib/core/error.h"
#include "tests/support/catch.h"
#include "tests/unit/io/temporary_directory.h"

using namespace mpinfer;
using namespace mpinfer::io;
using tests::read_text;
using tests::TemporaryDirectory;
using tests::write_text;

namespace {

// Empty: the lock was given.
std::string refusal(const std::string& directory, const LockOptions& options = {}) {
  try {
    const RunLock lock(directory, options);
  } catch (const Error& error) {
    CHECK(error.exit_code() == ExitCode::kUsage);
    return error.what();
  }
  return "";
}

// A lock file with some members changed and its time set back.
void leave_lock(const std::string& directory, const nlohmann::json& changes, int seconds_ago) {
  nlohmann::json json;
  {
    const RunLock lock(directory, {});
    json = nlohmann::json::parse(read_text(directory + "/lock"));
  }
  json.update(changes);
  write_text(directory + "/lock", json.dump());
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  now.tv_sec -= seconds_ago;
  const timespec times[2] = {now, now};
  REQUIRE(::utimensat(AT_FDCWD, (directory + "/lock").c_str(), times, 0) == 0);
}

}  // namespace

TEST_CASE("one holder at a time, named to the next; given back at the end") {
  const TemporaryDirectory directory;
  const std::string path = directory / "deep/out.run";
  {
    const RunLock lock(path, {.job = "77"});
    const std::string what = refusal(path);
    CHECK(what.find("in use by process " + std::to_string(::getpid())) != std::string::npos);
    CHECK(what.find("job 77") != std::string::npos);
    lock.check();
  }
  CHECK_FALSE(read_lock(path).has_value());
  CHECK(refusal(path).empty());
}

TEST_CASE("the lock of a dead process is taken over, and of a pid that is somebody else's") {
  const TemporaryDirectory directory;
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  leave_lock(directory / "a", {{"pid", child}}, 0);
  CHECK(refusal(directory / "a").empty());
  leave_lock(directory / "b", {{"pid_start", 1}}, 0);
  CHECK(refusal(directory / "b").empty());
}

TEST_CASE("another machine's lock holds for its lease, and a dead job's restart takes it at once") {
  const TemporaryDirectory directory;
  const nlohmann::json elsewhere = {{"machine", "far"}, {"host", "far-1"}, {"job", "5"}};
  leave_lock(directory / "a", elsewhere, 1);
  CHECK(refusal(directory / "a").find("far-1") != std::string::npos);
  CHECK(refusal(directory / "a", {.job = "5"}).find("far-1") != std::string::npos);
  CHECK(refusal(directory / "a", {.job = "6", .restart_count = 1}).find("far-1") !=
        std::string::npos);
  CHECK(refusal(directory / "a", {.job = "5", .restart_count = 1}).empty());
  leave_lock(directory / "b", elsewhere, 3600);
  CHECK(refusal(directory / "b").empty());
}

TEST_CASE("a lock that says nothing useful has no holder") {
  const TemporaryDirectory directory;
  for (const char* text : {"", "{", "[]", "{}", "{\"pid\": \"x\"}", "\xff\xfe"}) {
    write_text(directory / "lock", text);
    CHECK(refusal(directory.path().string()).empty());
  }
}

TEST_CASE("who loses the lock stops and leaves the new one alone") {
  const TemporaryDirectory directory;
  const std::string path = directory.path().string();
  auto lock = std::make_unique<RunLock>(path, LockOptions{.renew = std::chrono::milliseconds(5)});
  nlohmann::json other = nlohmann::json::parse(read_text(path + "/lock"));
  other["nonce"] = "other";
  write_text(path + "/lock", other.dump());
  const auto lost = [&] {
    try {
      lock->check();
      return false;
    } catch (const Error& error) {
      return error.exit_code() == ExitCode::kPeerFailure;
    }
  };
  for (int turn = 0; turn < 2000 && !lost(); ++turn) ::usleep(1000);
  CHECK(lost());
  lock.reset();
  REQUIRE(read_lock(path).has_value());
  CHECK(read_lock(path)->nonce == "other");
}
