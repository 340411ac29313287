// Values of the template language, as Python has them: undefined, none, booleans, integers, floats,
// text, lists and tuples, dictionaries in order, namespaces, loops and callables. Lists and
// dictionaries never change after they are made, so they hold no cycles; a namespace may hold
// neither a namespace nor a loop. Every operation that can grow is charged to a Budget.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace mpinfer::text::jinja {

// What a template did wrong, or asked for beyond a limit. Leaves the interpreter as a RowError.
struct TemplateError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Steps, bytes and nesting that one rendering may use.
class Budget {
 public:
  static constexpr int64_t kMaxSteps = 1'000'000;
  static constexpr int64_t kMaxBytes = int64_t{512} << 20;     // of all texts and lists made
  static constexpr int64_t kMaxTextBytes = int64_t{16} << 20;  // of one text
  static constexpr int kMaxDepth = 100;                        // of values, macros, loops
  void step(int64_t count = 1);
  void part();               // of an expression: an eighth of a step
  void bytes(size_t count);  // of one text

 private:
  static constexpr int64_t kPartsOfStep = 8;
  int64_t parts_ = 0;
  int64_t bytes_ = 0;
};

class Value;
class Dict;
struct Namespace;
struct Loop;
struct Callable;
using Values = std::vector<Value>;

struct Undefined {
  std::shared_ptr<const std::string> name;  // for messages
};
struct None {};
struct BigInteger {  // beyond 64 bits: it can be printed, not reckoned with
  std::shared_ptr<const std::string> digits;
};
struct List {
  Values items;
  bool tuple = false;
  int depth = 1;
  bool holds_mutable = false;
};

using Text = std::shared_ptr<const std::string>;

class Value {
 public:
  using Variant = std::variant<Undefined, None, bool, int64_t, double, BigInteger, Text,
                               std::shared_ptr<const List>, std::shared_ptr<const Dict>,
                               std::shared_ptr<Namespace>, std::shared_ptr<Loop>,
                               std::shared_ptr<const Callable>>;
  Value() = default;  // undefined
  template <class T>
  requires std::is_constructible_v<Variant, std::in_place_type_t<T>, T>
  explicit Value(T value) : variant_(std::in_place_type<T>, std::move(value)) {}
  static Value none() { return Value(None{}); }
  static Value text(std::string text) {
    return Value(Text(std::make_shared<const std::string>(std::move(text))));
  }
  static Value undefined(std::string name);
  // Throw TemplateError when nested beyond the limit.
  static Value list(Values items, bool tuple = false);
  static Value dict(Dict dict);

  template <class T>
  const T* as() const {
    return std::get_if<T>(&variant_);
  }
  bool is_undefined() const { return as<Undefined>() != nullptr; }
  bool is_none() const { return as<None>() != nullptr; }
  bool is_text() const { return as<Text>() != nullptr; }
  const std::string* text_or_null() const {
    const auto* text = as<Text>();
    return text == nullptr ? nullptr : text->get();
  }
  const List* list_or_null() const {
    const auto* list = as<std::shared_ptr<const List>>();
    return list == nullptr ? nullptr : list->get();
  }
  const Dict* dict_or_null() const {
    const auto* dict = as<std::shared_ptr<const Dict>>();
    return dict == nullptr ? nullptr : dict->get();
  }
  // Integer value of an integer or a boolean.
  bool integer(int64_t* out) const;
  bool number(double* out) const;
  int depth() const;
  bool holds_mutable() const;

 private:
  Variant variant_;
};

// Keys in order of insertion; the last value of a key wins and keeps the first one's place.
class Dict {
 public:
  void set(const Value& key, Value value);  // TemplateError: not hashable
  void set(std::string key, Value value);
  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;
  const std::vector<std::pair<Value, Value>>& items() const { return items_; }
  int depth() const { return depth_; }
  bool holds_mutable() const { return holds_mutable_; }

 private:
  void insert(std::string hash_key, const Value& key, Value value);
  const Value* lookup(const std::string& hash_key) const;
  std::vector<std::pair<Value, Value>> items_;
  std::unordered_map<std::string, size_t> index_;
  int depth_ = 1;
  bool holds_mutable_ = false;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> members;
  const Value* find(std::string_view name) const;
  void set(std::string_view name, Value value);  // TemplateError for what could make a cycle
};

std::string_view type_name(const Value& value);  // Python's
bool truth(const Value& value);
std::string to_text(const Value& value, Budget& budget);  // Python's str()
std::string to_repr(const Value& value, Budget& budget);  // Python's repr()
bool equal(const Value& a, const Value& b, Budget& budget);
// Negative, zero, positive. TemplateError for types without an order between them.
int compare(const Value& a, const Value& b, Budget& budget);
// What a for loop goes through: items, keys, characters. TemplateError for what has none.
Values iterate(const Value& value, Budget& budget);
bool contains(const Value& container, const Value& item, Budget& budget);
std::string float_text(double value);  // Python's repr of a float

}  // namespace mpinfer::text::jinja
