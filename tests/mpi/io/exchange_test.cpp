// Rows out and results back over real ranks, with windows and rounds of a few bytes.
#include "lib/io/exchange.h"

#include <algorithm>
#include <random>
#include <set>

#include "lib/core/error.h"
#include "lib/io/gather.h"
#include "lib/io/journal.h"
#include "tests/support/catch.h"
#include "tests/unit/io/temporary_directory.h"

using namespace mpinfer;
using namespace mpinfer::io;
using tests::TemporaryDirectory;
using tests::write_text;

namespace {

InputIndex sample_index(int64_t num_rows) {
  InputIndex index;
  index.first_row = 100;
  for (int64_t i = 0; i < num_rows; ++i) {
    Row row{.index = 100 + i, .entry = {}};
    row.entry.offset = static_cast<uint32_t>(i * 10);
    row.entry.prompt_tokens = static_cast<uint8_t>(i * 7919 % 101);
    index.rows.push_back(row);
  }
  return index;
}

std::string payload_of(int64_t row) {
  return "row " + std::to_string(row) + std::string(static_cast<size_t>(row * 31 % 97), 'x');
}

// This rank's journal: its rows (row mod size = rank), in an order of its own.
File write_journal(const comm::HostComm& world, int64_t first_row, int64_t num_rows) {
  std::vector<int64_t> mine;
  for (int64_t row = first_row; row < first_row + num_rows; ++row) {
    if (row % world.size() == world.rank()) mine.push_back(row);
  }
  std::shuffle(mine.begin(), mine.end(), std::mt19937(static_cast<unsigned>(world.rank())));
  JournalWriter writer(make_anonymous_file(), {}, "head");
  for (const int64_t row : mine) writer.append(RecordKind::kAnswer, row, 0, payload_of(row));
  return writer.close();
}

std::vector<StoredResult> results_of(const File& journal) {
  std::vector<StoredResult> results;
  for (const JournalRecord& record : read_journal(journal).records) {
    results.push_back({record.row, record.offset, record.length});
  }
  return results;
}

}  // namespace

TEST_CASE("every leader gets its rows, in order, in windows of any size") {
  const comm::HostComm world = comm::HostComm::world();
  for (const int64_t num_rows : {0, 1, 3, 50}) {
    Rows all = sample_index(num_rows).rows;
    const auto owner = deal_balanced(&all, world.size());
    for (const int64_t window : {1, 7, 1000}) {
      const auto rows = scatter_rows(world, world.rank() == 0 ? all : Rows(), owner, window);
      int64_t expected = 0;
      for (const int32_t replica : owner) expected += replica == world.rank() ? 1 : 0;
      CHECK(static_cast<int64_t>(rows.size()) == expected);
      for (size_t i = 0; i < rows.size(); ++i) {
        CHECK(static_cast<int64_t>(rows[i].entry.offset) == (rows[i].index - 100) * 10);
        const auto place = std::find_if(all.begin(), all.end(),
                                        [&](const Row& row) { return row.index == rows[i].index; });
        CHECK(owner[static_cast<size_t>(place - all.begin())] == world.rank());
      }
      CHECK(world.all_reduce_sum(static_cast<int64_t>(rows.size())) == num_rows);
    }
  }
}

TEST_CASE("blocks are the same everywhere") {
  const comm::HostComm world = comm::HostComm::world();
  Rows expected = sample_index(70).rows;
  const std::vector<int64_t> expected_starts = guided_blocks(&expected, world.size());
  const bool root = world.rank() == 0;
  Rows rows = root ? expected : Rows();
  std::vector<int64_t> starts = root ? expected_starts : std::vector<int64_t>();
  broadcast_blocks(world, &rows, &starts);
  CHECK(starts == expected_starts);
  REQUIRE(rows.size() == 70);
  for (size_t i = 0; i < rows.size(); ++i) CHECK(rows[i].index == expected[i].index);
}

TEST_CASE("blocks taken from the counter cover every row once") {
  const comm::HostComm world = comm::HostComm::world();
  Rows rows = sample_index(300).rows;
  const auto num_blocks = static_cast<int64_t>(guided_blocks(&rows, world.size()).size()) - 1;
  std::string mine;
  {
    comm::SharedCounter counter(world, 0);
    for (int64_t block = world.rank(); block < num_blocks;
         block = world.size() + counter.fetch_and_add(1)) {
      mine += std::to_string(block) + " ";
    }
    world.barrier();
  }
  std::set<std::string> seen;
  int64_t count = 0;
  for (const std::string& list : world.all_gather(mine)) {
    size_t begin = 0;
    for (size_t end = list.find(' '); end != std::string::npos; end = list.find(' ', begin)) {
      seen.insert(list.substr(begin, end - begin));
      ++count;
      begin = end + 1;
    }
  }
  CHECK(count == num_blocks);
  CHECK(static_cast<int64_t>(seen.size()) == num_blocks);
}

TEST_CASE("results come back in order through rounds of any size") {
  const comm::HostComm world = comm::HostComm::world();
  for (const int64_t num_rows : {0, 1, 5, 200}) {
    const File journal = write_journal(world, 40, num_rows);
    for (const int64_t window : {1, 3, 1000}) {
      for (const int64_t bytes : {1, 64, 1000000}) {
        int64_t next = 40;
        gather_results(
            world, {&journal, 1}, results_of(journal),
            {.first_row = 40, .num_rows = num_rows, .window_rows = window, .round_bytes = bytes},
            [&](std::string_view line) { CHECK(line == payload_of(next++)); });
        CHECK(next == (world.rank() == 0 ? 40 + num_rows : 40));
      }
    }
  }
}

TEST_CASE("a missing and a doubled row are noticed on rank 0") {
  const comm::HostComm world;
  const File journal = write_journal(world, 0, 10);
  const GatherOptions options{.first_row = 0, .num_rows = 10};
  const auto write = [](std::string_view) {};
  auto results = results_of(journal);
  results.push_back(results.front());
  CHECK_THROWS_AS(gather_results(world, {&journal, 1}, results, options, write), Error);
  results.pop_back();
  results.pop_back();
  CHECK_THROWS_AS(gather_results(world, {&journal, 1}, results, options, write), Error);
}

TEST_CASE("a leader that does not see the input gets its lines from rank 0") {
  const comm::HostComm world = comm::HostComm::world();
  const TemporaryDirectory directory;
  std::string text;
  for (int i = 0; i < 40; ++i) {
    text += "{\"n\":" + std::to_string(i) + "}" + std::string(static_cast<size_t>(i), ' ') + "\r\n";
  }
  const std::string path = write_text(directory / "in", text);
  const InputIndex index = build_index({.files = {path}});
  std::vector<int32_t> owner = deal_contiguous(40, world.size());
  for (const int64_t round_bytes : {1, 50, 100000}) {
    const bool root = world.rank() == 0;
    auto rows = scatter_rows(world, root ? index.rows : Rows(), owner);
    const bool can_read = world.rank() % 2 == 0;
    const InputLines lines(world, {can_read ? path : std::string("/nowhere")}, index.file_bytes,
                           &rows, round_bytes, can_read);
    CHECK(lines.copied() == !can_read);
    for (const Row& row : rows) {
      const auto n = static_cast<size_t>(row.index);
      CHECK(lines.read(row.entry) == "{\"n\":" + std::to_string(n) + "}" + std::string(n, ' '));
    }
  }
}

TEST_CASE("an input of another size on one rank is refused") {
  const comm::HostComm alone;
  const TemporaryDirectory directory;
  const std::string path = write_text(directory / "in", "{}\n");
  Rows rows;
  CHECK_THROWS_AS(InputLines(alone, {path}, {4}, &rows), Error);
}

TEST_CASE("progress reports arrive, the last one always; a stop reaches everybody") {
  const comm::HostComm world = comm::HostComm::world();
  ProgressExchange progress(world);
  for (int64_t i = 0; i < 20; ++i) progress.post({.num_rows = 20, .num_answered = i});
  progress.post_last({.num_rows = 20, .num_answered = 20 + world.rank()});
  if (world.rank() == 0) {
    while (!progress.all_finished()) progress.collect();
    for (int rank = 0; rank < world.size(); ++rank) {
      CHECK(progress.replicas()[static_cast<size_t>(rank)].num_answered == 20 + rank);
    }
    CHECK(progress.stop_requested() == 0);
    progress.request_stop(1);
    progress.request_stop(2);
  }
  while (progress.stop_requested() < 2) {
  }
  CHECK(progress.stop_requested() == 2);
  world.barrier();
}
