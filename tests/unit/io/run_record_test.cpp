// What a start makes of a run directory: a new run, a resumed one, nothing to do, or a refusal that
// names the first difference.
#include "lib/io/run_record.h"

#include <filesystem>

#include "lib/core/error.h"
#include "lib/io/file.h"
#include "tests/support/catch.h"
#include "tests/unit/io/temporary_directory.h"

using namespace mpinfer;
using namespace mpinfer::io;
using tests::TemporaryDirectory;
using tests::write_text;

namespace {

struct Place {
  TemporaryDirectory directory;
  std::string input = write_text(directory / "in.jsonl", "{\"a\": 1}\n{\"a\": 2}\n{\"a\": 3}\n");
  std::string output = directory / "out.jsonl";
  std::string run_dir = directory / "out.jsonl.run";
  std::map<std::string, std::string> identity = {{"model", "m"}, {"temperature", "0.5"}};
  ResumePolicy policy = {.overwrite_command = "mpinfer run --overwrite"};

  Manifest manifest(const InputIndex& index) const {
    Manifest now;
    now.identity = identity;
    now.num_rows = static_cast<int64_t>(index.rows.size());
    now.input_hash = std::to_string(index.hash);
    now.output = output;
    return now;
  }
  // Starts and ends as told; what the start was.
  Opening start(const std::string& state = "", int exit_code = 0) const {
    const InputIndex index = build_index({.files = {input}});
    RunRecord record(run_dir, output, policy, {});
    const Opening opening = record.open(manifest(index), index, {.start = utc_now()});
    if (opening.kind == StartKind::kAlreadyComplete) return opening;
    create_exclusive(run_dir + "/" + journal_name(opening.attempt, 0));
    if (state == "complete") {
      write_text(output, "answers\n");
      record.change([](Manifest& m) { m.output_bytes = 8; });
    }
    if (!state.empty()) record.close(state, exit_code, "test");
    return opening;
  }
  std::string refusal() const {
    try {
      start();
    } catch (const Error& error) {
      CHECK(error.exit_code() == ExitCode::kUsage);
      return error.what();
    }
    return "";
  }
};

bool has(const std::string& text, const char* part) {
  INFO(text);
  CHECK(text.find(part) != std::string::npos);
  return true;
}

}  // namespace

TEST_CASE("begin, resume after a kill, complete, nothing to do") {
  Place place;
  CHECK(place.start().kind == StartKind::kFresh);
  const Opening second = place.start();
  CHECK(second.kind == StartKind::kResumed);
  CHECK(second.attempt == 2);
  CHECK(place.start("complete", 3).attempt == 3);
  const Opening again = place.start();
  CHECK(again.kind == StartKind::kAlreadyComplete);
  CHECK(again.exit_code == 3);
  const auto manifest = read_manifest(place.run_dir + "/manifest.json");
  REQUIRE(manifest->attempts.size() == 3);
  CHECK(manifest->attempts[2].exit_code == 3);
  CHECK(manifest->attempts[0].exit_code == -1);
}

TEST_CASE("a complete run whose output is gone is written again, a changed one is refused") {
  Place place;
  place.start("complete", 0);
  std::filesystem::remove(place.output);
  CHECK(place.start().kind == StartKind::kResumed);
  place.start("complete", 0);
  write_text(place.output, "edited by hand\n");
  has(place.refusal(), "has 15 bytes, the run wrote 8");
}

TEST_CASE("the first difference is named") {
  Place place;
  place.start();
  place.identity["temperature"] = "0.7";
  has(place.refusal(), "temperature was 0.5, is 0.7");
  has(place.refusal(), "mpinfer run --overwrite");
  place.identity.erase("temperature");
  has(place.refusal(), "temperature was 0.5, is nothing");
  place.identity = {{"model", "m"}, {"temperature", "0.5"}, {"top_k", "5"}};
  has(place.refusal(), "top_k was nothing, is 5");
  place.identity.erase("top_k");
  write_text(place.input, "{\"a\": 1}\n{\"a\": 9}\n{\"a\": 3}\n");
  has(place.refusal(), "in.jsonl:2");
  write_text(place.input, "{\"a\": 1}\n{\"a\": 2}\n");
  has(place.refusal(), "the input had 3 rows, has 2");
  has(place.refusal(), "the last 1 rows are gone");
  std::filesystem::remove(place.run_dir + "/rows");
  has(place.refusal(), "the input had 3 rows, has 2");
  write_text(place.input, "{\"a\": 1}\n{\"a\": 2}\n{\"a\": 3}\n");
  CHECK(place.refusal().empty());
}

TEST_CASE("policies") {
  Place place;
  place.policy.mode = ResumeMode::kRequire;
  has(place.refusal(), "--resume require");
  CHECK_FALSE(std::filesystem::exists(place.run_dir));
  place.policy.mode = ResumeMode::kAuto;
  write_text(place.output, "not ours\n");
  has(place.refusal(), "exists (9 bytes)");
  std::filesystem::remove(place.output);
  place.start("stopped", 75);
  place.policy.mode = ResumeMode::kNever;
  has(place.refusal(), "--resume never");
  place.policy.mode = ResumeMode::kRequire;
  CHECK(place.start("stopped", 75).attempt == 2);
  place.policy.overwrite = true;
  CHECK(place.start().kind == StartKind::kFresh);
  CHECK(list_directory(place.run_dir, kJournalPrefix).size() == 1);
  write_text(place.run_dir + "/manifest.json", "{");
  CHECK(place.start().kind == StartKind::kFresh);
  place.policy.overwrite = false;
  write_text(place.run_dir + "/manifest.json", "{");
  has(place.refusal(), "to start again");
}

TEST_CASE("failed rows are run again when asked") {
  Place place;
  const InputIndex index = build_index({.files = {place.input}});
  {
    RunRecord record(place.run_dir, place.output, place.policy, {});
    record.open(place.manifest(index), index, {});
    write_text(place.output, "answers\n");
    record.change([](Manifest& m) {
      m.output_bytes = 8;
      m.num_failed = 1;
    });
    record.close("complete", 3, "");
  }
  CHECK(place.start().kind == StartKind::kAlreadyComplete);
  place.policy.retry_errors = true;
  CHECK(place.start().kind == StartKind::kResumed);
}

TEST_CASE("a rank's verdict outweighs rank 0's last words") {
  Place place;
  const InputIndex index = build_index({.files = {place.input}});
  RunRecord record(place.run_dir, place.output, place.policy, {});
  record.open(place.manifest(index), index, {});
  CHECK_FALSE(read_verdict(place.run_dir, 1).has_value());
  leave_verdict(place.run_dir, 1, 3, {7, "rank 3 is silent"});
  leave_verdict(place.run_dir, 2, 3, {6, "another attempt's"});
  record.close("stopped", 75, "TERM");
  CHECK(record.manifest().state == "failed");
  CHECK(record.manifest().exit_code == 7);
  write_text(place.run_dir + "/verdict-0003-r00000.json", "{");
  CHECK_FALSE(read_verdict(place.run_dir, 3).has_value());
}

TEST_CASE("names sort like attempts") {
  CHECK(journal_name(1, 0) == "journal-0001-r00000.log");
  CHECK(journal_name(2, 0) > journal_name(1, 99999));
}
