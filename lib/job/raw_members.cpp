#include "lib/job/raw_members.h"

#include <nlohmann/json.hpp>

#include "lib/io/field_scanner.h"

namespace mpinfer::job {

std::string_view raw_member(std::string_view object, std::string_view key) {
  std::string_view found;
  io::MemberScanner scanner(object);
  io::Member member;
  while (scanner.next(&member)) {
    const bool plain = member.key.find('\\') == std::string_view::npos;
    if (plain ? member.key == key : member.decoded_key() == key) found = member.value;
  }
  return found == "null" ? std::string_view() : found;
}

std::string text_member(std::string_view object, std::string_view key, std::string_view otherwise) {
  const std::string_view raw = raw_member(object, key);
  const auto json = nlohmann::json::parse(raw, nullptr, /*allow_exceptions=*/false);
  return json.is_string() ? json.get<std::string>() : std::string(otherwise);
}

bool is_openai_row(std::string_view line) {
  return !raw_member(line, "custom_id").empty() && !raw_member(line, "url").empty();
}

}  // namespace mpinfer::job
