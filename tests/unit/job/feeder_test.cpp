// The feeder's order and bounds, and the results of good and bad rows in the journal.
#include "lib/job/feeder.h"

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "lib/core/error.h"
#include "lib/io/index.h"
#include "lib/job/error_budget.h"
#include "tests/support/catch.h"
#include "tests/unit/io/temporary_directory.h"
#include "tests/unit/job/byte_tokenizer.h"

using namespace mpinfer;
using namespace mpinfer::job;
using tests::TemporaryDirectory;
using tests::write_text;

namespace {

struct Road {
  explicit Road(const std::string& text, FeederOptions feeder_options = {}, int64_t block = 0)
      : path(write_text(directory / "in.jsonl", text)) {
    const io::InputIndex index = io::build_index({.files = {path}});
    rows = index.rows;
    lines = std::make_unique<io::InputLines>(comm::HostComm(), std::vector<std::string>{path},
                                             index.file_bytes, &rows);
    journal = std::make_unique<io::JournalWriter>(io::make_anonymous_file(),
                                                  io::JournalWriter::Options{}, "head");
    results =
        std::make_unique<ResultWriter>(ResultWriter::Options{}, tokenizer.get(), *lines, *journal);
    builder = std::make_unique<RequestBuilder>(
        BuilderOptions{.max_model_len = 64, .vocab_size = 259}, tokenizer.get());
    const int64_t step = block > 0 ? block : static_cast<int64_t>(rows.size());
    feeder = std::make_unique<Feeder>(
        feeder_options, rows,
        [this, step]() -> NextRange {
          const auto end = static_cast<int64_t>(rows.size());
          if (next_begin >= end) return {.range = {}, .closed = true};
          const RowRange range{next_begin, std::min(end, next_begin + step)};
          next_begin = range.end;
          return {.range = range};
        },
        *lines, *builder, *results, FeederCallbacks{.on_turn = [] { return false; }});
  }

  std::vector<Request> pull_all(int32_t limit) {
    std::vector<Request> requests;
    while (true) {
      auto pull = feeder->pull(limit);
      CHECK(static_cast<int32_t>(pull.requests.size()) <= limit);
      for (Request& request : pull.requests) requests.push_back(std::move(request));
      if (!pull.more_to_come) return requests;
      if (pull.requests.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  TemporaryDirectory directory;
  std::string path;
  std::unique_ptr<text::Tokenizer> tokenizer = tests::byte_tokenizer();
  io::Rows rows;
  int64_t next_begin = 0;
  std::unique_ptr<io::InputLines> lines;
  std::unique_ptr<io::JournalWriter> journal;
  std::unique_ptr<RequestBuilder> builder;
  std::unique_ptr<ResultWriter> results;
  std::unique_ptr<Feeder> feeder;
};

std::string sample(int rows) {
  std::string text;
  for (int i = 0; i < rows; ++i) {
    text += i % 5 == 3
                ? "not json\n"
                : "{\"id\":" + std::to_string(i) + ",\"prompt\":\"p" + std::to_string(i) + "\"}\n";
  }
  return text;
}

}  // namespace

TEST_CASE(
    "requests come in order, bad rows go to the results, with any threads, bounds and blocks") {
  for (const int threads : {1, 2, 4}) {
    for (const int64_t ready : {2, 7, 1000}) {
      for (const int64_t block : {0, 1, 13}) {
        Road road(sample(200),
                  {.threads = threads, .max_ready_rows = ready, .max_ready_tokens = 20}, block);
        const auto requests = road.pull_all(3);
        REQUIRE(requests.size() == 160);
        for (size_t i = 1; i < requests.size(); ++i)
          CHECK(requests[i].index > requests[i - 1].index);
        CHECK(road.results->counts().num_failed == 40);
        CHECK(road.results->counts().errors.at("invalid_json") == 40);
        CHECK(road.feeder->num_rows() == 200);
      }
    }
  }
}

TEST_CASE("no rows: nothing is to come at once") {
  Road road("");
  const auto pull = road.feeder->pull(10);
  CHECK(pull.requests.empty());
  CHECK_FALSE(pull.more_to_come);
}

TEST_CASE("an input that changes under the run ends it with the line's number") {
  Road road(sample(50), {.threads = 1, .max_ready_rows = 4});
  write_text(road.path, std::string(100000, 'x'));
  try {
    road.pull_all(1);
    FAIL("read a changed input");
  } catch (const Error& error) {
    CHECK(error.exit_code() == ExitCode::kUsage);
  }
}

TEST_CASE("completions become lines of the journal, one a row") {
  Road road(
      "{\"id\":1,\"prompt\":\"ab\"}\n{\"prompt\":\"\"}\n{\"id\":3,\"prompt\":\"c\",\"stop\":\"!\"}"
      "\n");
  const auto requests = road.pull_all(10);
  REQUIRE(requests.size() == 2);
  Completion first;
  first.index = 0;
  first.token_ids = tests::ids_of(*road.tokenizer, "xyz");
  road.results->finished(std::move(first));
  Completion second;
  second.index = 2;
  second.token_ids = tests::ids_of(*road.tokenizer, "wow!");
  second.finish_reason = FinishReason::kStop;
  second.stop_reason = std::string("!");
  road.results->finished(std::move(second));
  road.results->drain();
  const ResultCounts counts = road.results->counts();
  CHECK(counts.num_answered == 2);
  CHECK(counts.num_failed == 1);
  CHECK(counts.prompt_tokens == 3);
  CHECK(counts.completion_tokens == 7);
  const io::File file = road.journal->close();
  const io::JournalContents contents = io::read_journal(file);
  REQUIRE(contents.records.size() == 3);
  for (const io::JournalRecord& record : contents.records) {
    std::string payload(record.length, '\0');
    io::read_at(file, payload.data(), record.length, record.offset);
    const auto json = nlohmann::json::parse(payload);
    CHECK(json.at("index") == record.row);
    if (record.row == 0) CHECK(json.at("output") == "xyz");
    if (record.row == 1) CHECK(json.at("error").at("code") == "empty_prompt");
    if (record.row == 2) {
      CHECK(json.at("output") == "wow");
      CHECK(json.at("stop_reason") == "!");
      CHECK(json.at("id") == 3);
    }
  }
}

TEST_CASE("a completion nobody asked for is a bug, not a row") {
  Road road("{\"prompt\":\"ab\"}\n");
  Completion stray;
  stray.index = 5;
  CHECK_THROWS_AS(road.results->finished(std::move(stray)), Error);
}

TEST_CASE("error budgets and other small option values") {
  CHECK(error_budget("0", "--errors-ok").rows_of(100) == 0);
  CHECK(error_budget("7", "--errors-ok").rows_of(3) == 7);
  CHECK(error_budget("2%", "--errors-ok").rows_of(149) == 2);
  CHECK(error_budget("100%", "--errors-ok").rows_of(7) == 7);
  for (const char* bad : {"", "%", "-1", "1.5", "101%", "x", "5 ", "nan", "1e400"}) {
    INFO(bad);
    CHECK_THROWS_AS(error_budget(bad, "--errors-ok"), Error);
  }
  CHECK(RowParams::kNone == row_params("none"));
  CHECK_THROWS_AS(row_params("some"), Error);
  CHECK_THROWS_AS(too_long("cut"), Error);
}
