// How rows become prompts, from the options: the templates that the request builder borrows, and
// its options. Templates are parsed once, before any weights are read.
#pragma once

#include <optional>

#include "apps/options.h"
#include "lib/job/request_builder.h"
#include "lib/text/chat_template.h"

namespace mpinfer::apps {

class RowSetup {
 public:
  // directory: of the tokenizer, or empty. Throws Error(kUsage) for files of the flags,
  // Error(kModelRefused) for the model's.
  RowSetup(const Options& options, const std::string& directory);

  // What the flags say of rows; model lengths and sampling defaults are the caller's. Borrows this.
  job::BuilderOptions builder_options(const Options& options) const;
  // When the run began, as strftime_now sees it.
  void set_now(int64_t seconds);

 private:
  std::optional<text::ChatTemplate> chat_;
  std::optional<text::PromptTemplate> prompt_;
};

}  // namespace mpinfer::apps
