#include "lib/text/normalize.h"

#include <utf8proc.h>

#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>

#include "lib/text/regex.h"
#include "lib/text/unicode_classes.h"
#include "lib/text/utf8.h"

namespace mpinfer::text {
namespace {

constexpr int kDeepest = 16;  // sequences within sequences

bool ascii(char c) {
  return static_cast<unsigned char>(c) < 0x80;
}

// Ranges where NFC changes nothing and no character combines with another.
bool plain_in_nfc(uint32_t c) {
  return c < 0x300 || (c >= 0x400 && c <= 0x482) || (c >= 0x4E00 && c <= 0x9FFF) ||
         (c >= 0xAC00 && c <= 0xD7A3) || (c >= 0x3041 && c <= 0x3096) ||
         (c >= 0x30A1 && c <= 0x30FA) || (c >= 0x2010 && c <= 0x2027) ||
         (c >= 0x1F300 && c <= 0x1FAFF);
}

// utf8proc sees runs of other than ASCII characters, with the ASCII one that their marks may
// belong to. Characters that Hugging Face's tables lack end a run: they are starters there that
// combine with nothing.
class UnicodeForm : public Normalizer {
 public:
  explicit UnicodeForm(int options)
      : options_(static_cast<utf8proc_option_t>(options | UTF8PROC_STABLE)),
        nfc_(options == UTF8PROC_COMPOSE) {}

  Expected<void> apply(std::string& text) const override {
    std::string out;
    size_t at = 0;
    while (at < text.size()) {
      const size_t begin = static_cast<size_t>(
          std::find_if_not(text.begin() + static_cast<std::ptrdiff_t>(at), text.end(), ascii) -
          text.begin());
      if (begin == text.size() && at == 0) return {};
      bool plain = nfc_;
      size_t end = begin;
      while (end < text.size() && !ascii(text[end])) {
        const uint32_t c = code_point_at(text, end);
        const bool plain_here = nfc_ && plain_in_nfc(c);
        if (!plain_here && is_inert(c)) break;
        plain = plain && plain_here;
        end += utf8_length(text[end]);
      }
      if (!plain && end > begin) {
        const size_t first = begin > at ? begin - 1 : begin;
        out.append(text, at, first - at);
        if (auto done = append_form(out, std::string_view(text).substr(first, end - first)); !done)
          return done;
      } else {
        out.append(text, at, end - at);
      }
      at = end;
      if (at < text.size() && !ascii(text[at])) {
        const size_t length = utf8_length(text[at]);
        out.append(text, at, length);
        at += length;
      }
    }
    text = std::move(out);
    return {};
  }

 private:
  Expected<void> append_form(std::string& out, std::string_view run) const {
    utf8proc_uint8_t* mapped = nullptr;
    const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(run.data()),
                                     static_cast<utf8proc_ssize_t>(run.size()), &mapped, options_);
    if (length < 0) {
      return tl::make_unexpected(RowError{"tokenizer_error", utf8proc_errmsg(length), ""});
    }
    out.append(reinterpret_cast<const char*>(mapped), static_cast<size_t>(length));
    std::free(mapped);
    return {};
  }

  utf8proc_option_t options_;
  bool nfc_;
};

// Lower case of letters newer than Unicode 14, which utf8proc may not know.
uint32_t newer_lower(uint32_t c) {
  if (c >= 0x10D50 && c <= 0x10D65) return c + 0x20;
  if (c >= 0x16EA0 && c <= 0x16EB8) return c + 0x1B;
  switch (c) {
    case 0x1C89:
    case 0xA7CC:
    case 0xA7CE:
    case 0xA7D2:
    case 0xA7D4:
    case 0xA7DA:
      return c + 1;
    case 0xA7CB:
      return 0x264;
    case 0xA7DC:
      return 0x19B;
    default:
      return c;
  }
}

class Lowercase : public Normalizer {
 public:
  Expected<void> apply(std::string& text) const override {
    std::string out;
    for (size_t at = 0; at < text.size(); at += utf8_length(text[at])) {
      const uint32_t c = code_point_at(text, at);
      if (c == 0x130) {
        out += "i\xCC\x87";  // the one character whose lower case is two
      } else if (const uint32_t lower = newer_lower(c); lower != c) {
        append_utf8(out, lower);
      } else {
        append_utf8(out, static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
      }
    }
    text = std::move(out);
    return {};
  }
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  Expected<void> apply(std::string& text) const override {
    if (!text.empty()) text.insert(0, prefix_);
    return {};
  }

 private:
  std::string prefix_;
};

class Replace : public Normalizer {
 public:
  Replace(Regex pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  Expected<void> apply(std::string& text) const override {
    std::vector<Span> spans;
    if (auto done = pattern_.find_all(spans, text); !done) return done;
    if (spans.empty()) return {};
    std::string out;
    out.reserve(text.size() + spans.size() * content_.size());
    size_t at = 0;
    for (const Span& span : spans) {
      out.append(text, at, span.begin - at);
      out += content_;
      at = span.end;
    }
    out.append(text, at);
    text = std::move(out);
    return {};
  }

 private:
  Regex pattern_;
  std::string content_;
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  Expected<void> apply(std::string& text) const override {
    size_t begin = 0;
    size_t end = text.size();
    while (left_ && begin < end && is_white_space(code_point_at(text, begin)))
      begin += utf8_length(text[begin]);
    while (right_ && end > begin) {
      const size_t last = last_code_point(std::string_view(text).substr(0, end));
      if (!is_white_space(code_point_at(text, last))) break;
      end = last;
    }
    text = text.substr(begin, end - begin);
    return {};
  }

 private:
  bool left_;
  bool right_;
};

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}
  Expected<void> apply(std::string& text) const override {
    for (const auto& step : steps_) {
      if (auto done = step->apply(text); !done) return done;
    }
    return {};
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

std::unique_ptr<Normalizer> make(const Field& field, int depth) {
  if (field.is_null())
    return std::make_unique<Sequence>(std::vector<std::unique_ptr<Normalizer>>());
  if (depth > kDeepest) field.refuse("nested too deep");
  const std::string type = field.at("type").text();
  if (type == "Sequence") {
    const Field list = field.at("normalizers");
    std::vector<std::unique_ptr<Normalizer>> steps;
    for (size_t i = 0; i < list.size(); ++i) steps.push_back(make(list.item(i), depth + 1));
    return std::make_unique<Sequence>(std::move(steps));
  }
  if (type == "NFC") return std::make_unique<UnicodeForm>(UTF8PROC_COMPOSE);
  if (type == "NFD") return std::make_unique<UnicodeForm>(UTF8PROC_DECOMPOSE);
  if (type == "NFKC") return std::make_unique<UnicodeForm>(UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
  if (type == "NFKD") return std::make_unique<UnicodeForm>(UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "Prepend") return std::make_unique<Prepend>(field.at("prepend").text());
  if (type == "Strip")
    return std::make_unique<Strip>(field.flag("strip_left", true), field.flag("strip_right", true));
  if (type == "Replace") {
    return std::make_unique<Replace>(pattern_of(field.at("pattern")), field.at("content").text());
  }
  field.refuse(fmt::format(
      "normalizer type {} is not known; known: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, "
      "Prepend, Replace, Strip",
      type));
}

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const Field& field) {
  return make(field, 0);
}

}  // namespace mpinfer::text
