#include "tests/unit/text/tokenizer_folder.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "lib/core/error.h"

namespace mpinfer::text::test {

TokenizerFolder::TokenizerFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "mpinfer-text-XXXXXX").string();
  MPINFER_CHECK(mkdtemp(name.data()) != nullptr, "no temporary folder");
  path_ = name;
}

TokenizerFolder::~TokenizerFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::unique_ptr<Tokenizer> TokenizerFolder::load(std::string_view tokenizer_json) const {
  std::ofstream(path_ / "tokenizer.json", std::ios::binary) << tokenizer_json;
  return Tokenizer::load(path());
}

std::vector<std::string> small_tokenizers() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(MPINFER_TOKENIZERS))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string small_tokenizer_path(const std::string& name) {
  return std::string(MPINFER_TOKENIZERS) + "/" + name;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace mpinfer::text::test
