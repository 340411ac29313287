// The answers in input order: a temporary beside OUT, then fsync, rename, fsync of the directory,
// so that OUT is never half written. Standard output and files that are not regular (/dev/null, a
// pipe) are written directly. Without finish() the temporary is removed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lib/io/file.h"

namespace mpinfer::io {

class OrderedWriter {
 public:
  // "-": standard output. temporary: the name to write under first; by default one of this process
  // (a caller that holds a lock gives a fixed one, so that none is left behind). Throws
  // Error(kOutOfResource).
  explicit OrderedWriter(const std::string& output, const std::string& temporary = "");
  ~OrderedWriter();
  OrderedWriter(const OrderedWriter&) = delete;
  OrderedWriter& operator=(const OrderedWriter&) = delete;

  void write_line(std::string_view line);  // without its newline
  void finish();
  int64_t bytes() const { return bytes_; }  // written so far

 private:
  void flush();

  std::string path_;
  std::string temporary_;  // empty: written directly
  File file_;
  std::string buffer_;
  int64_t bytes_ = 0;
};

// Refuses, before anything costly, an output that cannot be written: a directory, one of inputs, a
// missing or unwritable directory, an existing file without overwrite. Throws Error(kUsage).
void require_writable_output(const std::string& path, const std::vector<std::string>& inputs,
                             bool overwrite);

}  // namespace mpinfer::io
