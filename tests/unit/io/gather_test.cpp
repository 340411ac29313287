// Reading results out of journals: neighbours together, others apart, in any order.
#include "lib/io/gather.h"

#include <algorithm>
#include <random>
#include <string>

#include "lib/core/error.h"
#include "lib/io/journal.h"
#include "tests/support/catch.h"
#include "tests/unit/io/temporary_directory.h"

using namespace mpinfer;
using namespace mpinfer::io;
using tests::TemporaryDirectory;
using tests::write_text;

namespace {

// From a few bytes to more than is read at once.
std::string payload_of(int64_t row) {
  const auto length = static_cast<size_t>(row % 10 == 3  ? 300'000
                                          : row % 3 == 1 ? 9'000
                                                         : row % 50);
  return "row " + std::to_string(row) + std::string(length, static_cast<char>('a' + row % 26));
}

// Rows number, number + 2, … in an order of their own.
File write_journal(uint32_t number, std::vector<StoredResult>* results) {
  std::vector<int64_t> rows;
  for (int64_t row = number; row < 120; row += 2) rows.push_back(row);
  std::shuffle(rows.begin(), rows.end(), std::mt19937(number));
  JournalWriter writer(make_anonymous_file(), {}, "head");
  for (const int64_t row : rows) writer.append(RecordKind::kAnswer, row, 0, payload_of(row));
  File file = writer.close();
  for (const JournalRecord& record : read_journal(file).records) {
    results->push_back({record.row, record.offset, record.length, number});
  }
  return file;
}

}  // namespace

TEST_CASE("payloads come in the order asked for, whatever lies between them") {
  std::vector<StoredResult> results;
  std::vector<File> journals;
  for (const uint32_t number : {0U, 1U}) journals.push_back(write_journal(number, &results));
  PayloadReader reader(journals);
  CHECK(reader.read({}).empty());
  std::mt19937 generator(5);
  for (const size_t count : {1U, 2U, 30U, 120U}) {
    std::shuffle(results.begin(), results.end(), generator);
    std::string expected;
    for (size_t i = 0; i < count; ++i) expected += payload_of(results[i].row);
    CHECK(reader.read(std::span(results).first(count)) == expected);
  }
  std::shuffle(results.begin(), results.end(), generator);
  results.resize(90);
  std::vector<int64_t> rows;
  for (const StoredResult& result : results) rows.push_back(result.row);
  std::sort(rows.begin(), rows.end());
  size_t next = 0;
  visit_results(journals, results, [&](std::string_view payload) {
    REQUIRE(next < rows.size());
    CHECK(payload == payload_of(rows[next++]));
  });
  CHECK(next == rows.size());
}

TEST_CASE("a journal that became shorter is an error, not a shorter answer") {
  const TemporaryDirectory directory;
  const File file = open_input(write_text(directory / "journal", "0123456789"));
  PayloadReader reader({&file, 1});
  const std::vector<StoredResult> results = {{.row = 3, .offset = 2, .length = 4},
                                             {.row = 4, .offset = 7, .length = 9}};
  CHECK(reader.read(std::span(results).first(1)) == "2345");
  CHECK_THROWS_AS(reader.read(results), Error);
}
