#include "lib/text/decode.h"

#include <fmt/core.h>

#include <charconv>

#include "lib/text/byte_level.h"
#include "lib/text/regex.h"
#include "lib/text/utf8.h"

namespace mpinfer::text {
namespace {

constexpr int kDeepest = 16;

class Spaced : public DecodeStage {
 public:
  void push(std::string_view token, const Emit& emit) override {
    if (!first_) emit(" ");
    first_ = false;
    emit(token);
  }

 private:
  bool first_ = true;
};

// Bytes of the vocabulary's characters, as UTF-8 text; a sequence that is not finished waits for
// the next token.
class ByteLevelDecode : public DecodeStage {
 public:
  void push(std::string_view token, const Emit& emit) override {
    const auto bytes = bytes_of_byte_level(token);
    pending_ += bytes ? *bytes : std::string(token);
    take(emit, true);
  }
  void finish(const Emit& emit) override { take(emit, false); }

 private:
  void take(const Emit& emit, bool more_may_follow) {
    std::string text;
    const size_t left = append_lossy(text, pending_, more_may_follow);
    pending_.erase(0, pending_.size() - left);
    if (!text.empty()) emit(text);
  }
  std::string pending_;
};

// <0xNN> tokens in a row are bytes: text if all of them together are UTF-8, else one U+FFFD each.
class ByteFallbackDecode : public DecodeStage {
 public:
  void push(std::string_view token, const Emit& emit) override {
    unsigned value = 0;
    if (token.size() == 6 && token.substr(0, 3) == "<0x" && token[5] == '>') {
      const auto [stop, status] = std::from_chars(token.data() + 3, token.data() + 5, value, 16);
      if (status == std::errc() && stop == token.data() + 5) {
        pending_ += static_cast<char>(value);
        return;
      }
    }
    finish(emit);
    emit(token);
  }
  void finish(const Emit& emit) override {
    if (pending_.empty()) return;
    if (find_invalid_utf8(pending_) == std::string_view::npos) {
      emit(pending_);
    } else {
      for (size_t i = 0; i < pending_.size(); ++i) emit("\xEF\xBF\xBD");
    }
    pending_.clear();
  }

 private:
  std::string pending_;
};

class MetaspaceDecode : public DecodeStage {
 public:
  MetaspaceDecode(std::string replacement, bool strip_first)
      : replacement_(std::move(replacement)), strip_first_(strip_first) {}
  void push(std::string_view token, const Emit& emit) override {
    std::string out;
    for (size_t at = 0; at < token.size();) {
      if (token.substr(at, replacement_.size()) == replacement_) {
        if (!(first_ && strip_first_)) out += ' ';
        at += replacement_.size();
      } else {
        out += token[at++];
      }
    }
    first_ = false;
    emit(out);
  }

 private:
  std::string replacement_;
  bool strip_first_;
  bool first_ = true;
};

class ReplaceDecode : public DecodeStage {
 public:
  ReplaceDecode(std::shared_ptr<const Regex> pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void push(std::string_view token, const Emit& emit) override {
    std::vector<Span> spans;
    if (!pattern_->find_all(spans, token) || spans.empty()) return emit(token);
    std::string out;
    size_t at = 0;
    for (const Span& span : spans) {
      out += token.substr(at, span.begin - at);
      out += content_;
      at = span.end;
    }
    out += token.substr(at);
    emit(out);
  }

 private:
  std::shared_ptr<const Regex> pattern_;
  std::string content_;
};

// Takes up to `start` copies of content off the front and `stop` off the back: of every token, or
// (after Fuse) of the text.
class StripDecode : public DecodeStage {
 public:
  StripDecode(std::string content, int64_t start, int64_t stop, bool fused)
      : content_(std::move(content)), start_(start), stop_(stop), fused_(fused) {}
  void push(std::string_view token, const Emit& emit) override {
    if (!fused_) {
      left_ = start_;
      open_ = true;
    }
    std::string text = held_ + std::string(token);
    held_.clear();
    size_t begin = 0;
    while (open_ && left_ > 0 && text.compare(begin, content_.size(), content_) == 0) {
      begin += content_.size();
      --left_;
    }
    if (begin < text.size()) open_ = false;
    size_t end = text.size();
    int64_t off = stop_;
    while (off > 0 && end >= begin + content_.size() &&
           text.compare(end - content_.size(), content_.size(), content_) == 0) {
      end -= content_.size();
      --off;
    }
    if (fused_) held_ = text.substr(end);
    if (end > begin) emit(std::string_view(text).substr(begin, end - begin));
  }

 private:
  std::string content_;
  int64_t start_;
  int64_t stop_;
  bool fused_;
  bool open_ = true;  // nothing was kept yet
  int64_t left_ = start_;
  std::string held_;  // fused: may still be the end
};

void read(std::vector<DecodeStageFactory>& stages, bool& fused, const Field& field, int depth) {
  if (depth > kDeepest) field.refuse("nested too deep");
  const std::string type = field.at("type").text();
  if (type == "Sequence") {
    const Field list = field.at("decoders");
    for (size_t i = 0; i < list.size(); ++i) read(stages, fused, list.item(i), depth + 1);
  } else if (type == "ByteLevel") {
    stages.emplace_back([] { return std::make_unique<ByteLevelDecode>(); });
    fused = true;
  } else if (type == "ByteFallback") {
    stages.emplace_back([] { return std::make_unique<ByteFallbackDecode>(); });
  } else if (type == "Fuse") {
    fused = true;  // stages behind see one text that grows
  } else if (type == "Metaspace") {
    const std::string replacement = field.text("replacement", "\xE2\x96\x81");
    const bool strip =
        field.text("prepend_scheme", field.flag("add_prefix_space", true) ? "always" : "never") !=
        "never";
    stages.emplace_back([=] { return std::make_unique<MetaspaceDecode>(replacement, strip); });
  } else if (type == "Replace") {
    if (fused) field.refuse("Replace behind Fuse or ByteLevel is not supported");
    const auto pattern = std::make_shared<const Regex>(pattern_of(field.at("pattern")));
    const std::string content = field.at("content").text();
    stages.emplace_back([=] { return std::make_unique<ReplaceDecode>(pattern, content); });
  } else if (type == "Strip") {
    const std::string content = field.at("content").text();
    if (content.empty()) field.refuse("content must not be empty");
    constexpr int64_t kMost = 1 << 20;
    const int64_t start = field.at("start").integer(0, kMost);
    const int64_t stop = field.at("stop").integer(0, kMost);
    const bool whole = fused;
    stages.emplace_back([=] { return std::make_unique<StripDecode>(content, start, stop, whole); });
  } else {
    field.refuse(fmt::format(
        "decoder type {} is not known; known: Sequence, ByteLevel, ByteFallback, Fuse, Metaspace, "
        "Replace, Strip",
        type));
  }
}

}  // namespace

std::vector<DecodeStageFactory> make_decoder(const Field& field) {
  std::vector<DecodeStageFactory> stages;
  bool fused = false;
  if (field.is_null()) {
    stages.emplace_back([] { return std::make_unique<Spaced>(); });
  } else {
    read(stages, fused, field, 0);
  }
  return stages;
}

DecodeStream::DecodeStream(const std::vector<DecodeStageFactory>& decoder) {
  for (const auto& factory : decoder) stages_.push_back(factory());
}

void DecodeStream::run(std::string& out, size_t stage, std::string_view token) {
  if (stage == stages_.size()) {
    out += token;
    return;
  }
  stages_[stage]->push(token, [&](std::string_view text) { run(out, stage + 1, text); });
}

void DecodeStream::push(std::string& out, std::string_view token) {
  run(out, 0, token);
}

void DecodeStream::finish(std::string& out) {
  for (size_t stage = 0; stage < stages_.size(); ++stage) {
    stages_[stage]->finish([&](std::string_view text) { run(out, stage + 1, text); });
  }
}

}  // namespace mpinfer::text
