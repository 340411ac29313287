// The ordered writer, small files, the manifest and the progress line.
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "lib/core/error.h"
#include "lib/io/manifest.h"
#include "lib/io/ordered_writer.h"
#include "lib/io/progress.h"
#include "tests/support/catch.h"
#include "tests/unit/io/temporary_directory.h"

using namespace mpinfer;
using namespace mpinfer::io;
using tests::read_text;
using tests::TemporaryDirectory;
using tests::write_text;

namespace {

// Files of this process may not grow beyond bytes while it lives: writing more fails with EFBIG.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    old_handler_ = ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit before_{};
  void (*old_handler_)(int) = nullptr;
};

ExitCode refusal(const std::string& path, const std::vector<std::string>& inputs, bool overwrite) {
  try {
    require_writable_output(path, inputs, overwrite);
  } catch (const Error& error) {
    return error.exit_code();
  }
  return ExitCode::kComplete;
}

}  // namespace

TEST_CASE("the output appears whole, or not at all") {
  const TemporaryDirectory directory;
  const std::string path = write_text(directory / "out", "old\n");
  {
    OrderedWriter writer(path);
    writer.write_line("a");
    writer.write_line("");
    CHECK(read_text(path) == "old\n");
    writer.finish();
    CHECK(read_text(path) == "a\n\n");
  }
  { OrderedWriter(path).write_line("given up"); }
  CHECK(read_text(path) == "a\n\n");
  CHECK(directory.num_entries() == 1);
}

TEST_CASE("a symbolic link stays one") {
  const TemporaryDirectory directory;
  const std::string target = write_text(directory / "target", "old\n");
  REQUIRE(::symlink("target", (directory / "link").c_str()) == 0);
  OrderedWriter writer(directory / "link");
  writer.write_line("new");
  writer.finish();
  CHECK(std::filesystem::is_symlink(directory / "link"));
  CHECK(read_text(target) == "new\n");
  CHECK(directory.num_entries() == 2);
}

TEST_CASE("no rows give an empty file") {
  const TemporaryDirectory directory;
  OrderedWriter(directory / "out").finish();
  CHECK(read_text(directory / "out").empty());
  CHECK(std::filesystem::exists(directory / "out"));
}

TEST_CASE("no room: exit code 6, the old file stays and no temporary is left") {
  const TemporaryDirectory directory;
  const std::string path = write_text(directory / "out", "old\n");
  {
    const FileSizeLimit limit(size_t{3} << 20);
    OrderedWriter writer(path);
    const auto write_much = [&] {
      for (int i = 0; i < 5000; ++i) writer.write_line(std::string(1000, 'x'));
      writer.finish();
    };
    try {
      write_much();
      FAIL("wrote beyond the limit");
    } catch (const Error& error) {
      CHECK(error.exit_code() == ExitCode::kOutOfResource);
    }
  }
  CHECK(read_text(path) == "old\n");
  CHECK(directory.num_entries() == 1);
  {
    const FileSizeLimit limit(1000);
    CHECK_THROWS_AS(replace_file(path, std::string(2000, 'x')), Error);
  }
  CHECK(read_text(path) == "old\n");
  CHECK(directory.num_entries() == 1);
}

TEST_CASE("a device is written directly") {
  OrderedWriter writer("/dev/null");
  writer.write_line("a");
  writer.finish();
  OrderedWriter full("/dev/full");
  full.write_line("a");
  CHECK_THROWS_AS(full.finish(), Error);
}

TEST_CASE("outputs that cannot be are refused with exit code 2") {
  const TemporaryDirectory directory;
  const std::string in = write_text(directory / "in", "x");
  const std::string link = directory / "link";
  REQUIRE(::symlink(in.c_str(), link.c_str()) == 0);
  const std::string out = write_text(directory / "out", "x");
  CHECK(refusal(in, {in}, true) == ExitCode::kUsage);
  CHECK(refusal(link, {in}, true) == ExitCode::kUsage);
  CHECK(refusal(directory.path().string(), {in}, true) == ExitCode::kUsage);
  CHECK(refusal(directory / "missing/out", {in}, true) == ExitCode::kUsage);
  CHECK(refusal(out, {in}, false) == ExitCode::kUsage);
  CHECK(refusal(out, {in}, true) == ExitCode::kComplete);
  CHECK(refusal(directory / "new", {in}, false) == ExitCode::kComplete);
  CHECK(refusal("-", {in}, false) == ExitCode::kComplete);
  CHECK(refusal("/dev/null", {in}, false) == ExitCode::kComplete);
}

TEST_CASE("the manifest is read as it was written") {
  const TemporaryDirectory directory;
  const std::string path = directory / "manifest.json";
  CHECK_FALSE(read_manifest(path).has_value());
  Manifest manifest;
  manifest.tool_version = "1.2.3";
  manifest.arguments = {"run", "--model", "a\xff"};
  manifest.identity["model"] = "00ff";
  manifest.num_rows = 12;
  manifest.seconds["load"] = 1.5;
  manifest.state = "complete";
  manifest.attempts.push_back(
      {.start = utc_now(), .hosts = {"h"}, .exit_code = 3, .rows_after = 12});
  write_manifest(path, manifest);
  const auto read = read_manifest(path);
  REQUIRE(read.has_value());
  CHECK(read->arguments.at(2) == "a\xef\xbf\xbd");
  CHECK(read->identity.at("model") == "00ff");
  CHECK(read->num_rows == 12);
  CHECK(read->state == "complete");
  REQUIRE(read->attempts.size() == 1);
  CHECK(read->attempts[0].exit_code == 3);
  CHECK(directory.num_entries() == 1);
}

TEST_CASE("a damaged manifest is exit code 2") {
  const TemporaryDirectory directory;
  for (const char* text : {"", "{", "[]", "{}", "{\"schema\": 99}", "{\"schema\": \"x\"}"}) {
    try {
      read_manifest(write_text(directory / "manifest.json", text));
      FAIL("read " << text);
    } catch (const Error& error) {
      CHECK(error.exit_code() == ExitCode::kUsage);
    }
  }
}

TEST_CASE("numbers and durations of the progress line") {
  CHECK(with_thousands(0) == "0");
  CHECK(with_thousands(999) == "999");
  CHECK(with_thousands(1000) == "1,000");
  CHECK(with_thousands(-1234567) == "-1,234,567");
  CHECK(format_duration(5.2) == "5s");
  CHECK(format_duration(125) == "2m05s");
  CHECK(format_duration(11230) == "3h07m");
}

TEST_CASE("the progress line says what INTERFACE promises") {
  ProgressView view{.num_rows = 1000, .seconds = 10, .tokens_per_second = 50};
  view.replicas = {{.num_rows = 500, .num_answered = 100, .num_waiting = 4, .num_running = 3},
                   {.num_rows = 500, .num_answered = 149, .num_failed = 1}};
  view.replicas[0].kv_blocks_used = 1;
  view.replicas[0].kv_blocks_total = 4;
  view.replicas[0].completion_tokens = 700;
  const std::string line = format_progress(view);
  for (const char* part : {"250/1,000 rows (25.0 %)", "1 failed", "out 50 tok/s (mean 70)",
                           "running 3", "waiting 4", "KV 25 %", "replicas 20–30 %", "ETA 30s"}) {
    INFO(line);
    CHECK(line.find(part) != std::string::npos);
  }
  CHECK(format_progress({}).find("0/0 rows") == 0);
}
