// Decoders of tokenizer.json as streams: each stage takes tokens one by one and hands on what is
// certain, so that decoding a whole text and decoding it token by token are the same code.
// ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip and sequences of them; others are
// refused.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lib/text/json_fields.h"

namespace mpinfer::text {

using Emit = std::function<void(std::string_view)>;

// One stage at work on one text.
class DecodeStage {
 public:
  virtual ~DecodeStage() = default;
  virtual void push(std::string_view token, const Emit& emit) = 0;
  virtual void finish(const Emit&) {}
};

using DecodeStageFactory = std::function<std::unique_ptr<DecodeStage>()>;

// field: tokenizer.json's "decoder", possibly null (tokens with a space between them, as Hugging
// Face does).
std::vector<DecodeStageFactory> make_decoder(const Field& field);

// A text being decoded.
class DecodeStream {
 public:
  explicit DecodeStream(const std::vector<DecodeStageFactory>& decoder);
  // Appends to out what is certain after this token / at the end.
  void push(std::string& out, std::string_view token);
  void finish(std::string& out);

 private:
  void run(std::string& out, size_t stage, std::string_view token);
  std::vector<std::unique_ptr<DecodeStage>> stages_;
};

}  // namespace mpinfer::text
