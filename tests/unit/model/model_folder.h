// A temporary model directory whose files a test writes byte by byte, so that it can lie.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "lib/core/error.h"
#include "tests/support/catch.h"

namespace mpinfer::model::test {

#if __has_include(<catch2/catch_all.hpp>)
inline auto Contains(const std::string& part) {
  return Catch::Matchers::ContainsSubstring(part);
}
#else
using Catch::Matchers::Contains;
#endif

// What fn refused with; an empty string when it did not throw. Another exit code is named.
std::string refusal_of(const std::function<void()>& fn, ExitCode code = ExitCode::kModelRefused);

class ModelFolder {
 public:
  ModelFolder();                                         // empty
  explicit ModelFolder(const std::string& golden_name);  // a copy of tests/golden/NAME
  ~ModelFolder();
  ModelFolder(const ModelFolder&) = delete;
  ModelFolder& operator=(const ModelFolder&) = delete;

  std::string path() const { return path_.string(); }
  void write(const std::string& name, const std::string& bytes) const;
  std::string read(const std::string& name) const;
  void remove(const std::string& name) const;
  // The first occurrence of what in the file, replaced; it must be there.
  void replace(const std::string& name, const std::string& what, const std::string& with) const;

 private:
  std::filesystem::path path_;
};

// 8-byte length, header, data.
std::string safetensors_bytes(const std::string& header, const std::string& data);
std::string safetensors_bytes(uint64_t length, const std::string& header, const std::string& data);

}  // namespace mpinfer::model::test
