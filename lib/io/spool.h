// Inputs that cannot be read at any offset (standard input, pipes, .gz, .zst) are written out once
// as plain lines, and read from there. What is damaged or ends too early is refused with the
// offset.
#pragma once

#include <string>

#include "lib/io/file.h"

namespace mpinfer::io {

bool needs_spool(const std::string& path);

struct Spooled {
  std::string path;  // of the plain lines
  File held;         // keeps a nameless file alive
};

// target: a file that takes the lines, complete or not there at all; empty: a nameless one. One
// that is there already is taken as it is where reuse says so. Throws Error(kInputUnreadable),
// Error(kOutOfResource).
Spooled spool_input(const std::string& path, const std::string& target, bool reuse);

}  // namespace mpinfer::io
