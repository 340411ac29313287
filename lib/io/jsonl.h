// LineReader: the lines of a byte range of a file, by pread, with bounded memory. A line longer
// than the cap is reported as too long and the next one is read; a byte-order mark, CR before LF
// and blank lines are skipped (blank lines count); the last line needs no newline.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "lib/io/file.h"

namespace mpinfer::io {

inline constexpr int64_t kMaxLineBytes = int64_t{64} << 20;

struct Line {
  int64_t offset = 0;      // in the file
  int64_t length = 0;      // bytes without CR and LF
  int64_t number = 0;      // from 1 within the range, blank lines counted
  bool too_long = false;   // bytes holds only the beginning
  bool terminated = true;  // false: the file ends without a newline
  std::string_view bytes;  // valid until the next call
};

class LineReader {
 public:
  // Lines that begin in [begin, end); the last one is read beyond end. A begin > 0 inside a line
  // skips to the next line.
  LineReader(const File& file, int64_t begin, int64_t end, int64_t max_line_bytes = kMaxLineBytes);

  // False when no line is left. Throws Error(kInputUnreadable).
  bool next(Line* line);
  int64_t num_lines() const { return num_lines_; }  // so far, blank ones included

 private:
  bool read_more();          // appends to buffer_; false at the end of the file
  bool skip_past_newline();  // false at the end of the file
  void skip_partial_line();
  void read_line(Line* line);
  size_t find_newline(size_t from) const;
  int64_t offset() const { return buffer_offset_ + static_cast<int64_t>(position_); }

  const File& file_;
  int64_t begin_;
  int64_t end_;
  int64_t max_line_bytes_;
  std::vector<char> buffer_;
  std::vector<char> head_;  // of a too long line
  int64_t buffer_offset_;   // file offset of buffer_[0]
  size_t position_ = 0;     // of the next line in buffer_
  size_t filled_ = 0;
  int64_t num_lines_ = 0;
  bool started_ = false;
};

}  // namespace mpinfer::io
