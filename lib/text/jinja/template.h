// A chat or prompt template: jinja2 as transformers sets it up (trim_blocks, lstrip_blocks, loop
// controls, raise_exception, strftime_now, tojson without HTML escapes). Own bounded interpreter:
// no host object can be reached; steps ≤ 10⁶, depth ≤ 100, output ≤ 16 MiB, template ≤ 1 MiB.
#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <string_view>

#include "lib/core/result.h"
#include "lib/text/jinja/value.h"

namespace mpinfer::text::jinja {

class Template {
 public:
  // template_error naming the line.
  static Expected<Template> parse(std::string_view source);
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;
  ~Template();

  // variables: the context. now: what strftime_now speaks of. Thread-safe. template_error naming
  // the line.
  Expected<std::string> render(const Dict& variables, std::time_t now) const;

 private:
  struct Tree;
  explicit Template(std::unique_ptr<Tree> tree);
  std::unique_ptr<Tree> tree_;
};

}  // namespace mpinfer::text::jinja
