// Text as Python sees it: indices and lengths in characters, whitespace and case of Unicode, over
// valid UTF-8.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mpinfer::text::jinja {

size_t num_characters(std::string_view text);
std::vector<std::string_view> characters(std::string_view text);
// Characters [begin, end), 0 ≤ begin; empty when end ≤ begin.
std::string_view substring(std::string_view text, int64_t begin, int64_t end);
char32_t code_point(std::string_view character);
void append_utf8(std::string* out, char32_t code);

bool is_space(char32_t code);
bool is_printable(char32_t code);
enum class CharacterClass : uint8_t { kAlpha, kDigit, kAlnum, kSpace, kUpper, kLower };
// Every character is of the class, and there is one (upper, lower: those with case, at least one).
bool all_are(std::string_view text, CharacterClass which);

std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
std::string capitalize(std::string_view text);
std::string title_words(std::string_view text);   // of a str: after every non-letter
std::string title_filter(std::string_view text);  // of the filter: after space, hyphen, bracket

// chars empty: whitespace.
std::string_view strip_left(std::string_view text, std::string_view chars = {});
std::string_view strip_right(std::string_view text, std::string_view chars = {});
std::string replace_all(std::string_view text, std::string_view from, std::string_view to,
                        int64_t most);
std::vector<std::string_view> split_spaces(std::string_view text, int64_t most);
std::vector<std::string_view> split_at(std::string_view text, std::string_view separator,
                                       int64_t most);
std::vector<std::string_view> split_last(std::string_view text, std::string_view separator,
                                         int64_t most);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);

}  // namespace mpinfer::text::jinja
