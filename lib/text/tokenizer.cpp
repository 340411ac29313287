#include "lib/text/tokenizer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/text/added_tokens.h"
#include "lib/text/bpe.h"
#include "lib/text/byte_level.h"
#include "lib/text/decode.h"
#include "lib/text/normalize.h"
#include "lib/text/postprocess.h"
#include "lib/text/pretokenize.h"
#include "lib/text/utf8.h"

namespace mpinfer::text {
namespace {

constexpr std::streamoff kLargestFile = 256 << 20;

std::string read_whole(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file)
    throw Error(ExitCode::kModelRefused, fmt::format("{}: cannot be opened", printable(path)));
  const std::streamoff size = file.tellg();
  if (size < 0 || size > kLargestFile) {
    throw Error(ExitCode::kModelRefused,
                fmt::format("{}: {} bytes, the limit is {}", printable(path), size, kLargestFile));
  }
  std::string bytes(static_cast<size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(bytes.data(), size)) {
    throw Error(ExitCode::kModelRefused,
                fmt::format("{}: shrank while it was read", printable(path)));
  }
  return bytes;
}

nlohmann::json parse(const std::string& path, const std::string& bytes) {
  // Deep nesting costs the parser heap only, but nothing in the format is deeper than this.
  constexpr int kDeepest = 64;
  const auto guard = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth > kDeepest) {
      throw Error(ExitCode::kModelRefused,
                  fmt::format("{}: nested deeper than {}", printable(path), kDeepest));
    }
    return true;
  };
  try {
    return nlohmann::json::parse(bytes, guard);
  } catch (const nlohmann::json::exception& error) {
    throw Error(ExitCode::kModelRefused,
                fmt::format("{}: {}", printable(path), printable(error.what())));
  }
}

Field optional_member(const nlohmann::json& json, const char* name) {
  static const nlohmann::json null;
  const std::string where = fmt::format("tokenizer.json: {}", name);
  return json.contains(name) ? Field(json[name], where) : Field(null, where);
}

class BpeTokenizer : public Tokenizer {
 public:
  BpeTokenizer(const nlohmann::json& json, uint64_t fingerprint)
      : normalizer_(make_normalizer(optional_member(json, "normalizer"))),
        pre_tokenizer_(make_pre_tokenizer(optional_member(json, "pre_tokenizer"))),
        bpe_(optional_member(json, "model"), pre_tokenizer_->byte_level()),
        special_tokens_(read_post_processor(optional_member(json, "post_processor"))),
        decoder_(make_decoder(optional_member(json, "decoder"))),
        fingerprint_(fingerprint) {
    static const nlohmann::json none = nlohmann::json::array();
    const bool has = json.contains("added_tokens") && !json["added_tokens"].is_null();
    added_ = std::make_unique<AddedTokens>(
        Field(has ? json["added_tokens"] : none, "tokenizer.json: added_tokens"), *normalizer_);
    name_tokens();
    falls_back_ = decodes_bytes();
    const auto known = [&](int32_t id) { return id < vocab_size(); };
    if (!std::all_of(special_tokens_.before.begin(), special_tokens_.before.end(), known) ||
        !std::all_of(special_tokens_.after.begin(), special_tokens_.after.end(), known)) {
      throw Error(
          ExitCode::kModelRefused,
          fmt::format("tokenizer.json: post_processor: an id is beyond the vocabulary of {}",
                      vocab_size()));
    }
  }

  Expected<std::vector<int32_t>> encode(std::string_view text,
                                        bool add_special_tokens) const override {
    if (const size_t at = find_invalid_utf8(text); at != std::string_view::npos) {
      return tl::make_unexpected(
          RowError{"invalid_utf8", fmt::format("the text is not UTF-8 at byte {}", at), ""});
    }
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 3 + special_tokens_.before.size() + special_tokens_.after.size());
    if (add_special_tokens) ids = special_tokens_.before;
    const Lease lease(*this);
    for (const Section& section : added_->split_raw(text)) {
      if (section.id >= 0) {
        ids.push_back(section.id);
        continue;
      }
      std::string part(text.substr(section.span.begin, section.span.end - section.span.begin));
      if (auto done = normalizer_->apply(part); !done) return tl::make_unexpected(done.error());
      if (auto done = encode_normalized(ids, part, section.span.begin == 0, *lease.worker); !done) {
        return tl::make_unexpected(done.error());
      }
    }
    if (add_special_tokens)
      ids.insert(ids.end(), special_tokens_.after.begin(), special_tokens_.after.end());
    return ids;
  }

  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const override {
    DecodeStream stream(decoder_);
    std::string out;
    for (const int32_t id : ids) {
      if (shown(id, skip_special_tokens)) stream.push(out, names_[static_cast<size_t>(id)]);
    }
    stream.finish(out);
    return out;
  }

  int32_t vocab_size() const override { return static_cast<int32_t>(names_.size()); }
  bool is_special(int32_t id) const override {
    return known(id) && special_[static_cast<size_t>(id)];
  }
  std::string token_of(int32_t id) const override {
    return known(id) ? names_[static_cast<size_t>(id)] : "";
  }
  std::vector<int32_t> ids_of_token(std::string_view token) const override {
    for (const AddedToken& added : added_->tokens()) {
      if (added.content == token) return {added.id};
    }
    const auto found = bpe_.vocabulary().find(std::string(token));
    if (found == bpe_.vocabulary().end()) return {};
    return {found->second};
  }
  std::string bytes_of(int32_t id, bool first) const override {
    if (!known(id) || added_ids_[static_cast<size_t>(id)]) return "";
    const std::string& name = names_[static_cast<size_t>(id)];
    if (pre_tokenizer_->byte_level()) return bytes_of_byte_level(name).value_or(name);
    if (const int byte = fallback_byte(name); byte >= 0x80)
      return std::string(1, static_cast<char>(byte));
    // Behind a letter that no decoder changes.
    std::string out;
    DecodeStream stream(decoder_);
    if (!first) stream.push(out, "a");
    const size_t before = out.size();
    stream.push(out, name);
    stream.finish(out);
    return out.substr(before);
  }
  uint64_t fingerprint() const override { return fingerprint_; }

  const std::vector<DecodeStageFactory>& decoder() const { return decoder_; }
  bool shown(int32_t id, bool skip_special_tokens) const {
    return known(id) && !names_[static_cast<size_t>(id)].empty() &&
           !(skip_special_tokens && is_special(id));
  }
  const std::string& name_of(int32_t id) const { return names_[static_cast<size_t>(id)]; }

 private:
  bool known(int32_t id) const { return id >= 0 && id < vocab_size(); }

  // The byte of <0xNN> where the decoder makes bytes of such tokens, else -1.
  int fallback_byte(std::string_view name) const {
    unsigned value = 0;
    if (!falls_back_ || name.size() != 6 || !name.starts_with("<0x") || name.back() != '>')
      return -1;
    const auto [stop, status] = std::from_chars(name.data() + 3, name.data() + 5, value, 16);
    return status == std::errc() && stop == name.data() + 5 ? static_cast<int>(value) : -1;
  }

  bool decodes_bytes() const {
    std::string out;
    DecodeStream stream(decoder_);
    stream.push(out, "<0x41>");
    stream.finish(out);
    return out == "A";
  }

  void name_tokens() {
    int32_t largest = -1;
    for (const auto& [token, id] : bpe_.vocabulary()) largest = std::max(largest, id);
    for (const AddedToken& token : added_->tokens()) largest = std::max(largest, token.id);
    const size_t count = bpe_.vocabulary().size() + added_->tokens().size();
    const size_t limit = 2 * count + 65536;  // room for holes, but never sized by one id
    if (largest >= 0 && static_cast<size_t>(largest) >= limit) {
      throw Error(ExitCode::kModelRefused,
                  fmt::format("tokenizer.json: id {} among {} tokens; the limit is {}", largest,
                              count, limit));
    }
    names_.resize(static_cast<size_t>(largest + 1));
    special_.resize(names_.size(), false);
    added_ids_.resize(names_.size(), false);
    for (const auto& [token, id] : bpe_.vocabulary()) names_[static_cast<size_t>(id)] = token;
    for (const AddedToken& token : added_->tokens()) {
      names_[static_cast<size_t>(token.id)] = token.name;
      special_[static_cast<size_t>(token.id)] = token.special;
      added_ids_[static_cast<size_t>(token.id)] = true;
    }
  }

  // Working memory of one encode; kept for the next.
  struct Worker {
    Bpe::Worker bpe;
    Pieces pieces;
  };
  struct Lease {
    const BpeTokenizer& owner;
    std::unique_ptr<Worker> worker;

    explicit Lease(const BpeTokenizer& tokenizer) : owner(tokenizer) {
      const std::lock_guard guard(owner.lock_);
      if (!owner.idle_.empty()) {
        worker = std::move(owner.idle_.back());
        owner.idle_.pop_back();
      } else {
        worker = std::make_unique<Worker>();
      }
    }
    ~Lease() {
      const std::lock_guard guard(owner.lock_);
      owner.idle_.push_back(std::move(worker));
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
  };

  Expected<void> encode_normalized(std::vector<int32_t>& ids, std::string_view part, bool at_start,
                                   Worker& worker) const {
    Pieces& pieces = worker.pieces;
    for (const Section& section : added_->split_normalized(part)) {
      if (section.id >= 0) {
        ids.push_back(section.id);
        continue;
      }
      pieces.reset(part.substr(section.span.begin, section.span.end - section.span.begin),
                   at_start && section.span.begin == 0);
      if (auto done = pre_tokenizer_->apply(pieces); !done) return done;
      for (const Span& span : pieces.spans)
        bpe_.encode(ids, pieces.text.substr(span.begin, span.end - span.begin), worker.bpe);
    }
    return {};
  }

  std::unique_ptr<Normalizer> normalizer_;
  std::unique_ptr<PreTokenizer> pre_tokenizer_;
  Bpe bpe_;
  std::unique_ptr<AddedTokens> added_;
  SpecialTokens special_tokens_;
  std::vector<DecodeStageFactory> decoder_;
  std::vector<std::string> names_;  // by id; empty: no such token
  std::vector<bool> special_;
  std::vector<bool> added_ids_;
  bool falls_back_ = false;  // <0xNN> tokens are bytes
  uint64_t fingerprint_;
  mutable std::mutex lock_;
  mutable std::vector<std::unique_ptr<Worker>> idle_;  // guarded by lock_
};

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::load(const std::string& directory) {
  const std::string path = directory + "/tokenizer.json";
  const std::string bytes = read_whole(path);
  const nlohmann::json json = parse(path, bytes);
  if (!json.is_object())
    throw Error(ExitCode::kModelRefused, fmt::format("{}: must be an object", printable(path)));
  return std::make_unique<BpeTokenizer>(json, XXH3_64bits(bytes.data(), bytes.size()));
}

struct Detokenizer::State {
  const BpeTokenizer& tokenizer;
  bool skip_special_tokens;
  DecodeStream stream;
};

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens) {
  const auto* bpe = dynamic_cast<const BpeTokenizer*>(&tokenizer);
  MPINFER_CHECK(bpe != nullptr, "a tokenizer that Tokenizer::load did not make");
  state_ = std::make_unique<State>(State{*bpe, skip_special_tokens, DecodeStream(bpe->decoder())});
}

Detokenizer::~Detokenizer() = default;
Detokenizer::Detokenizer(Detokenizer&&) noexcept = default;
Detokenizer& Detokenizer::operator=(Detokenizer&&) noexcept = default;

std::string Detokenizer::push(int32_t id) {
  std::string out;
  if (state_->tokenizer.shown(id, state_->skip_special_tokens)) {
    state_->stream.push(out, state_->tokenizer.name_of(id));
  }
  return out;
}

std::string Detokenizer::finish() {
  std::string out;
  state_->stream.finish(out);
  return out;
}

}  // namespace mpinfer::text
