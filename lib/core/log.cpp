#include "lib/core/log.h"

#include <spdlog/sinks/stdout_sinks.h>

#include <memory>

#include "lib/core/error.h"

namespace mpinfer {

void set_up_log(const LogOptions& options) {
  const auto level = spdlog::level::from_str(options.level);
  if (level == spdlog::level::off && options.level != "off") {
    throw Error(ExitCode::kUsage,
                fmt::format("--log-level {}: unknown level; use trace, debug, info, warning, error "
                            "or off",
                            printable(options.level)));
  }
  auto logger = std::make_shared<spdlog::logger>("mpinfer",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_level(level);
  logger->set_error_handler([](const std::string&) {});
  if (options.json) {
    logger->set_pattern(fmt::format(
        R"({{"time":"%Y-%m-%dT%H:%M:%S.%e","level":"%l","rank":{},"host":"{}","message":"%v"}})",
        options.rank, options.host));
  } else if (options.rank == 0) {
    logger->set_pattern("%H:%M:%S %^%l%$ %v");
  } else {
    logger->set_pattern(fmt::format("%H:%M:%S %^%l%$ [rank {}] %v", options.rank));
  }
  spdlog::set_default_logger(std::move(logger));
}

std::string printable(std::string_view s, size_t max_bytes) {
  std::string out;
  for (const char c : s) {
    if (out.size() >= max_bytes) {
      out += "…";
      break;
    }
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", byte);
    }
  }
  return out;
}

}  // namespace mpinfer
