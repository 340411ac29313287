// How many rows may fail: a number, or a percentage of all rows.
#pragma once

#include <cstdint>
#include <string>

namespace mpinfer::job {

struct ErrorBudget {
  double value = 0.0;
  bool percent = false;
  int64_t rows_of(int64_t num_rows) const;
};

// "5" or "2%". name: the flag, for the message. Throws Error(kUsage).
ErrorBudget error_budget(const std::string& text, const char* name);

}  // namespace mpinfer::job
