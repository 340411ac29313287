#include "lib/io/gather.h"

#include <algorithm>
#include <cstring>

#include "lib/core/error.h"
#include "lib/core/fault_point.h"

namespace mpinfer::io {
namespace {

// A gap that costs less to read than another call, and what is read at once at most.
constexpr int64_t kGapBytes = int64_t{4} << 10;
constexpr int64_t kReadBytes = int64_t{256} << 10;

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <class T>
std::vector<T> values_of(const std::string& bytes) {
  MPINFER_CHECK(bytes.size() % sizeof(T) == 0, "{} bytes are no whole records", bytes.size());
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

void grow(std::string* buffer, size_t bytes) {
  if (buffer->size() < bytes) buffer->resize(bytes);
}

void sort_by_row(std::vector<StoredResult>* results) {
  std::sort(results->begin(), results->end(),
            [](const StoredResult& a, const StoredResult& b) { return a.row < b.row; });
}

// Lengths of a window's results, one owner a row; rounds cut so that each stays within round_bytes.
struct Window {
  std::vector<int32_t> owner;
  std::vector<uint32_t> length;
  std::vector<int64_t> cuts;  // row offsets in the window: round i is [cuts[i], cuts[i + 1])
};

struct RowLength {
  uint32_t row = 0;  // within the window
  uint32_t length = 0;
};

Window plan_window(const std::vector<std::string>& lengths_by_rank, int64_t first_row,
                   int64_t num_rows, int64_t round_bytes) {
  Window window;
  window.owner.assign(static_cast<size_t>(num_rows), -1);
  window.length.assign(static_cast<size_t>(num_rows), 0);
  for (size_t rank = 0; rank < lengths_by_rank.size(); ++rank) {
    for (const RowLength& entry : values_of<RowLength>(lengths_by_rank[rank])) {
      MPINFER_CHECK(entry.row < static_cast<uint64_t>(num_rows), "row out of its window");
      MPINFER_CHECK(window.owner[entry.row] < 0, "row {} has two results, of replicas {} and {}",
                    first_row + entry.row, window.owner[entry.row], rank);
      window.owner[entry.row] = static_cast<int32_t>(rank);
      window.length[entry.row] = entry.length;
    }
  }
  int64_t bytes = 0;
  window.cuts.push_back(0);
  for (int64_t row = 0; row < num_rows; ++row) {
    MPINFER_CHECK(window.owner[static_cast<size_t>(row)] >= 0, "row {} has no result",
                  first_row + row);
    const int64_t length = window.length[static_cast<size_t>(row)];
    if (bytes + length > round_bytes && row > window.cuts.back()) {
      window.cuts.push_back(row);
      bytes = 0;
    }
    bytes += length;
  }
  window.cuts.push_back(num_rows);
  return window;
}

// [rounds, ranks] bytes, flat.
std::vector<int64_t> bytes_by_round(const Window& window, int num_ranks) {
  const size_t rounds = window.cuts.size() - 1;
  std::vector<int64_t> bytes(rounds * static_cast<size_t>(num_ranks), 0);
  for (size_t round = 0; round < rounds; ++round) {
    for (int64_t row = window.cuts[round]; row < window.cuts[round + 1]; ++row) {
      const auto r = static_cast<size_t>(row);
      bytes[round * static_cast<size_t>(num_ranks) + static_cast<size_t>(window.owner[r])] +=
          window.length[r];
    }
  }
  return bytes;
}

// Writes a round's rows in order from the pieces of the ranks, which are in row order each.
void write_round(const Window& window, size_t round, std::span<const int64_t> bytes_by_rank,
                 std::string_view gathered, const std::function<void(std::string_view)>& write) {
  std::vector<size_t> at(bytes_by_rank.size(), 0);
  size_t sum = 0;
  for (size_t rank = 0; rank < bytes_by_rank.size(); ++rank) {
    at[rank] = sum;
    sum += static_cast<size_t>(bytes_by_rank[rank]);
  }
  MPINFER_CHECK(sum == gathered.size(), "{} bytes gathered, {} announced", gathered.size(), sum);
  for (int64_t row = window.cuts[round]; row < window.cuts[round + 1]; ++row) {
    size_t& from = at[static_cast<size_t>(window.owner[static_cast<size_t>(row)])];
    const uint32_t length = window.length[static_cast<size_t>(row)];
    write(gathered.substr(from, length));
    from += length;
  }
}

}  // namespace

void PayloadReader::read_neighbours(std::span<const Piece> pieces) {
  const StoredResult& first = *pieces.front().result;
  const StoredResult& last = *pieces.back().result;
  const File& journal = journals_[first.journal];
  const int64_t bytes = last.offset + last.length - first.offset;
  char* to = payloads_.data() + pieces.front().place;
  if (pieces.size() > 1) {
    grow(&neighbours_, static_cast<size_t>(bytes));
    to = neighbours_.data();
  }
  const int64_t count = read_at(journal, to, bytes, first.offset);
  if (count != bytes) {
    throw Error(ExitCode::kOutOfResource,
                fmt::format("{}: cut off at {} bytes, the results of rows {} to {} end at {}",
                            journal.name(), first.offset + count, first.row, last.row,
                            first.offset + bytes));
  }
  for (size_t i = 0; pieces.size() > 1 && i < pieces.size(); ++i) {
    const StoredResult& result = *pieces[i].result;
    std::memcpy(payloads_.data() + pieces[i].place, to + (result.offset - first.offset),
                result.length);
  }
}

std::string_view PayloadReader::read(std::span<const StoredResult> results) {
  size_t bytes = 0;
  pieces_.clear();
  for (const StoredResult& result : results) {
    pieces_.push_back({&result, bytes});
    bytes += result.length;
  }
  grow(&payloads_, bytes);
  std::sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) {
    return a.result->journal != b.result->journal ? a.result->journal < b.result->journal
                                                  : a.result->offset < b.result->offset;
  });
  for (size_t begin = 0; begin < pieces_.size();) {
    const StoredResult& first = *pieces_[begin].result;
    int64_t end_offset = first.offset + first.length;
    size_t end = begin + 1;
    for (; end < pieces_.size(); ++end) {
      const StoredResult& next = *pieces_[end].result;
      if (next.journal != first.journal || next.offset - end_offset > kGapBytes ||
          next.offset + next.length - first.offset > kReadBytes) {
        break;
      }
      end_offset = next.offset + next.length;
    }
    read_neighbours(std::span(pieces_).subspan(begin, end - begin));
    begin = end;
  }
  return std::string_view(payloads_).substr(0, bytes);
}

void gather_results(const comm::HostComm& leaders, std::span<const File> journals,
                    std::vector<StoredResult> results, const GatherOptions& options,
                    const std::function<void(std::string_view)>& write) {
  const bool root = leaders.rank() == 0;
  const auto num_ranks = static_cast<size_t>(leaders.size());
  sort_by_row(&results);
  PayloadReader reader(journals);
  std::string buffer;
  size_t next = 0;
  const int64_t end = options.first_row + options.num_rows;
  for (int64_t begin = options.first_row; begin < end; begin += options.window_rows) {
    const int64_t window_end = std::min(end, begin + options.window_rows);
    if (options.on_round) options.on_round();
    std::vector<RowLength> lengths;
    for (size_t i = next; i < results.size() && results[i].row < window_end; ++i) {
      lengths.push_back(
          {.row = checked_cast<uint32_t>(results[i].row - begin), .length = results[i].length});
    }
    const auto lengths_by_rank = leaders.gather(bytes_of(lengths), 0);
    Window window;
    if (root) {
      window = plan_window(lengths_by_rank, begin, window_end - begin, options.round_bytes);
    }
    std::string cuts = bytes_of(window.cuts);
    std::string table = root ? bytes_of(bytes_by_round(window, leaders.size())) : std::string();
    leaders.broadcast(cuts, 0);
    leaders.broadcast(table, 0);
    window.cuts = values_of<int64_t>(cuts);
    const auto bytes_table = values_of<int64_t>(table);
    for (size_t round = 0; round + 1 < window.cuts.size(); ++round) {
      const size_t first = next;
      while (next < results.size() && results[next].row < begin + window.cuts[round + 1]) ++next;
      const std::string_view mine = reader.read(std::span(results).subspan(first, next - first));
      const std::vector<int64_t> by_rank(
          bytes_table.begin() + static_cast<std::ptrdiff_t>(round * num_ranks),
          bytes_table.begin() + static_cast<std::ptrdiff_t>((round + 1) * num_ranks));
      fault_point("gather");
      if (options.on_round) options.on_round();
      const std::string_view gathered = leaders.gather_v(mine, by_rank, 0, &buffer);
      if (root) write_round(window, round, by_rank, gathered, write);
    }
  }
  MPINFER_CHECK(next == results.size(), "{} results lie outside the rows that were asked for",
                results.size() - next);
}

void visit_results(std::span<const File> journals, std::vector<StoredResult> results,
                   const std::function<void(std::string_view)>& visit) {
  sort_by_row(&results);
  PayloadReader reader(journals);
  const int64_t round_bytes = GatherOptions().round_bytes;
  for (size_t begin = 0; begin < results.size();) {
    int64_t bytes = 0;
    size_t end = begin;
    while (end < results.size() && (end == begin || bytes + results[end].length <= round_bytes)) {
      bytes += results[end++].length;
    }
    std::string_view payloads = reader.read(std::span(results).subspan(begin, end - begin));
    for (; begin < end; ++begin) {
      visit(payloads.substr(0, results[begin].length));
      payloads.remove_prefix(results[begin].length);
    }
  }
}

}  // namespace mpinfer::io
