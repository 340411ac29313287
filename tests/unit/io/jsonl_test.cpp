// Lines of a file: line ends, blank lines, caps and pieces.
#include "lib/io/jsonl.h"

#include <random>
#include <string>
#include <vector>

#include "lib/core/error.h"
#include "tests/support/catch.h"
#include "tests/unit/io/temporary_directory.h"

namespace {

using namespace mpinfer;
using namespace mpinfer::io;
using tests::TemporaryDirectory;
using tests::write_text;

struct Seen {
  std::string bytes;
  int64_t number = 0;
  int64_t offset = 0;
  bool too_long = false;
  bool terminated = true;
};

std::vector<Seen> lines_of(const File& file, int64_t begin, int64_t end,
                           int64_t cap = kMaxLineBytes) {
  std::vector<Seen> seen;
  LineReader reader(file, begin, end, cap);
  Line line;
  while (reader.next(&line)) {
    seen.push_back(
        {std::string(line.bytes), line.number, line.offset, line.too_long, line.terminated});
  }
  return seen;
}

std::vector<Seen> lines_of_text(const std::string& text, int64_t cap = kMaxLineBytes) {
  const TemporaryDirectory directory;
  const File file = open_input(write_text(directory / "in", text));
  return lines_of(file, 0, file_bytes(file), cap);
}

}  // namespace

TEST_CASE("an empty file, and one of blank lines, have no rows") {
  CHECK(lines_of_text("").empty());
  CHECK(lines_of_text("\n\r\n  \t \n\n").empty());
  CHECK(lines_of_text("\xef\xbb\xbf").empty());
  CHECK(lines_of_text("\xef\xbb").size() == 1);
}

TEST_CASE("line ends, byte-order mark and blank lines keep line numbers and offsets right") {
  const auto lines = lines_of_text("\xef\xbb\xbf{1}\r\n\n {2} \n\r\n{3}");
  REQUIRE(lines.size() == 3);
  CHECK(lines[0].bytes == "{1}");
  CHECK(lines[0].offset == 3);
  CHECK(lines[0].number == 1);
  CHECK(lines[1].bytes == " {2} ");
  CHECK(lines[1].number == 3);
  CHECK(lines[2].bytes == "{3}");
  CHECK(lines[2].number == 5);
  CHECK_FALSE(lines[2].terminated);
}

TEST_CASE("a byte-order mark inside the file and NUL bytes are data") {
  const auto lines = lines_of_text(std::string("a\n\xef\xbb\xbf") + '\0' + "b\n");
  REQUIRE(lines.size() == 2);
  CHECK(lines[1].bytes == std::string("\xef\xbb\xbf") + '\0' + "b");
}

TEST_CASE("a line over the cap is reported and the next one is read") {
  const std::string huge(3 << 20, 'x');
  for (const std::string end : {"\n", "\r\n", ""}) {
    const auto lines = lines_of_text("a\n" + huge + end + (end.empty() ? "" : "b\n"), 100);
    REQUIRE(lines.size() == (end.empty() ? 2 : 3));
    CHECK(lines[1].too_long);
    CHECK(lines[1].bytes == huge.substr(0, lines[1].bytes.size()));
    CHECK(lines[1].bytes.size() <= 4096);
    if (!end.empty()) {
      CHECK(lines[2].bytes == "b");
      CHECK(lines[2].number == 3);
      CHECK_FALSE(lines[2].too_long);
    }
  }
}

TEST_CASE("the cap counts the line without its end") {
  for (const std::string end : {"\n", "\r\n", ""}) {
    CHECK_FALSE(lines_of_text(std::string(100, 'x') + end, 100).at(0).too_long);
    CHECK(lines_of_text(std::string(101, 'x') + end, 100).at(0).too_long);
    CHECK(lines_of_text(std::string(5000, 'x') + end, 4999).at(0).too_long);
  }
}

TEST_CASE("a too long line of blanks is no blank line") {
  CHECK(lines_of_text(std::string(5000, ' ') + "\n", 100).size() == 1);
}

TEST_CASE("pieces of any size give the lines of the whole") {
  std::mt19937 random(7);
  for (int round = 0; round < 40; ++round) {
    std::string text;
    for (int i = 0; i < 30; ++i) {
      text += std::string(random() % 9, static_cast<char>('a' + i % 26));
      text += random() % 4 == 0 ? "\r\n" : "\n";
    }
    if (random() % 2 == 0) text += "tail";
    const TemporaryDirectory directory;
    const File file = open_input(write_text(directory / "in", text));
    const auto whole = lines_of(file, 0, file_bytes(file), 6);
    const int64_t piece = 1 + static_cast<int64_t>(random() % 50);
    std::vector<Seen> joined;
    int64_t num_lines = 0;
    for (int64_t begin = 0; begin < file_bytes(file); begin += piece) {
      LineReader reader(file, begin, std::min(begin + piece, file_bytes(file)), 6);
      Line line;
      while (reader.next(&line)) {
        joined.push_back({std::string(line.bytes), line.number + num_lines, line.offset,
                          line.too_long, line.terminated});
      }
      num_lines += reader.num_lines();
    }
    REQUIRE(joined.size() == whole.size());
    for (size_t i = 0; i < whole.size(); ++i) {
      CHECK(joined[i].bytes == whole[i].bytes);
      CHECK(joined[i].offset == whole[i].offset);
      CHECK(joined[i].number == whole[i].number);
    }
  }
}

TEST_CASE("what is no regular file is refused with exit code 4") {
  const TemporaryDirectory directory;
  REQUIRE(::system(("mkfifo " + (directory / "fifo")).c_str()) == 0);
  for (const std::string& path : {directory / "missing", directory.path().string(),
                                  directory / "fifo", std::string("/dev/null")}) {
    try {
      open_input(path);
      FAIL("opened " << path);
    } catch (const Error& error) {
      CHECK(error.exit_code() == ExitCode::kInputUnreadable);
      CHECK(std::string(error.what()).find(path) != std::string::npos);
    }
  }
}
