// EarlierResults: what the journals of earlier attempts hold. Leaders share the journals they see,
// wherever their directories are; rank 0 settles that every row has one result. Rows that were
// begun and not finished give their tokens back.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "lib/comm/mpi.h"
#include "lib/io/gather.h"
#include "lib/io/index.h"
#include "lib/io/journal.h"
#include "lib/job/result_writer.h"

namespace mpinfer::job {

// Tokens of rows that were begun, by row.
using UnfinishedRows = std::map<int64_t, std::vector<int32_t>>;

// The payload of a partial record and back; nothing for bytes that are no payload.
std::string format_partial(const std::vector<int32_t>& token_ids);
std::vector<int32_t> parse_partial(std::string_view payload);

struct EarlierOptions {
  std::string directory = {};  // empty: nothing is looked for
  std::string run_id = {};     // journals of another run are left alone
  int attempt = 1;             // journals of this and later attempts are left alone
  int64_t first_row = 0;
  int64_t num_rows = 0;
  uint64_t fingerprint = 0;  // of requests; 0: keys are not checked
  bool retry_errors = false;
  int64_t window_rows = 1 << 16;
};

struct EarlierResults {
  std::vector<io::File> journals;         // of this leader's results
  std::vector<io::StoredResult> results;  // sorted by row; journal: place in journals
  ResultCounts counts;                    // of these results
  std::vector<bool> done;                 // rank 0: by row − first_row
  UnfinishedRows unfinished;              // rank 0: of rows that are not done
  int64_t num_done = 0;                   // of all leaders, everywhere
  int64_t num_journals = 0;               // likewise
};

// Collective over leaders. index: rank 0's, of all rows.
EarlierResults read_earlier_results(const comm::HostComm& leaders, const EarlierOptions& options,
                                    const io::InputIndex* index);

}  // namespace mpinfer::job
