#include "lib/core/error.h"

#include <string_view>

namespace mpinfer {
namespace {

std::string place(const std::source_location& where) {
  std::string_view file = where.file_name();
  for (std::string_view root : {"/lib/", "/apps/", "/kernels/"}) {
    const auto at = file.rfind(root);
    if (at != std::string_view::npos) {
      file.remove_prefix(at + 1);
      break;
    }
  }
  return fmt::format("{}:{}", file, where.line());
}

}  // namespace

std::string Error::where() const {
  return place(where_);
}

void check_failed(const char* condition, const std::string& message, std::source_location where) {
  throw Error(
      ExitCode::kInternal,
      fmt::format("internal check failed: {}{}{}", condition, message.empty() ? "" : ": ", message),
      where);
}

}  // namespace mpinfer
