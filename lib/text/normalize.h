// Normalisers of tokenizer.json: NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip and
// sequences of them. Others are refused.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lib/core/result.h"
#include "lib/text/json_fields.h"

namespace mpinfer::text {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // text: valid UTF-8, changed in place.
  virtual Expected<void> apply(std::string& text) const = 0;
};

// field: tokenizer.json's "normalizer", possibly null (does nothing). Throws Error(kModelRefused).
std::unique_ptr<Normalizer> make_normalizer(const Field& field);

}  // namespace mpinfer::text
