// The rows of the input one after the other, for the commands that go through them without an
// engine.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "apps/options.h"
#include "lib/io/jsonl.h"

namespace mpinfer::apps {

struct InputRow {
  int64_t index = 0;        // over all files, from 0
  const std::string& file;  // as given
  const io::Line& line;
};

// Rows [skip, skip + limit). Throws Error(kInputUnreadable).
void for_each_row(const Options& options, const std::function<void(const InputRow&)>& visit);

}  // namespace mpinfer::apps
