// A template's tree from its text, by jinja2's grammar and precedence. Refuses with TemplateError:
// syntax errors, nesting beyond 100, and tags of template inheritance and inclusion.
#pragma once

#include <string_view>

#include "lib/text/jinja/ast.h"

namespace mpinfer::text::jinja {

Body parse(std::string_view source);

}  // namespace mpinfer::text::jinja
