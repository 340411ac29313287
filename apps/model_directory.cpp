#include "apps/model_directory.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::apps {
namespace {

namespace fs = std::filesystem;

bool is_component(const std::string& text) {
  return !text.empty() && text.front() != '.' && text.front() != '-' &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '.' || c == '-' || c == '_';
         });
}

}  // namespace

std::string find_model(const std::string& name, const std::string& hub_cache) {
  const size_t slash = name.find('/');
  std::error_code ignored;
  if (slash == std::string::npos || fs::exists(name, ignored)) return name;
  const std::string organisation = name.substr(0, slash);
  const std::string model = name.substr(slash + 1);
  if (!is_component(organisation) || !is_component(model)) return name;
  const fs::path repository = fs::path(hub_cache) / ("models--" + organisation + "--" + model);
  std::ifstream reference(repository / "refs" / "main");
  std::string commit;
  if (reference >> commit && is_component(commit)) {
    const fs::path snapshot = repository / "snapshots" / commit;
    if (fs::exists(snapshot / "config.json", ignored)) return snapshot.string();
  }
  throw Error(ExitCode::kModelRefused,
              fmt::format("--model {}: no such directory, and not in the hub cache {}; this would "
                          "download it: hf download {}",
                          printable(name), printable(hub_cache), printable(name)));
}

}  // namespace mpinfer::apps
