// Members of a JSON object as they stand in the line, without a tree: for lines that a JSON parser
// has already accepted. The last of duplicate keys wins.
#pragma once

#include <string>
#include <string_view>

namespace mpinfer::job {

// Raw JSON of a member; empty: there is none, or it is null.
std::string_view raw_member(std::string_view object, std::string_view key);
// A member that is a string, with its escapes resolved; otherwise when it is absent or no string.
std::string text_member(std::string_view object, std::string_view key,
                        std::string_view otherwise = "");
// A row of the OpenAI batch form: custom_id and url.
bool is_openai_row(std::string_view line);

}  // namespace mpinfer::job
