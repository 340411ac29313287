#include "apps/commands/rows.h"

#include "lib/io/file.h"
#include "lib/io/spool.h"

namespace mpinfer::apps {

void for_each_row(const Options& options, const std::function<void(const InputRow&)>& visit) {
  int64_t index = 0;
  for (const std::string& path : options.input) {
    io::Spooled spooled;
    if (io::needs_spool(path)) spooled = io::spool_input(path, "", /*reuse=*/false);
    const io::File file = io::open_input(spooled.path.empty() ? path : spooled.path);
    io::LineReader reader(file, 0, io::file_bytes(file));
    io::Line line;
    while (reader.next(&line)) {
      if (options.limit >= 0 && index >= options.skip + options.limit) return;
      if (index >= options.skip) visit({index, path, line});
      ++index;
    }
  }
}

}  // namespace mpinfer::apps
