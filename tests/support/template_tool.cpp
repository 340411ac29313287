// Renders chat templates for scripts that compare them with transformers: each line of stdin is
// {"template", "variables"}, each line of stdout {"text"} or {"error"}.
#include <iostream>
#include <nlohmann/json.hpp>

#include "lib/text/jinja/json.h"
#include "lib/text/jinja/template.h"

int main() {
  using mpinfer::text::jinja::Template;
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto request = mpinfer::text::jinja::parse_json(line);
    const auto& members = *request.dict_or_null();
    const auto parsed = Template::parse(*members.find("template")->text_or_null());
    nlohmann::json answer;
    if (parsed) {
      const auto text = parsed->render(*members.find("variables")->dict_or_null(), 0);
      answer[text ? "text" : "error"] = text ? *text : text.error().message;
    } else {
      answer["error"] = parsed.error().message;
    }
    std::cout << answer.dump() << "\n";
  }
  return 0;
}
