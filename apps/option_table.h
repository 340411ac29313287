// The table of options: one entry drives the flag, its MPINFER_ variable, its key in the TOML file,
// its help text and how its value lands in Options. INTERFACE: the table of apps/options.md is this
// one.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "apps/options.h"

namespace mpinfer::apps {

struct OptionSpec {
  std::string name;     // long flag without dashes
  std::string aliases;  // further CLI11 names: "-o", "--tensor-parallel-size"
  std::string value;    // what the help calls its value; empty: a switch
  std::string group;    // heading in the help
  std::string help;
  bool list = false;                                                   // takes several values
  std::function<void(Options&, const std::vector<std::string>&)> set;  // throws Error(kUsage)
};

const std::vector<OptionSpec>& option_table();
// Names of the options a command takes, in the order of the table.
std::vector<std::string> options_of(Command command);

// Of candidates, the one nearest to name by edit distance; empty if none is near.
std::string nearest(const std::string& name, const std::vector<std::string>& candidates);

}  // namespace mpinfer::apps
