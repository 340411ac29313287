// The journal under every cut and every changed byte, and its writer on a full disk.
#include "lib/io/journal.h"

#include <fcntl.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "tests/support/catch.h"
#include "tests/unit/io/temporary_directory.h"

using namespace mpinfer;
using namespace mpinfer::io;
using tests::read_text;
using tests::TemporaryDirectory;
using tests::write_text;

namespace {

const std::vector<std::string> kPayloads = {R"({"index": 0, "output": "a b"})", "",
                                            "with \t tab and \r return", std::string("nul \0!", 6)};

std::string sample_journal() {
  std::string text = journal_line(RecordKind::kHeader, 0, 0, "{\"schema\": 1}");
  for (size_t i = 0; i < kPayloads.size(); ++i) {
    text += journal_line(i % 2 == 0 ? RecordKind::kAnswer : RecordKind::kError,
                         static_cast<int64_t>(i * 1000), 0xabcdef0123456789ULL + i, kPayloads[i]);
  }
  return text;
}

struct Loaded {
  JournalContents contents;
  std::vector<std::string> payloads;
};

Loaded load(const std::string& text) {
  spdlog::set_level(spdlog::level::off);  // a warning for each damaged line
  const TemporaryDirectory directory;
  const File file = open_input(write_text(directory / "journal", text));
  Loaded loaded{read_journal(file), {}};
  for (const JournalRecord& record : loaded.contents.records) {
    std::string payload(record.length, '\0');
    REQUIRE(read_at(file, payload.data(), record.length, record.offset) == record.length);
    loaded.payloads.push_back(payload);
  }
  return loaded;
}

// Every record that was read is one that was written.
void check_no_invention(const Loaded& loaded) {
  for (size_t i = 0; i < loaded.payloads.size(); ++i) {
    const JournalRecord& record = loaded.contents.records[i];
    const auto n = static_cast<size_t>(record.row / 1000);
    REQUIRE(n < kPayloads.size());
    CHECK(loaded.payloads[i] == kPayloads[n]);
    CHECK(record.key == 0xabcdef0123456789ULL + n);
  }
}

}  // namespace

TEST_CASE("what is written is read") {
  const Loaded loaded = load(sample_journal());
  CHECK(loaded.contents.header == "{\"schema\": 1}");
  CHECK(loaded.payloads == kPayloads);
  CHECK(loaded.contents.records[1].kind == RecordKind::kError);
  CHECK(loaded.contents.torn_bytes == 0);
  CHECK(loaded.contents.num_damaged == 0);
  check_no_invention(loaded);
}

TEST_CASE("the line format is final") {
  CHECK(journal_line(RecordKind::kAnswer, 258, 0xfeedULL, "{}", {3, 256}) ==
        "A 0000000000000102 000000000000feed 00000003 00000100 00000002 {} dbb6ecbaf6c6e8f5\n");
}

TEST_CASE("cut at every byte: the whole lines before the cut, nothing else") {
  const std::string text = sample_journal();
  for (size_t cut = 0; cut < text.size(); ++cut) {
    const Loaded loaded = load(text.substr(0, cut));
    const auto whole = static_cast<size_t>(
        std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(cut), '\n'));
    CHECK(loaded.payloads.size() == (whole == 0 ? 0 : whole - 1));
    CHECK(loaded.contents.num_damaged == 0);
    check_no_invention(loaded);
  }
}

TEST_CASE("any changed byte costs at most the two lines it touches") {
  const std::string text = sample_journal();
  for (size_t at = 0; at < text.size(); ++at) {
    for (const char changed : {'0', '\n', '\xff'}) {
      if (text[at] == changed) continue;
      std::string damaged = text;
      damaged[at] = changed;
      const Loaded loaded = load(damaged);
      CHECK(loaded.payloads.size() + 2 >= kPayloads.size());
      CHECK((loaded.contents.num_damaged > 0 || loaded.contents.torn_bytes > 0));
      check_no_invention(loaded);
    }
  }
}

TEST_CASE("a tail of zeros, as a crash may leave it, is dropped") {
  const Loaded loaded = load(sample_journal() + std::string(5000, '\0'));
  CHECK(loaded.payloads == kPayloads);
  CHECK(loaded.contents.torn_bytes == 5000);
}

TEST_CASE("a newline in a payload is a programming error") {
  CHECK_THROWS_AS(journal_line(RecordKind::kAnswer, 0, 0, "a\nb"), Error);
}

TEST_CASE("the writer commits on demand, by rows and by time") {
  const TemporaryDirectory directory;
  const std::string path = directory / "journal";
  const JournalWriter::Options options{.group_rows = 3,
                                       .group_time = std::chrono::milliseconds(20)};
  JournalWriter writer(create_exclusive(path), options, "head");
  writer.append(RecordKind::kAnswer, 1, 2, "one");
  writer.commit();
  CHECK(read_text(path).find("one") != std::string::npos);
  for (int64_t row = 2; row < 500; ++row) writer.append(RecordKind::kAnswer, row, 2, "more");
  const File file = writer.close();
  const JournalContents contents = read_journal(file);
  CHECK(contents.header == "head");
  REQUIRE(contents.records.size() == 499);
  for (size_t i = 0; i < contents.records.size(); ++i) {
    CHECK(contents.records[i].row == static_cast<int64_t>(i + 1));
  }
}

TEST_CASE("a journal is never opened twice for writing") {
  const TemporaryDirectory directory;
  const File first = create_exclusive(directory / "journal");
  CHECK_THROWS_AS(create_exclusive(directory / "journal"), Error);
}

TEST_CASE("a full disk reaches the caller as exit code 6, on every later call") {
  File full(::open("/dev/full", O_WRONLY), "/dev/full");
  JournalWriter writer(std::move(full), {}, "head");
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      writer.append(RecordKind::kAnswer, 1, 2, "one");
      writer.commit();
      FAIL("wrote to a full disk");
    } catch (const Error& error) {
      CHECK(error.exit_code() == ExitCode::kOutOfResource);
      CHECK(std::string(error.what()).find("/dev/full") != std::string::npos);
    }
  }
}

TEST_CASE("a disk that stays full ends the run, although no row is admitted any more") {
  spdlog::set_level(spdlog::level::off);
  JournalWriter writer(open_to_write("/dev/full", 0),
                       {.group_time = std::chrono::milliseconds(1),
                        .full_disk_patience = std::chrono::milliseconds(400)},
                       "head");
  bool stalled = false;
  std::string said;
  for (int i = 0; i < 2000 && said.empty(); ++i) {
    try {
      stalled = writer.stalled() || stalled;
    } catch (const Error& error) {
      CHECK(error.exit_code() == ExitCode::kOutOfResource);
      said = error.what();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  CHECK(stalled);
  CHECK(said.find("No space left") != std::string::npos);
}
