#include "lib/text/postprocess.h"

#include <fmt/core.h>

namespace mpinfer::text {
namespace {

constexpr int kDeepest = 16;
constexpr int64_t kMostId = 1 << 24;

SpecialTokens read_template(const Field& field) {
  SpecialTokens tokens;
  const Field single = field.at("single");
  bool after = false;
  for (size_t i = 0; i < single.size(); ++i) {
    const Field piece = single.item(i);
    if (piece.has("Sequence")) {
      if (after) piece.refuse("the text may stand in the template once");
      after = true;
      continue;
    }
    const std::string name = piece.at("SpecialToken").at("id").text();
    const Field ids = field.at("special_tokens").at(name.c_str()).at("ids");
    for (size_t k = 0; k < ids.size(); ++k) {
      (after ? tokens.after : tokens.before)
          .push_back(static_cast<int32_t>(ids.item(k).integer(0, kMostId)));
    }
  }
  return tokens;
}

SpecialTokens read(const Field& field, int depth) {
  SpecialTokens tokens;
  if (field.is_null()) return tokens;
  if (depth > kDeepest) field.refuse("nested too deep");
  const std::string type = field.at("type").text();
  if (type == "ByteLevel") return tokens;
  if (type == "TemplateProcessing") return read_template(field);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    const auto id_of = [&](const char* name) {
      const Field pair = field.at(name);
      if (pair.size() != 2) pair.refuse("must be [token, id]");
      return static_cast<int32_t>(pair.item(1).integer(0, kMostId));
    };
    return {{id_of("cls")}, {id_of("sep")}};
  }
  if (type == "Sequence") {
    const Field list = field.at("processors");
    for (size_t i = 0; i < list.size(); ++i) {
      SpecialTokens more = read(list.item(i), depth + 1);
      // The first that says anything wraps the text, later ones wrap that.
      tokens.before.insert(tokens.before.begin(), more.before.begin(), more.before.end());
      tokens.after.insert(tokens.after.end(), more.after.begin(), more.after.end());
    }
    return tokens;
  }
  field.refuse(fmt::format("post-processor type {} is not known", type));
}

}  // namespace

SpecialTokens read_post_processor(const Field& field) {
  return read(field, 0);
}

}  // namespace mpinfer::text
