// Logging to stderr through spdlog. One call at start sets the format; a full or closed stderr
// never ends the run (messages are dropped).
#pragma once

#include <spdlog/spdlog.h>

#include <string>

namespace mpinfer {

struct LogOptions {
  std::string level = "info";  // trace, debug, info, warning, error, off
  bool json = false;           // one JSON object a line
  int rank = 0;
  std::string host;
};

// Replaces spdlog's default logger. Throws Error(kUsage) for an unknown level.
void set_up_log(const LogOptions& options);

// s with control bytes and invalid UTF-8 escaped, cut to max_bytes: user text never reaches a
// terminal raw.
std::string printable(std::string_view s, size_t max_bytes = 200);

}  // namespace mpinfer
