#include "tests/unit/model/model_folder.h"

#include <stdlib.h>

#include <fstream>
#include <iterator>

namespace mpinfer::model::test {
namespace fs = std::filesystem;

std::string refusal_of(const std::function<void()>& fn, ExitCode code) {
  try {
    fn();
  } catch (const Error& error) {
    if (error.exit_code() == code) return error.what();
    return fmt::format("wrong exit code {}: {}", static_cast<int>(error.exit_code()), error.what());
  }
  return "";
}

ModelFolder::ModelFolder() {
  std::string pattern = (fs::temp_directory_path() / "mpinfer-model-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp " + pattern);
  path_ = pattern;
}

ModelFolder::ModelFolder(const std::string& golden_name) : ModelFolder() {
  fs::copy(fs::path(MPINFER_GOLDEN_DIR) / golden_name, path_);
  fs::remove(path_ / "golden.safetensors");
}

ModelFolder::~ModelFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void ModelFolder::write(const std::string& name, const std::string& bytes) const {
  std::ofstream(path_ / name, std::ios::binary) << bytes;
}

std::string ModelFolder::read(const std::string& name) const {
  std::ifstream in(path_ / name, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void ModelFolder::remove(const std::string& name) const {
  fs::remove(path_ / name);
}

void ModelFolder::replace(const std::string& name, const std::string& what,
                          const std::string& with) const {
  std::string text = read(name);
  const size_t at = text.find(what);
  if (at == std::string::npos) throw std::runtime_error(name + " does not hold " + what);
  write(name, text.replace(at, what.size(), with));
}

std::string safetensors_bytes(uint64_t length, const std::string& header, const std::string& data) {
  std::string out;
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(length >> (8 * i)));
  return out + header + data;
}

std::string safetensors_bytes(const std::string& header, const std::string& data) {
  return safetensors_bytes(header.size(), header, data);
}

}  // namespace mpinfer::model::test
