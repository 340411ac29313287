// Results in journals to one reader in row order: of one process, or of all leaders by rounds of
// MPI_Gatherv. Memory is bounded by a window of rows and a round of bytes. A round's results lie
// near each other in a journal or are spread all over it, by the order in which rows were done;
// they are read in the journal's order, neighbours by one read.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/comm/mpi.h"
#include "lib/io/file.h"

namespace mpinfer::io {

struct StoredResult {
  int64_t row = 0;
  int64_t offset = 0;  // in a journal of the leader
  uint32_t length = 0;
  uint32_t journal = 0;  // which of its journals
};

// The payloads of some results, one behind the other. Keeps its buffers: a fresh one a round costs
// more in page faults than the copies.
class PayloadReader {
 public:
  explicit PayloadReader(std::span<const File> journals) : journals_(journals) {}
  // In the order of results; valid until the next call. Throws Error(kOutOfResource) where a
  // journal is shorter than it was.
  std::string_view read(std::span<const StoredResult> results);

 private:
  struct Piece {
    const StoredResult* result;
    size_t place;  // in payloads_
  };
  void read_neighbours(std::span<const Piece> pieces);

  std::span<const File> journals_;
  std::vector<Piece> pieces_;
  std::string payloads_;  // both only grow
  std::string neighbours_;
};

struct GatherOptions {
  int64_t first_row = 0;
  int64_t num_rows = 0;
  int64_t window_rows = 1 << 14;
  // Below 2³¹; one row may exceed it. Larger ones were not faster.
  int64_t round_bytes = int64_t{4} << 20;
  std::function<void()> on_round = {};  // before every round
};

// Calls write on rank 0 with the result of every row of [first_row, first_row + num_rows), in
// order. Throws Error(kInternal) on rank 0 when a row is missing or comes twice.
void gather_results(const comm::HostComm& leaders, std::span<const File> journals,
                    std::vector<StoredResult> results, const GatherOptions& options,
                    const std::function<void(std::string_view)>& write);

// The same on one process for the results there are, rows without one left out.
void visit_results(std::span<const File> journals, std::vector<StoredResult> results,
                   const std::function<void(std::string_view)>& visit);

}  // namespace mpinfer::io
