// The one exception type. It is for programmer errors and broken devices, models, files and peers:
// whatever ends the run. A bad input row is a RowError value (result.h), never an exception.
// The only catch of Error is in main; it logs, flushes the journal and ends with exit_code().
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <limits>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace mpinfer {

// INTERFACE: the documented exit codes of rank 0 and of the manifest.
enum class ExitCode : int {
  kComplete = 0,
  kUsage = 2,            // options, configuration or layout
  kFailedRows = 3,       // complete with failed rows, or stopped by --max-errors
  kInputUnreadable = 4,  // input
  kModelRefused = 5,     // model refused, inconsistent, or does not fit the plan
  kOutOfResource = 6,    // memory or disk ran out while running
  kPeerFailure = 7,      // peer, GPU or collective
  kInternal = 70,
  kStopped = 75,  // stopped cleanly, resumable
};

class Error : public std::runtime_error {
 public:
  // what: one line that names the thing, the value, the limit and what would work.
  Error(ExitCode code, const std::string& what,
        std::source_location where = std::source_location::current())
      : std::runtime_error(what), code_(code), where_(where) {}

  ExitCode exit_code() const { return code_; }
  // file:line of the throw, without directories above the repository.
  std::string where() const;

 private:
  ExitCode code_;
  std::source_location where_;
};

[[noreturn]] void check_failed(const char* condition, const std::string& message,
                               std::source_location where);

// Narrows an integer; throws Error(kInternal) when the value does not fit.
template <class To, class From>
To checked_cast(From value, std::source_location where = std::source_location::current()) {
  static_assert(std::is_integral_v<To> && std::is_integral_v<From>);
  if (!std::in_range<To>(value)) {
    check_failed("checked_cast", fmt::format("value {} does not fit the target type", value),
                 where);
  }
  return static_cast<To>(value);
}

}  // namespace mpinfer

// Stays on in release: a broken invariant of our own code ends the run with exit 70.
#define MPINFER_CHECK(condition, ...)                                    \
  do {                                                                   \
    if (!(condition)) [[unlikely]] {                                     \
      ::mpinfer::check_failed(#condition, ::fmt::format("" __VA_ARGS__), \
                              std::source_location::current());          \
    }                                                                    \
  } while (false)
