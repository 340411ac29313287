// From the leaders' journals to the one ordered output: a file, standard output, or the text alone
// of a single prompt.
#pragma once

#include <cstdint>
#include <string>

#include "lib/comm/mpi.h"
#include "lib/io/file.h"

namespace mpinfer::job {

struct OutputOptions {
  std::string path;  // "-": standard output; empty: the answer's text on standard output
  std::string errors_path = {};  // of error rows that are marked as separate; empty: there are none
  int64_t first_row = 0;
  int64_t num_rows = 0;
};

// Collective over the leaders; rank 0 writes. Throws Error(kOutOfResource), Error(kInternal) for a
// missing row.
void write_output(const comm::HostComm& leaders, const io::File& journal,
                  const OutputOptions& options);

}  // namespace mpinfer::job
