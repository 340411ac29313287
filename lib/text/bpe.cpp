#include "lib/text/bpe.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <queue>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/text/byte_level.h"
#include "lib/text/utf8.h"

namespace mpinfer::text {
namespace {

constexpr std::string_view kMetaspace = "\xE2\x96\x81";

uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93U;
  x ^= x >> 32;
  return x;
}

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Worker::Worker() = default;

WordCache::Entry& WordCache::find(std::string_view word, bool* held) {
  const auto load = [&word](size_t at, auto value) {
    std::memcpy(&value, word.data() + at, sizeof(value));
    return static_cast<uint64_t>(value);
  };
  const size_t size = word.size();
  uint64_t key[3] = {0, 0, 0};  // with the length, all bytes of word
  if (size >= 8) {
    key[0] = load(0, uint64_t{});
    key[1] = load(size - 8, uint64_t{});
    if (size > 16) key[2] = load(8, uint64_t{});
  } else if (size >= 4) {
    key[0] = load(0, uint32_t{});
    key[1] = load(size - 4, uint32_t{});
  } else {
    key[0] = load(0, uint8_t{}) | load(size / 2, uint8_t{}) << 8 | load(size - 1, uint8_t{}) << 16;
  }
  uint64_t hash = key[0] * 0x9E3779B97F4A7C15U;
  hash = (hash ^ hash >> 29 ^ key[1]) * 0xD6E8FEB86659FD93U;
  hash = (hash ^ hash >> 31 ^ key[2] ^ size) * 0x9E3779B97F4A7C15U;
  Entry& entry = entries_[(hash ^ hash >> 32) % kEntries];
  *held = entry.length == size && entry.key[0] == key[0] && entry.key[1] == key[1] &&
          entry.key[2] == key[2];
  if (!*held) {
    std::copy(key, key + 3, entry.key);
    entry.length = 0;
  }
  return entry;
}

void Bpe::MergeTable::reserve(size_t count) {
  size_t size = 16;
  while (size < count * 2) size *= 2;
  entries_.assign(size, Entry{});
  mask_ = size - 1;
}

void Bpe::MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = pair_key(left, right);
  size_t at = mix(key) & mask_;
  while (entries_[at].key != ~0ULL && entries_[at].key != key) at = (at + 1) & mask_;
  entries_[at] = {key, merge};
}

const Bpe::Merge* Bpe::MergeTable::find(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  for (size_t at = mix(key) & mask_;; at = (at + 1) & mask_) {
    if (entries_[at].key == key) return &entries_[at].merge;
    if (entries_[at].key == ~0ULL) return nullptr;
  }
}

Bpe::Bpe(const Field& field, bool byte_level) : byte_level_(byte_level) {
  const std::string type = field.text("type", "BPE");
  if (type != "BPE")
    field.refuse(fmt::format("type {} is not read; mpinfer reads BPE", printable(type)));
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!field.text(affix, "").empty()) field.refuse(fmt::format("{} is not supported", affix));
  }
  byte_fallback_ = field.flag("byte_fallback", false);
  fuse_unk_ = field.flag("fuse_unk", false);
  ignore_merges_ = field.flag("ignore_merges", false);
  read_vocabulary(field.at("vocab"));
  const std::string unk = field.text("unk_token", "");
  if (const auto found = vocabulary_.find(unk); !unk.empty() && found != vocabulary_.end())
    unk_id_ = found->second;
  check_bytes(field.at("vocab"));
  read_merges(field.at("merges"));
}

namespace {

std::string byte_entry(size_t byte, bool byte_level) {
  if (!byte_level) return fmt::format("<0x{:02X}>", byte);
  std::string name;
  append_utf8(name, byte_level_characters()[byte]);
  return name;
}

}  // namespace

// Text of bytes without an entry vanishes, as it does in Hugging Face's tokenizers: real
// vocabularies lack control and some UTF-8 lead bytes, but none lacks what English is made of.
void Bpe::check_bytes(const Field& field) const {
  if (byte_level_ ? unk_id_ >= 0 : !byte_fallback_) return;
  for (size_t byte = 0; byte < 256; ++byte) {
    const bool needed = !byte_level_ || (byte >= ' ' && byte <= '~');
    if (by_byte_[byte] < 0 && needed) {
      field.refuse(fmt::format("no entry for byte 0x{:02x} ({})", byte,
                               printable(byte_entry(byte, byte_level_))));
    }
  }
}

void Bpe::read_vocabulary(const Field& field) {
  if (!field.json().is_object()) field.refuse("must be an object of token: id");
  constexpr int64_t kMost = 1 << 24;
  vocabulary_.reserve(field.json().size());
  for (const auto& [token, id] : field.json().items()) {
    const Field entry(id, field.where());
    vocabulary_[token] = static_cast<int32_t>(entry.integer(0, kMost));
  }
  std::vector<int32_t> ids;
  for (const auto& [token, id] : vocabulary_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice != ids.end()) field.refuse(fmt::format("id {} is given twice", *twice));
  by_ascii_.fill(-1);
  by_byte_.fill(-1);
  for (size_t byte = 0; byte < 256; ++byte) {
    const std::string name = byte_entry(byte, byte_level_);
    if (const auto found = vocabulary_.find(name); found != vocabulary_.end())
      by_byte_[byte] = found->second;
  }
  for (const auto& [token, id] : vocabulary_) {
    if (byte_level_ && ignore_merges_) {
      if (auto bytes = bytes_of_byte_level(token)) by_bytes_[std::move(*bytes)] = id;
    }
    if (!token.empty() && utf8_length(token[0]) == token.size()) {
      const uint32_t character = code_point_at(token, 0);
      by_character_[character] = id;
      if (character < by_ascii_.size()) by_ascii_[character] = id;
    }
  }
}

void Bpe::read_merges(const Field& field) {
  const size_t count = field.size();
  merges_.reserve(count);
  cut_at_metaspace_ =
      !byte_level_ && !ignore_merges_ && vocabulary_.contains(std::string(kMetaspace));
  for (size_t i = 0; i < count; ++i) {
    const auto& merge = field.json()[i];
    std::string left;
    std::string right;
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    } else if (merge.is_string()) {
      const std::string both = merge.get<std::string>();
      const size_t space = both.find(' ');
      if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos) {
        field.item(i).refuse("must be two tokens with one space between them");
      }
      left = both.substr(0, space);
      right = both.substr(space + 1);
    } else {
      field.item(i).refuse("must be \"left right\" or [left, right]");
    }
    const auto left_id = vocabulary_.find(left);
    const auto right_id = vocabulary_.find(right);
    const auto merged_id = vocabulary_.find(left + right);
    if (left_id == vocabulary_.end() || right_id == vocabulary_.end() ||
        merged_id == vocabulary_.end()) {
      field.item(i).refuse(fmt::format("merge of {} and {} is not in the vocabulary",
                                       printable(left), printable(right)));
    }
    if (right.starts_with(kMetaspace) && !left.ends_with(kMetaspace)) cut_at_metaspace_ = false;
    merges_.insert(left_id->second, right_id->second, {static_cast<int32_t>(i), merged_id->second});
  }
}

void Bpe::first_symbols(std::vector<Symbol>& symbols, std::string_view piece) const {
  if (byte_level_) {
    for (const char c : piece) {
      const int32_t id = by_byte_[static_cast<unsigned char>(c)];
      if (id >= 0) {
        symbols.push_back({id});
      } else if (unk_id_ >= 0) {
        symbols.push_back({unk_id_});
      }
    }
  } else {
    character_symbols(symbols, piece);
  }
  for (size_t i = 0; i < symbols.size(); ++i) {
    symbols[i].previous = static_cast<int32_t>(i) - 1;
    symbols[i].next = i + 1 < symbols.size() ? static_cast<int32_t>(i) + 1 : -1;
  }
}

void Bpe::character_symbols(std::vector<Symbol>& symbols, std::string_view piece) const {
  bool after_unk = false;
  for (size_t at = 0; at < piece.size();) {
    const size_t length = utf8_length(piece[at]);
    if (length == 1 && by_ascii_[static_cast<unsigned char>(piece[at])] >= 0) {
      symbols.push_back({by_ascii_[static_cast<unsigned char>(piece[at])]});
      after_unk = false;
      ++at;
      continue;
    }
    const auto found = by_character_.find(code_point_at(piece, at));
    if (found != by_character_.end()) {
      symbols.push_back({found->second});
      after_unk = false;
    } else {
      bool all_bytes = byte_fallback_;
      for (size_t i = 0; i < length; ++i)
        all_bytes = all_bytes && by_byte_[static_cast<unsigned char>(piece[at + i])] >= 0;
      if (all_bytes) {
        for (size_t i = 0; i < length; ++i)
          symbols.push_back({by_byte_[static_cast<unsigned char>(piece[at + i])]});
        after_unk = false;
      } else if (unk_id_ >= 0 && !(fuse_unk_ && after_unk)) {
        symbols.push_back({unk_id_});
        after_unk = true;
      }
    }
    at += length;
  }
}

void Bpe::encode(std::vector<int32_t>& out, std::string_view piece, Worker& worker) const {
  if (!cut_at_metaspace_) return encode_word(out, piece, worker);
  size_t begin = 0;
  for (size_t at = piece.find(kMetaspace); at != std::string_view::npos;
       at = piece.find(kMetaspace, at)) {
    if (at > begin) encode_word(out, piece.substr(begin, at - begin), worker);
    begin = at;
    while (piece.substr(at, kMetaspace.size()) == kMetaspace) at += kMetaspace.size();
  }
  encode_word(out, piece.substr(begin), worker);
}

void Bpe::encode_word(std::vector<int32_t>& out, std::string_view word, Worker& worker) const {
  if (word.empty()) return;
  WordCache::Entry* entry = nullptr;
  if (word.size() <= WordCache::kMostBytes) {
    bool held = false;
    entry = &worker.cache.find(word, &held);
    if (held) {
      out.insert(out.end(), entry->ids, entry->ids + entry->num_ids);
      return;
    }
  }
  const size_t begin = out.size();
  const auto& whole = byte_level_ ? by_bytes_ : vocabulary_;
  const auto known = ignore_merges_ ? whole.find(word) : whole.end();
  if (known != whole.end()) {
    out.push_back(known->second);
  } else {
    auto& symbols = worker.symbols;
    symbols.clear();
    first_symbols(symbols, word);
    constexpr size_t kShort = 48;
    symbols.size() <= kShort ? merge_short(symbols) : merge_long(symbols);
    for (int32_t at = symbols.empty() ? -1 : 0; at >= 0;
         at = symbols[static_cast<size_t>(at)].next) {
      out.push_back(symbols[static_cast<size_t>(at)].id);
    }
  }
  const size_t num_ids = out.size() - begin;
  if (entry != nullptr && num_ids <= WordCache::kMostIds) {
    entry->length = static_cast<uint8_t>(word.size());
    entry->num_ids = static_cast<uint8_t>(num_ids);
    std::copy(out.begin() + static_cast<std::ptrdiff_t>(begin), out.end(), entry->ids);
  }
}

// Looks at every pair for each merge: fastest for words.
void Bpe::merge_short(std::vector<Symbol>& symbols) const {
  constexpr int32_t kNone = INT32_MAX;
  const size_t size = symbols.size();
  if (size < 2) return;
  int32_t ids[64];
  Merge pair[64];
  size_t count = size;
  const auto merge_at = [&](size_t i) {
    const Merge* found = merges_.find(ids[i], ids[i + 1]);
    return found != nullptr ? *found : Merge{kNone, -1};
  };
  for (size_t i = 0; i < size; ++i) ids[i] = symbols[i].id;
  for (size_t i = 0; i + 1 < count; ++i) pair[i] = merge_at(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (pair[i].rank < pair[best].rank) best = i;
    }
    if (pair[best].rank == kNone) break;
    ids[best] = pair[best].id;
    std::copy(ids + best + 2, ids + count, ids + best + 1);
    std::copy(pair + best + 1, pair + count - 1, pair + best);
    --count;
    if (best + 1 < count) pair[best] = merge_at(best);
    if (best > 0) pair[best - 1] = merge_at(best - 1);
  }
  symbols.resize(count);
  for (size_t i = 0; i < count; ++i)
    symbols[i] = {ids[i], -1, i + 1 < count ? static_cast<int32_t>(i) + 1 : -1};
}

// A heap of candidate pairs over a linked list; candidates that a merge has overtaken are
// recognised when they come up.
void Bpe::merge_long(std::vector<Symbol>& symbols) const {
  struct Candidate {
    int32_t rank;
    int32_t at;
    int32_t id;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
  const auto symbol = [&symbols](int32_t at) -> Symbol& {
    return symbols[static_cast<size_t>(at)];
  };
  const auto offer = [&](int32_t at) {
    if (at < 0 || symbol(at).next < 0) return;
    const Merge* merge = merges_.find(symbol(at).id, symbol(symbol(at).next).id);
    if (merge != nullptr) heap.push({merge->rank, at, merge->id});
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) offer(static_cast<int32_t>(i));
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    Symbol& left = symbol(top.at);
    if (left.id < 0 || left.next < 0) continue;
    const Merge* merge = merges_.find(left.id, symbol(left.next).id);
    if (merge == nullptr || merge->id != top.id) continue;
    const int32_t gone = left.next;
    left.id = top.id;
    left.next = symbol(gone).next;
    if (left.next >= 0) symbol(left.next).previous = top.at;
    symbol(gone).id = -1;
    offer(left.previous);
    offer(top.at);
  }
}

}  // namespace mpinfer::text
