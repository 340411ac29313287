// The index: rows, lines, hashes and estimates, whatever the pieces and threads.
#include "lib/io/index.h"

#include <string>
#include <vector>

#include "lib/core/error.h"
#include "tests/support/catch.h"
#include "tests/unit/io/temporary_directory.h"

using namespace mpinfer;
using namespace mpinfer::io;
using tests::TemporaryDirectory;
using tests::write_text;

TEST_CASE("rows of several files, with lines counted in each") {
  const TemporaryDirectory directory;
  const IndexOptions options{.files = {write_text(directory / "a", "{\"prompt\":\"x\"}\n\n{}\n"),
                                       write_text(directory / "b", ""),
                                       write_text(directory / "c", "\n[]\nnot json")}};
  const InputIndex index = build_index(options);
  REQUIRE(index.rows.size() == 4);
  CHECK(index.rows[1].entry.line == 3);
  CHECK(index.rows[2].entry.file == 2);
  CHECK(index.rows[2].entry.line == 2);
  CHECK(index.rows[3].entry.line == 3);
  CHECK(index.rows[3].entry.length == 8);
  CHECK(index.num_lines == 6);
}

TEST_CASE("pieces and threads change nothing") {
  const TemporaryDirectory directory;
  std::string text;
  for (int i = 0; i < 500; ++i) {
    text += "{\"prompt\":\"" + std::string(static_cast<size_t>(i % 37), 'p') +
            "\",\"max_tokens\":" + std::to_string(i) + "}\n" + (i % 7 == 0 ? "\n" : "");
  }
  IndexOptions options{
      .files = {write_text(directory / "a", text), write_text(directory / "b", text)}};
  const InputIndex one = build_index(options);
  for (const int64_t piece_bytes : {1, 17, 1000, 100000}) {
    options.piece_bytes = piece_bytes;
    options.threads = 3;
    const InputIndex other = build_index(options);
    CHECK(other.hash == one.hash);
    CHECK(other.num_lines == one.num_lines);
    REQUIRE(other.rows.size() == one.rows.size());
    for (size_t i = 0; i < one.rows.size(); ++i) {
      CHECK(other.rows[i].entry.offset == one.rows[i].entry.offset);
      CHECK(other.rows[i].entry.line == one.rows[i].entry.line);
      CHECK(other.rows[i].entry.file == one.rows[i].entry.file);
      CHECK(other.rows[i].index == static_cast<int64_t>(i));
    }
  }
}

TEST_CASE("estimates come from the prompt, the ids and max_tokens wherever they stand") {
  const TemporaryDirectory directory;
  const IndexOptions options{
      .files = {write_text(directory / "a",
                           R"({"prompt":"0123456789012345678901234567890123456789"}
{"prompt_token_ids":[1,2,3,4,5,6,7],"max_tokens":9}
{"prompt":"x","sampling_params":{"max_tokens":77}}
{"prompt":"x","max_tokens":"many"}
{"prompt":"x","max_tokens":99999999999999999999}
)")},
      .default_completion_tokens = 100};
  const auto rows = build_index(options).rows;
  CHECK(rows[0].entry.prompt_tokens == 11);
  CHECK(rows[0].entry.completion_tokens == 100);
  CHECK(rows[1].entry.prompt_tokens == 7);
  CHECK(rows[1].entry.completion_tokens == 9);
  CHECK(rows[2].entry.completion_tokens == 77);
  CHECK(rows[3].entry.completion_tokens == 100);
  CHECK(rows[4].entry.completion_tokens == 100);
}

TEST_CASE("skip and limit keep the rows' own indices") {
  const TemporaryDirectory directory;
  std::string text;
  for (int i = 0; i < 100; ++i) text += std::to_string(i) + "\n";
  IndexOptions options{
      .files = {write_text(directory / "a", text)}, .skip = 10, .limit = 5, .piece_bytes = 7};
  const InputIndex some = build_index(options);
  CHECK(some.first_row == 10);
  REQUIRE(some.rows.size() == 5);
  CHECK(some.rows[0].entry.line == 11);
  CHECK(some.rows[0].index == 10);
  CHECK(some.rows[4].index == 14);
  options.skip = 98;
  CHECK(build_index(options).rows.size() == 2);
  options.skip = 1000;
  CHECK(build_index(options).rows.empty());
  options.limit = 0;
  CHECK(build_index(options).rows.empty());
}

TEST_CASE("watched keys are counted") {
  const TemporaryDirectory directory;
  const IndexOptions options{
      .files = {write_text(directory / "a",
                           "{\"max_new_tokens\":1}\n{\"top-p\":1}\n{\"x\":{\"top-p\":1}}\n"
                           "{\"max_new_tokens\":1}\n")},
      .watched_keys = {"max_new_tokens", "top-p"}};
  CHECK(build_index(options).watched_counts == std::vector<int64_t>{2, 1});
}

TEST_CASE("ids that are repeated, missing or numbers are counted over all pieces") {
  const TemporaryDirectory directory;
  IndexOptions options{.files = {write_text(directory / "a",
                                            R"({"id":"q","prompt":"x"}
{"prompt":"x","id":"q"}
{"id":null}
{"x":{"id":"r"}}
{"id":5}
{"custom_id":"r","body":{"id":"q"}}
not an object
)"),
                                 write_text(directory / "b", "{\"id\":5}\n{\"id\":\"q\"}\n")}};
  for (const int64_t piece_bytes : {1, 40, 100000}) {
    options.piece_bytes = piece_bytes;
    const IdCounts ids = build_index(options).ids;
    CHECK(ids.num_ids == 6);
    CHECK(ids.num_repeated == 3);
    CHECK(ids.num_missing == 2);
    CHECK(ids.num_numbers == 2);
  }
}

TEST_CASE("a line that changed after it was indexed is refused with its number") {
  const TemporaryDirectory directory;
  const std::string path = write_text(directory / "a", "{\"a\":1}\n{\"a\":2}\n");
  const InputIndex index = build_index({.files = {path}});
  const File file = open_input(path);
  CHECK(read_row(file, index.rows[1].entry) == "{\"a\":2}");
  for (const char* changed : {"{\"a\":1}\n{\"a\":3}\n", "{\"a\":1}\n{\"a\"", ""}) {
    write_text(path, changed);
    try {
      read_row(open_input(path), index.rows[1].entry);
      FAIL("read a changed line");
    } catch (const Error& error) {
      CHECK(error.exit_code() == ExitCode::kUsage);
      CHECK(std::string(error.what()).find("line 2") != std::string::npos);
    }
  }
}

TEST_CASE("a too long line is a row of its own") {
  const TemporaryDirectory directory;
  const InputIndex index =
      build_index({.files = {write_text(directory / "a", "{}\n" + std::string(9000, 'x') + "\n{}")},
                   .max_line_bytes = 5000});
  REQUIRE(index.rows.size() == 3);
  CHECK(index.rows[1].entry.length == RowEntry::kTooLong);
  CHECK(index.rows[2].entry.line == 3);
}

TEST_CASE(
    "rows whose prompts begin with the same bytes have the same prefix, whatever their form") {
  const TemporaryDirectory directory;
  const std::string head(600, 'h');
  const std::string other(600, 'o');
  const auto path =
      write_text(directory / "in.jsonl",
                 "{\"prompt\":\"" + head + "1\"}\n{\"max_tokens\":3,\"prompt\":\"" + head +
                     "2\"}\n" + "{\"prompt\":\"" + other + "\"}\n{\"prompt\":\"short\"}\n" +
                     "{\"custom_id\":\"a\",\"body\":{\"prompt\":\"" + head +
                     "3\",\"max_completion_tokens\":9}}\n{\"messages\":[\"" + head + "\"]}\n");
  const InputIndex index = build_index({.files = {path}});
  REQUIRE(index.rows.size() == 6);
  CHECK(index.rows[0].entry.prefix != 0);
  CHECK(index.rows[1].entry.prefix == index.rows[0].entry.prefix);
  CHECK(index.rows[2].entry.prefix != index.rows[0].entry.prefix);
  CHECK(index.rows[3].entry.prefix == 0);
  CHECK(index.rows[4].entry.prefix == index.rows[0].entry.prefix);
  CHECK(index.rows[4].entry.completion_tokens == 9);
  CHECK(index.rows[5].entry.prefix != 0);
}
