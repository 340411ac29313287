// A folder with a tokenizer.json for a test, removed at its end, and the small tokenizers that
// make_tokenizers.py wrote.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lib/text/tokenizer.h"

namespace mpinfer::text::test {

class TokenizerFolder {
 public:
  TokenizerFolder();
  ~TokenizerFolder();
  TokenizerFolder(const TokenizerFolder&) = delete;
  TokenizerFolder& operator=(const TokenizerFolder&) = delete;

  // Writes tokenizer.json and loads it.
  std::unique_ptr<Tokenizer> load(std::string_view tokenizer_json) const;
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

// Names of the folders under tests/unit/text/tokenizers, sorted.
std::vector<std::string> small_tokenizers();
std::string small_tokenizer_path(const std::string& name);
std::string read_file(const std::string& path);

}  // namespace mpinfer::text::test
