#include "lib/model/safetensors_json.h"

#include <nlohmann/json.hpp>
#include <unordered_set>

#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::model {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxNameBytes = 1024;
constexpr int32_t kMaxIndexDepth = 32;

// What both handlers share: depth, refusal, and the parser's own errors.
class Handler {
 public:
  explicit Handler(const std::string& path) : path_(path) {}

  bool parse_error(size_t position, const std::string& token, const Json::exception&) {
    refuse(fmt::format("not valid JSON at byte {} (near {})", position, printable(token, 40)));
  }

 protected:
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ExitCode::kModelRefused, fmt::format("{}: {}", path_, what));
  }

 private:
  const std::string& path_;
};

class HeaderHandler : public Handler {
 public:
  using Handler::Handler;

  bool null() { unexpected("null"); }
  bool boolean(bool) { unexpected("a boolean"); }
  bool number_float(double, const std::string& text) {
    unexpected(fmt::format("the number {}", printable(text, 40)));
  }
  bool number_integer(int64_t value) { unexpected(fmt::format("the number {}", value)); }
  bool binary(Json::binary_t&) { unexpected("binary"); }

  bool number_unsigned(uint64_t value) {
    if (place_ != Place::kList) unexpected(fmt::format("the number {}", value));
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      refuse(fmt::format("tensor {}: {} has the number {}, over 63 bits", printable(tensor_.name),
                         field_name(), value));
    }
    const auto number = static_cast<int64_t>(value);
    if (field_ == Field::kShape) {
      if (tensor_.rank == StoredTensor::kMaxRank) {
        refuse(fmt::format("tensor {}: more than {} dimensions", printable(tensor_.name),
                           StoredTensor::kMaxRank));
      }
      tensor_.shape[static_cast<size_t>(tensor_.rank++)] = number;
    } else {
      if (num_offsets_ == 2) refuse_offsets();
      offsets_[static_cast<size_t>(num_offsets_++)] = number;
    }
    return true;
  }

  bool string(std::string& value) {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kTensor || field_ != Field::kDtype) unexpected("a string");
    if (width_of(value) == 0) {
      refuse(fmt::format("tensor {}: unknown dtype \"{}\"", printable(tensor_.name),
                         printable(value, 40)));
    }
    tensor_.dtype = value;
    return true;
  }

  bool start_object(size_t) {
    if (place_ == Place::kOutside) {
      place_ = Place::kTop;
    } else if (place_ == Place::kTop) {
      place_ = in_metadata_ ? Place::kMetadata : Place::kTensor;
      seen_ = {};
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(std::string& name) {
    if (name.size() > kMaxNameBytes) refuse("a key longer than 1024 bytes");
    if (place_ == Place::kTop) {
      if (!names_.insert(name).second) {
        refuse(fmt::format("tensor {} is listed twice", printable(name)));
      }
      in_metadata_ = name == "__metadata__";
      tensor_ = {};
      tensor_.name = name;
      num_offsets_ = 0;
    } else if (place_ == Place::kMetadata) {
      if (!metadata_names_.insert(name).second) {
        refuse(fmt::format("__metadata__ has the key {} twice", printable(name)));
      }
    } else {
      tensor_key(name);
    }
    return true;
  }

  bool end_object() {
    if (place_ == Place::kTensor) {
      if (!seen_[0] || !seen_[1] || !seen_[2]) {
        refuse(fmt::format("tensor {}: dtype, shape or data_offsets is missing",
                           printable(tensor_.name)));
      }
      if (num_offsets_ != 2 || offsets_[1] < offsets_[0]) refuse_offsets();
      tensor_.offset = offsets_[0];
      tensor_.bytes = offsets_[1] - offsets_[0];
      if (tensors_.size() == kMaxTensors) {
        refuse(fmt::format("more than {} tensors", kMaxTensors));
      }
      tensors_.push_back(tensor_);
    }
    place_ = place_ == Place::kTop ? Place::kOutside : Place::kTop;
    return true;
  }

  bool start_array(size_t) {
    if (place_ != Place::kTensor || field_ == Field::kDtype) unexpected("a list");
    place_ = Place::kList;
    return true;
  }
  bool end_array() {
    place_ = Place::kTensor;
    return true;
  }

  std::vector<StoredTensor> take() { return std::move(tensors_); }

 private:
  enum class Place : uint8_t { kOutside, kTop, kTensor, kMetadata, kList };
  enum class Field : uint8_t { kDtype, kShape, kOffsets };

  void tensor_key(const std::string& name) {
    if (name == "dtype") {
      field_ = Field::kDtype;
    } else if (name == "shape") {
      field_ = Field::kShape;
    } else if (name == "data_offsets") {
      field_ = Field::kOffsets;
    } else {
      refuse(fmt::format("tensor {}: unknown key {}", printable(tensor_.name), printable(name)));
    }
    if (std::exchange(seen_[static_cast<size_t>(field_)], true)) {
      refuse(fmt::format("tensor {}: {} is given twice", printable(tensor_.name), field_name()));
    }
  }

  const char* field_name() const {
    constexpr std::array<const char*, 3> kNames = {"dtype", "shape", "data_offsets"};
    return kNames[static_cast<size_t>(field_)];
  }

  [[noreturn]] void refuse_offsets() const {
    refuse(fmt::format("tensor {}: data_offsets is not [begin, end] with begin <= end",
                       printable(tensor_.name)));
  }

  [[noreturn]] void unexpected(const std::string& what) const {
    if (place_ == Place::kTensor || place_ == Place::kList) {
      refuse(
          fmt::format("tensor {}: {} cannot hold {}", printable(tensor_.name), field_name(), what));
    }
    refuse(fmt::format("header: {} under {} is not allowed", what, printable(tensor_.name)));
  }

  Place place_ = Place::kOutside;
  Field field_ = Field::kDtype;
  bool in_metadata_ = false;
  std::array<bool, 3> seen_{};
  std::array<int64_t, 2> offsets_{};
  int32_t num_offsets_ = 0;
  StoredTensor tensor_;
  std::vector<StoredTensor> tensors_;
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> metadata_names_;
};

// {"metadata": anything, "weight_map": {tensor: file}}.
class IndexHandler : public Handler {
 public:
  using Handler::Handler;

  bool null() { return value("null"); }
  bool boolean(bool) { return value("a boolean"); }
  bool number_float(double, const std::string&) { return value("a number"); }
  bool number_integer(int64_t) { return value("a number"); }
  bool number_unsigned(uint64_t) { return value("a number"); }
  bool binary(Json::binary_t&) { return value("binary"); }

  bool string(std::string& text) {
    if (!in_map()) return value("a string");
    if (entries_.size() == kMaxTensors) {
      refuse(fmt::format("weight_map has more than {} entries", kMaxTensors));
    }
    entries_.push_back({tensor_, text});
    return true;
  }

  bool key(std::string& name) {
    if (name.size() > kMaxNameBytes) refuse("a key longer than 1024 bytes");
    if (depth_ == 1) {
      if (name == "weight_map" && std::exchange(found_, true)) refuse("weight_map is given twice");
      in_weight_map_ = name == "weight_map";
    } else if (in_map()) {
      if (!names_.insert(name).second) {
        refuse(fmt::format("weight_map lists tensor {} twice", printable(name)));
      }
      tensor_ = name;
    }
    return true;
  }

  bool start_object(size_t) {
    if (in_map()) return value("an object");
    return enter();
  }
  bool end_object() { return leave(); }
  bool start_array(size_t) {
    if (depth_ == 0 || (in_weight_map_ && depth_ >= 1)) return value("a list");
    return enter();
  }
  bool end_array() { return leave(); }

  std::vector<IndexEntry> take() {
    if (!found_) refuse("weight_map is missing");
    if (entries_.empty()) refuse("weight_map is empty");
    return std::move(entries_);
  }

 private:
  bool in_map() const { return in_weight_map_ && depth_ == 2; }
  bool enter() {
    if (++depth_ > kMaxIndexDepth) refuse(fmt::format("nested deeper than {}", kMaxIndexDepth));
    return true;
  }
  bool leave() {
    --depth_;
    return true;
  }
  bool value(const char* what) const {
    if (depth_ == 0) refuse(fmt::format("is {}, not an object", what));
    if (in_weight_map_) refuse(fmt::format("weight_map holds {} where a file name belongs", what));
    return true;
  }

  int32_t depth_ = 0;
  bool in_weight_map_ = false;
  bool found_ = false;
  std::string tensor_;
  std::vector<IndexEntry> entries_;
  std::unordered_set<std::string> names_;
};

}  // namespace

std::vector<StoredTensor> parse_header_json(const std::string& text, const std::string& path) {
  HeaderHandler handler(path);
  Json::sax_parse(text, &handler);
  return handler.take();
}

std::vector<IndexEntry> parse_index(const std::string& text, const std::string& path) {
  IndexHandler handler(path);
  Json::sax_parse(text, &handler);
  return handler.take();
}

}  // namespace mpinfer::model
