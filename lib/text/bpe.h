// Byte-pair encoding over ids: a piece becomes its first symbols (bytes of a byte-level vocabulary,
// else characters, with byte fallback), then the pair of lowest rank is merged until none is left.
// O(n log n) in the length of a piece.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lib/text/json_fields.h"

namespace mpinfer::text {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

// Ids of short words by their bytes, direct-mapped: words come again.
class WordCache {
 public:
  static constexpr size_t kMostBytes = 24;
  static constexpr size_t kMostIds = 8;
  struct alignas(64) Entry {
    uint64_t key[3] = {0, 0, 0};
    int32_t ids[kMostIds] = {};
    uint8_t length = 0;  // 0: empty
    uint8_t num_ids = 0;
  };

  WordCache() : entries_(kEntries) {}
  // word: 1 to kMostBytes bytes. The entry where it is or would be; *held says which.
  Entry& find(std::string_view word, bool* held);

 private:
  static constexpr size_t kEntries = 1 << 15;
  std::vector<Entry> entries_;
};

class Bpe {
 public:
  // field: tokenizer.json's "model". byte_level: pieces are raw bytes. Throws Error(kModelRefused).
  Bpe(const Field& field, bool byte_level);

  // Working memory of one thread: words seen lately and their ids, and buffers.
  struct Symbol {
    int32_t id = -1;
    int32_t previous = -1;
    int32_t next = -1;
  };
  struct Worker {
    Worker();
    WordCache cache;
    std::vector<Symbol> symbols;
  };

  // Appends the ids of one piece.
  void encode(std::vector<int32_t>& out, std::string_view piece, Worker& worker) const;

  using Vocabulary = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;
  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    int32_t rank = -1;
    int32_t id = -1;
  };
  // Open addressing by (left, right); written once.
  class MergeTable {
   public:
    void reserve(size_t count);
    void insert(int32_t left, int32_t right, Merge merge);
    const Merge* find(int32_t left, int32_t right) const;

   private:
    struct Entry {
      uint64_t key = ~0ULL;
      Merge merge;
    };
    std::vector<Entry> entries_;
    size_t mask_ = 0;
  };
  void read_vocabulary(const Field& field);
  void check_bytes(const Field& field) const;
  void encode_word(std::vector<int32_t>& out, std::string_view word, Worker& worker) const;
  void read_merges(const Field& field);
  void first_symbols(std::vector<Symbol>& symbols, std::string_view piece) const;
  void character_symbols(std::vector<Symbol>& symbols, std::string_view piece) const;
  void merge_short(std::vector<Symbol>& symbols) const;
  void merge_long(std::vector<Symbol>& symbols) const;

  bool byte_level_;
  bool byte_fallback_ = false;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
  int32_t unk_id_ = -1;
  bool cut_at_metaspace_ = false;  // no merge crosses from another character into U+2581
  Vocabulary vocabulary_;          // entry → id
  Vocabulary by_bytes_;            // byte-level: raw bytes → id, with ignore_merges
  std::unordered_map<uint32_t, int32_t> by_character_;  // entries of one character
  std::array<int32_t, 128> by_ascii_;                   // the same for ASCII; -1: none
  std::array<int32_t, 256> by_byte_;  // byte-level, or <0xNN> entries for the fallback
  MergeTable merges_;
};

}  // namespace mpinfer::text
