// Journals of earlier attempts, dealt to leaders at another rank count: every row once, errors
// again only when asked, other runs' journals left alone, begun rows given back.
#include "lib/job/earlier_results.h"

#include <filesystem>
#include <set>

#include "lib/core/log.h"
#include "lib/io/run_record.h"
#include "tests/support/catch.h"
#include "tests/unit/io/temporary_directory.h"

using namespace mpinfer;
using namespace mpinfer::job;
using tests::write_text;

namespace {

constexpr uint64_t kFingerprint = 99;
constexpr int64_t kFirst = 10;

io::InputIndex sample_index(int64_t num_rows) {
  io::InputIndex index;
  index.first_row = kFirst;
  for (int64_t i = 0; i < num_rows; ++i) {
    io::Row row{.index = kFirst + i, .entry = {}};
    row.entry.hash = static_cast<uint64_t>(i) * 1000003U;
    index.rows.push_back(row);
  }
  return index;
}

std::string line(io::RecordKind kind, int64_t row, const std::string& payload,
                 uint64_t fingerprint = kFingerprint) {
  const uint64_t key = record_key(static_cast<uint64_t>(row - kFirst) * 1000003U, fingerprint);
  return io::journal_line(kind, row, key, payload, {2, 3});
}

std::string header(const std::string& run, int number) {
  return io::journal_line(io::RecordKind::kHeader, 0, 0,
                          fmt::format("{{\"run\": \"{}\", \"nonce\": \"n{}\"}}", run, number));
}

// Rows kFirst + 0…39. Attempt 1: answers of even rows, an error at 5 and 7. Attempt 2: 7 answered,
// 0 again, 9 with a wrong key, 11 begun twice, 12 begun but done, a torn tail. Another run: 13.
void write_journals(const std::string& directory) {
  std::string first = header("ours", 1);
  for (int64_t i = 0; i < 40; i += 2) {
    first += line(io::RecordKind::kAnswer, kFirst + i, fmt::format("answer {}", i));
  }
  first += line(io::RecordKind::kError, kFirst + 5, R"({"error": {"code": "kv_oom"}})");
  first += line(io::RecordKind::kError, kFirst + 7, R"({"error": {"code": "kv_oom"}})");
  first += line(io::RecordKind::kAnswer, kFirst + 400, "beyond the rows");
  write_text(directory + "/" + io::journal_name(1, 0), first);
  std::string second = header("ours", 2);
  second += line(io::RecordKind::kAnswer, kFirst + 7, "answer 7");
  second += line(io::RecordKind::kAnswer, kFirst, "answer 0 again");
  second += line(io::RecordKind::kAnswer, kFirst + 9, "of other sampling", 98);
  second += line(io::RecordKind::kPartial, kFirst + 11, "[1,2,3]");
  second += line(io::RecordKind::kPartial, kFirst + 11, "[1,2,3,4]");
  second += line(io::RecordKind::kPartial, kFirst + 12, "[5]");
  second += line(io::RecordKind::kAnswer, kFirst + 15, "torn").substr(0, 30);
  write_text(directory + "/" + io::journal_name(2, 1), second);
  write_text(directory + "/" + io::journal_name(2, 0),
             header("theirs", 3) + line(io::RecordKind::kAnswer, kFirst + 13, "theirs"));
  write_text(directory + "/" + io::journal_name(2, 2), "");
  write_text(directory + "/" + io::journal_name(3, 0),
             header("ours", 4) + line(io::RecordKind::kAnswer, kFirst + 17, "this attempt's"));
}

std::string payload_of(const EarlierResults& earlier, const io::StoredResult& result) {
  std::string payload(result.length, '\0');
  io::read_at(earlier.journals[result.journal], payload.data(), result.length, result.offset);
  return payload;
}

}  // namespace

TEST_CASE("every row of the earlier attempts once, at any rank count") {
  spdlog::set_level(spdlog::level::off);
  const comm::HostComm world = comm::HostComm::world();
  const bool root = world.rank() == 0;
  std::unique_ptr<tests::TemporaryDirectory> owned;
  std::string directory;
  if (root) {
    owned = std::make_unique<tests::TemporaryDirectory>();
    directory = owned->path().string();
    write_journals(directory);
  }
  world.broadcast(directory, 0);
  const io::InputIndex index = sample_index(40);
  for (const bool retry : {false, true}) {
    for (const int64_t window : {1, 7, 1000}) {
      const EarlierResults earlier = read_earlier_results(world,
                                                          {.directory = directory,
                                                           .run_id = "ours",
                                                           .attempt = 3,
                                                           .first_row = kFirst,
                                                           .num_rows = 40,
                                                           .fingerprint = kFingerprint,
                                                           .retry_errors = retry,
                                                           .window_rows = window},
                                                          root ? &index : nullptr);
      std::string mine;
      for (const io::StoredResult& result : earlier.results) {
        mine += fmt::format("{}={};", result.row - kFirst, payload_of(earlier, result));
      }
      std::string all;
      for (const std::string& part : world.all_gather(mine)) all += part;
      std::set<std::string> results;
      for (size_t at = 0; at < all.size(); at = all.find(';', at) + 1) {
        CHECK(results.insert(all.substr(at, all.find(';', at) - at)).second);
      }
      std::set<std::string> expected = {"0=answer 0 again", "7=answer 7"};
      for (int i = 2; i < 40; i += 2) expected.insert(fmt::format("{}=answer {}", i, i));
      if (!retry) expected.insert(R"(5={"error": {"code": "kv_oom"}})");
      CHECK(results == expected);
      CHECK(earlier.num_done == static_cast<int64_t>(expected.size()));
      CHECK(earlier.num_journals == 2);
      CHECK(world.all_reduce_sum(earlier.counts.num_answered) == 21);
      CHECK(world.all_reduce_sum(earlier.counts.completion_tokens) == 63);
      if (!root) continue;
      CHECK(std::count(earlier.done.begin(), earlier.done.end(), true) == earlier.num_done);
      CHECK(earlier.unfinished == UnfinishedRows{{kFirst + 11, {1, 2, 3, 4}}});
    }
  }
  world.barrier();
}

TEST_CASE("a first attempt looks for nothing") {
  const comm::HostComm world = comm::HostComm::world();
  const EarlierResults earlier =
      read_earlier_results(world, {.directory = "/nowhere", .num_rows = 3}, nullptr);
  CHECK(earlier.num_done == 0);
  CHECK(earlier.done.size() == (world.rank() == 0 ? 3U : 0U));
}
