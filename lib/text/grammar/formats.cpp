#include "lib/text/grammar/formats.h"

#include <utility>
#include <vector>

namespace mpinfer::text::grammar {
namespace {

// RFC 3339, RFC 9562, RFC 5321 (dot-atom), RFC 2673 and RFC 3986 in their common shape: years of
// four digits that do not begin with 0, no 29th of February (most years have none), no leap second.
const std::vector<std::pair<std::string, std::string>>& formats() {
  static const auto* const kFormats = [] {
    const std::string date =
        "[1-9]\\d{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|"
        "(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))";
    const std::string time =
        "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,6})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)";
    const std::string byte = "(?:25[0-5]|2[0-4]\\d|1\\d{2}|[1-9]?\\d)";
    const std::string label = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,20}[A-Za-z0-9])?";
    const std::string host = label + "(?:\\." + label + "){0,4}";
    const std::string atom = "[A-Za-z0-9_+-]{1,20}";
    return new std::vector<std::pair<std::string, std::string>>{
        {"date", date},
        {"time", time},
        {"date-time", date + "T" + time},
        {"uuid", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"},
        {"email",
         atom + "(?:\\." + atom + "){0,2}@" + label + "(?:\\." + label + "){0,3}\\.[a-z]{2,10}"},
        {"hostname", host},
        {"ipv4", byte + "(?:\\." + byte + "){3}"},
        {"uri", "https?://" + host +
                    "(?::[1-9]\\d{0,3})?(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]*)*"
                    "(?:\\?[A-Za-z0-9._~!$&'()*+,;=:@/?-]*)?"},
    };
  }();
  return *kFormats;
}

}  // namespace

std::optional<std::string> pattern_of_format(std::string_view name) {
  for (const auto& [format, pattern] : formats()) {
    if (format == name) return pattern;
  }
  return std::nullopt;
}

std::string known_formats() {
  std::string names;
  for (const auto& [format, pattern] : formats()) names += (names.empty() ? "" : ", ") + format;
  return names;
}

}  // namespace mpinfer::text::grammar
