#include "lib/text/jinja/python_text.h"

#include <utf8proc.h>

#include <algorithm>

namespace mpinfer::text::jinja {
namespace {

size_t bytes_of(char first) {
  const auto byte = static_cast<unsigned char>(first);
  return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

bool is_letter(char32_t code) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}
bool is_digit(char32_t code) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code)) == UTF8PROC_CATEGORY_ND;
}
bool is_number(char32_t code) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO;
}
char32_t upper(char32_t code) {
  return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(code)));
}
char32_t lower(char32_t code) {
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code)));
}
bool is_upper(char32_t code) {
  return lower(code) != code;
}
bool is_lower(char32_t code) {
  return upper(code) != code || code == U'ß';
}

void append_upper(std::string* out, char32_t code) {
  if (code == U'ß') {
    *out += "SS";
  } else {
    append_utf8(out, upper(code));
  }
}

template <class IsStart>
std::string title(std::string_view text, IsStart&& starts_after) {
  std::string out;
  bool start = true;
  for (const std::string_view character : characters(text)) {
    const char32_t code = code_point(character);
    if (start) {
      append_utf8(&out, upper(code));
    } else {
      append_utf8(&out, lower(code));
    }
    start = starts_after(code);
  }
  return out;
}

bool is_line_end(char32_t code) {
  return (code >= 0x0a && code <= 0x0d) || (code >= 0x1c && code <= 0x1e) || code == 0x85 ||
         code == 0x2028 || code == 0x2029;
}

size_t first_character(std::string_view text) {
  return std::min(bytes_of(text.front()), text.size());
}

size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0U) == 0x80U) --at;
  return text.size() - at;
}

bool strips(std::string_view character, std::string_view chars) {
  if (chars.empty()) return is_space(code_point(character));
  return chars.find(character) != std::string_view::npos;
}

}  // namespace

size_t num_characters(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U;
  }));
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  while (!text.empty()) {
    const size_t length = first_character(text);
    out.push_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  return out;
}

std::string_view substring(std::string_view text, int64_t begin, int64_t end) {
  size_t from = 0;
  for (int64_t i = 0; i < begin && from < text.size(); ++i)
    from += first_character(text.substr(from));
  size_t to = from;
  for (int64_t i = begin; i < end && to < text.size(); ++i) to += first_character(text.substr(to));
  return text.substr(from, to - from);
}

char32_t code_point(std::string_view character) {
  const auto byte = [&](size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(character[i]));
  };
  switch (character.size()) {
    case 1:
      return byte(0);
    case 2:
      return ((byte(0) & 0x1f) << 6) | (byte(1) & 0x3f);
    case 3:
      return ((byte(0) & 0x0f) << 12) | ((byte(1) & 0x3f) << 6) | (byte(2) & 0x3f);
    default:
      return ((byte(0) & 0x07) << 18) | ((byte(1) & 0x3f) << 12) | ((byte(2) & 0x3f) << 6) |
             (byte(3) & 0x3f);
  }
}

void append_utf8(std::string* out, char32_t code) {
  const auto add = [&](char32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xc0 | (code >> 6));
    add(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    add(0xe0 | (code >> 12));
    add(0x80 | ((code >> 6) & 0x3f));
    add(0x80 | (code & 0x3f));
  } else {
    add(0xf0 | (code >> 18));
    add(0x80 | ((code >> 12) & 0x3f));
    add(0x80 | ((code >> 6) & 0x3f));
    add(0x80 | (code & 0x3f));
  }
}

bool is_space(char32_t code) {
  return (code >= 0x09 && code <= 0x0d) || (code >= 0x1c && code <= 0x20) || code == 0x85 ||
         code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 ||
         code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

bool is_printable(char32_t code) {
  if (code == ' ') return true;
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return category != UTF8PROC_CATEGORY_CN && category < UTF8PROC_CATEGORY_ZS;
}

bool all_are(std::string_view text, CharacterClass which) {
  bool one = false;
  for (const std::string_view character : characters(text)) {
    const char32_t code = code_point(character);
    switch (which) {
      case CharacterClass::kAlpha:
        one = is_letter(code);
        if (!one) return false;
        break;
      case CharacterClass::kDigit:
        one = is_digit(code);
        if (!one) return false;
        break;
      case CharacterClass::kAlnum:
        one = is_letter(code) || is_number(code);
        if (!one) return false;
        break;
      case CharacterClass::kSpace:
        one = is_space(code);
        if (!one) return false;
        break;
      case CharacterClass::kUpper:
        if (is_lower(code)) return false;
        one = one || is_upper(code);
        break;
      case CharacterClass::kLower:
        if (is_upper(code)) return false;
        one = one || is_lower(code);
        break;
    }
  }
  return one;
}

std::string to_upper(std::string_view text) {
  std::string out;
  for (const std::string_view character : characters(text))
    append_upper(&out, code_point(character));
  return out;
}

std::string to_lower(std::string_view text) {
  std::string out;
  for (const std::string_view character : characters(text))
    append_utf8(&out, lower(code_point(character)));
  return out;
}

std::string capitalize(std::string_view text) {
  return title(text, [](char32_t) { return false; });
}

std::string title_words(std::string_view text) {
  return title(text, [](char32_t code) { return !is_letter(code); });
}

std::string title_filter(std::string_view text) {
  return title(text, [](char32_t code) {
    return is_space(code) || code == '-' || code == '(' || code == '{' || code == '[' ||
           code == '<';
  });
}

std::string_view strip_left(std::string_view text, std::string_view chars) {
  while (!text.empty() && strips(text.substr(0, first_character(text)), chars))
    text.remove_prefix(first_character(text));
  return text;
}

std::string_view strip_right(std::string_view text, std::string_view chars) {
  while (!text.empty() && strips(text.substr(text.size() - last_character(text)), chars))
    text.remove_suffix(last_character(text));
  return text;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to,
                        int64_t most) {
  std::string out;
  size_t at = 0;
  if (from.empty()) {
    for (const std::string_view character : characters(text)) {
      if (most-- != 0) {
        out += to;
      } else {
        break;
      }
      out += character;
      at += character.size();
    }
    if (at == text.size() && most != 0) out += to;
    return out.append(text.substr(at));
  }
  while (most-- != 0) {
    const size_t found = text.find(from, at);
    if (found == std::string_view::npos) break;
    out += text.substr(at, found - at);
    out += to;
    at = found + from.size();
  }
  return out.append(text.substr(at));
}

std::vector<std::string_view> split_spaces(std::string_view text, int64_t most) {
  std::vector<std::string_view> out;
  while (true) {
    text = strip_left(text);
    if (text.empty()) return out;
    if (most == 0) {
      out.push_back(text);
      return out;
    }
    --most;
    size_t end = 0;
    while (end < text.size()) {
      const size_t length = first_character(text.substr(end));
      if (is_space(code_point(text.substr(end, length)))) break;
      end += length;
    }
    out.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
}

std::vector<std::string_view> split_at(std::string_view text, std::string_view separator,
                                       int64_t most) {
  std::vector<std::string_view> out;
  while (most-- != 0) {
    const size_t found = text.find(separator);
    if (found == std::string_view::npos) break;
    out.push_back(text.substr(0, found));
    text.remove_prefix(found + separator.size());
  }
  out.push_back(text);
  return out;
}

std::vector<std::string_view> split_last(std::string_view text, std::string_view separator,
                                         int64_t most) {
  std::vector<std::string_view> out;
  while (most-- != 0) {
    const size_t found = text.rfind(separator);
    if (found == std::string_view::npos) break;
    out.push_back(text.substr(found + separator.size()));
    text = text.substr(0, found);
  }
  out.push_back(text);
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> out;
  size_t begin = 0;
  size_t at = 0;
  while (at < text.size()) {
    const size_t length = first_character(text.substr(at));
    const char32_t code = code_point(text.substr(at, length));
    if (!is_line_end(code)) {
      at += length;
      continue;
    }
    size_t end = at + length;
    if (code == '\r' && end < text.size() && text[end] == '\n') ++end;
    out.push_back(text.substr(begin, (keep_ends ? end : at) - begin));
    begin = at = end;
  }
  if (begin < text.size()) out.push_back(text.substr(begin));
  return out;
}

}  // namespace mpinfer::text::jinja
