#include "lib/text/jinja/template.h"

#include <fmt/core.h>

#include "lib/text/jinja/interpreter.h"
#include "lib/text/jinja/parser.h"
#include "lib/text/utf8.h"

namespace mpinfer::text::jinja {
namespace {

constexpr size_t kMaxTemplateBytes = 1 << 20;

tl::unexpected<RowError> refuse(std::string message) {
  return tl::unexpected(RowError{"template_error", std::move(message), ""});
}

}  // namespace

struct Template::Tree {
  Body body;
};

Template::Template(std::unique_ptr<Tree> tree) : tree_(std::move(tree)) {}
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;
Template::~Template() = default;

Expected<Template> Template::parse(std::string_view source) {
  if (source.size() > kMaxTemplateBytes)
    return refuse(fmt::format("the template has {} bytes; the limit is {}", source.size(),
                              kMaxTemplateBytes));
  if (find_invalid_utf8(source) != std::string_view::npos)
    return refuse("the template is not valid UTF-8");
  try {
    auto tree = std::make_unique<Tree>();
    tree->body = jinja::parse(source);
    return Template(std::move(tree));
  } catch (const TemplateError& error) {
    return refuse(fmt::format("the template cannot be read: {}", error.what()));
  }
}

Expected<std::string> Template::render(const Dict& variables, std::time_t now) const {
  Interpreter interpreter(variables, now);
  try {
    return interpreter.render(tree_->body);
  } catch (const TemplateError& error) {
    return refuse(fmt::format("line {} of the template: {}", interpreter.line(), error.what()));
  }
}

}  // namespace mpinfer::text::jinja
