#include "lib/job/error_budget.h"

#include <charconv>
#include <cmath>
#include <string_view>

#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::job {

int64_t ErrorBudget::rows_of(int64_t num_rows) const {
  if (!percent) return static_cast<int64_t>(value);
  return static_cast<int64_t>(std::floor(value / 100.0 * static_cast<double>(num_rows)));
}

ErrorBudget error_budget(const std::string& text, const char* name) {
  std::string_view digits = text;
  ErrorBudget budget;
  budget.percent = digits.ends_with('%');
  if (budget.percent) digits.remove_suffix(1);
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), budget.value);
  const bool whole = parsed.ec == std::errc{} && parsed.ptr == digits.data() + digits.size();
  const bool integral = budget.percent || budget.value == std::floor(budget.value);
  if (!whole || !integral || budget.value < 0 || (budget.percent && budget.value > 100)) {
    throw Error(ExitCode::kUsage,
                fmt::format("{} {}: give a number of rows or a percentage, 5 or 2%", name,
                            printable(text)));
  }
  return budget;
}

}  // namespace mpinfer::job
