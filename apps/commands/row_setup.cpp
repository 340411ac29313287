#include "apps/commands/row_setup.h"

namespace mpinfer::apps {

RowSetup::RowSetup(const Options& options, const std::string& directory) {
  if (!directory.empty() || !options.chat_template.empty())
    chat_ = text::ChatTemplate::load(directory, options.chat_template);
  if (!options.prompt_template.empty())
    prompt_ = text::PromptTemplate::load(options.prompt_template);
}

job::BuilderOptions RowSetup::builder_options(const Options& options) const {
  job::BuilderOptions builder;
  builder.field = options.field;
  builder.row_params = job::row_params(options.row_params);
  builder.too_long = job::too_long(options.too_long);
  if (chat_) builder.chat_template = &*chat_;
  if (prompt_) builder.prompt_template = &*prompt_;
  builder.system = options.system;
  builder.apply_chat_template = options.apply_chat_template;
  builder.served_model_name = options.served_model_name;
  return builder;
}

void RowSetup::set_now(int64_t seconds) {
  if (chat_) chat_->set_now(static_cast<std::time_t>(seconds));
}

}  // namespace mpinfer::apps
