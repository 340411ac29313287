// From the leaders' journals to the one ordered output: a file, standard output, or the text alone
// of a single prompt.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "lib/comm/mpi.h"
#include "lib/io/file.h"
#include "lib/io/gather.h"

namespace mpinfer::job {

struct OutputOptions {
  std::string path;  // "-": standard output; empty: the answer's text on standard output
  std::string errors_path = {};  // of error rows that are marked as separate; empty: there are none
  int64_t first_row = 0;
  int64_t num_rows = 0;
  bool locked = false;                  // no other job writes this output
  std::function<void()> on_round = {};  // before every round of the gather
};

// Collective over the leaders; rank 0 writes and gets the bytes it wrote to a file. Throws
// Error(kOutOfResource), Error(kInternal) for a missing row.
int64_t write_output(const comm::HostComm& leaders, std::span<const io::File> journals,
                     std::vector<io::StoredResult> results, const OutputOptions& options);

// The same on one process for the results there are, rows without one left out; how many lines.
int64_t write_partial_output(std::span<const io::File> journals,
                             std::vector<io::StoredResult> results, const OutputOptions& options);

}  // namespace mpinfer::job
