// The JSON of safetensors headers and index files through a SAX handler: nothing is built but the
// records themselves; duplicate keys, unknown keys, deep nesting and wrong types are refused.
#pragma once

#include <string>
#include <vector>

#include "lib/model/safetensors.h"

namespace mpinfer::model {

// Tensors in header order; offset is still relative to the data. path names the file in errors.
std::vector<StoredTensor> parse_header_json(const std::string& text, const std::string& path);

}  // namespace mpinfer::model
