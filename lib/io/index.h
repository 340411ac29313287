// The index of the input: where every row is, a hash of its bytes and what it may cost. Built on
// rank 0 in parallel over pieces of the files, before any row is parsed; 40 bytes a row, and
// nowhere a second copy: the rows of a million are a promise of memory. The input's identity is the
// hash of the row hashes in order.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "lib/io/file.h"
#include "lib/io/jsonl.h"

namespace mpinfer::io {

struct RowEntry {
  static constexpr uint32_t kTooLong = 0xffffffffU;

  static constexpr uint64_t kMaxTokens = (1U << 24) - 1;
  static constexpr uint64_t kMaxOffset = (uint64_t{1} << 48) - 1;

  uint64_t hash = 0;         // XXH3 of the line (of its first 4 KiB when it is too long)
  uint64_t offset : 48 = 0;  // in its file
  uint64_t file : 16 = 0;
  uint64_t prompt_tokens : 24 = 0;      // estimated
  uint64_t completion_tokens : 24 = 0;  // max_tokens if the row says it, else the default
  uint64_t prefix : 16 = 0;  // of prompts that begin alike the same; 0: too short to share much
  uint32_t line = 0;         // from 1 in its file
  uint32_t length = 0;       // bytes without the line end, or kTooLong
};
static_assert(sizeof(RowEntry) == 32);

// What a row is expected to cost, in units of a prefill token.
int64_t cost_of(const RowEntry& row);

struct Row {
  int64_t index = 0;  // counted over all files from 0, skipped rows included
  RowEntry entry;
};
// Grows and shrinks without a copy of the whole.
using Rows = std::deque<Row>;

struct IndexOptions {
  std::vector<std::string> files = {};
  int64_t skip = 0;
  int64_t limit = -1;  // -1: all
  int threads = 1;
  int64_t max_line_bytes = kMaxLineBytes;
  int64_t piece_bytes = int64_t{32} << 20;
  std::string prompt_field = "prompt";  // top-level member whose size is the prompt's
  uint32_t default_completion_tokens = 256;
  std::vector<std::string> watched_keys = {};  // top-level keys to count
};

// What a user who joins answers by id should know of the rows' own ids (id, custom_id).
struct IdCounts {
  int64_t num_ids = 0;       // neither missing nor null
  int64_t num_missing = 0;   // of objects
  int64_t num_repeated = 0;  // rows whose id an earlier row has
  int64_t num_numbers = 0;
};

struct InputIndex {
  std::vector<std::string> files = {};
  std::vector<int64_t> file_bytes;
  Rows rows;              // in order of their index
  int64_t first_row = 0;  // what was skipped
  int64_t num_lines = 0;
  uint64_t hash = 0;
  std::vector<int64_t> watched_counts;  // rows that have watched_keys[i]
  int64_t num_without_max_tokens = 0;   // over all rows read, skipped ones included
  IdCounts ids;                         // likewise

  int64_t bytes() const;
};

// Throws Error(kInputUnreadable), Error(kUsage).
InputIndex build_index(const IndexOptions& options);

uint64_t hash_of(std::string_view bytes);

// The line of a row, read again and compared with its hash. Throws Error(kUsage) naming the line
// when the file has changed since it was indexed. Not for rows that are too long.
std::string read_row(const File& file, const RowEntry& row);

}  // namespace mpinfer::io
