// Byte ranges of top-level members, and no harm from any bytes.
#include "lib/io/field_scanner.h"

#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "tests/support/catch.h"

using mpinfer::io::Member;
using mpinfer::io::MemberScanner;

namespace {

std::vector<std::pair<std::string, std::string>> members_of(std::string_view text, bool* ok) {
  std::vector<std::pair<std::string, std::string>> members;
  MemberScanner scanner(text);
  Member member;
  while (scanner.next(&member)) members.emplace_back(member.decoded_key(), member.value);
  *ok = scanner.ok();
  return members;
}

nlohmann::json random_value(std::mt19937& random, int depth) {
  switch (random() % (depth > 3 ? 4 : 6)) {
    case 0:
      return nullptr;
    case 1:
      return static_cast<int>(random() % 1000) - 500;
    case 2:
      return 0.5 * static_cast<double>(random() % 100);
    case 3: {
      static const std::string kAlphabet = "a\"\\{}[]:, \n\t/\x01é";
      std::string text;
      for (auto n = random() % 6; n > 0; --n) text += kAlphabet[random() % 14];
      return text;
    }
    case 4: {
      nlohmann::json array = nlohmann::json::array();
      for (auto n = random() % 4; n > 0; --n) array.push_back(random_value(random, depth + 1));
      return array;
    }
    default: {
      nlohmann::json object = nlohmann::json::object();
      for (auto n = random() % 4; n > 0; --n) {
        object[std::string(1 + random() % 3, "k\"\\"[random() % 3])] =
            random_value(random, depth + 1);
      }
      return object;
    }
  }
}

}  // namespace

TEST_CASE("members, their values and their raw text") {
  MemberScanner scanner(R"(  {"a" : 1 , "b\"c":"x\\" ,"d":{"a":[1,"}"]},"e":[]  } )");
  Member member;
  REQUIRE(scanner.next(&member));
  CHECK(member.key == "a");
  CHECK(member.value == "1");
  CHECK(member.text == R"("a" : 1)");
  REQUIRE(scanner.next(&member));
  CHECK(member.decoded_key() == "b\"c");
  CHECK(member.value == R"("x\\")");
  REQUIRE(scanner.next(&member));
  CHECK(member.value == R"({"a":[1,"}"]})");
  REQUIRE(scanner.next(&member));
  CHECK(member.value == "[]");
  CHECK_FALSE(scanner.next(&member));
  CHECK(scanner.ok());
}

TEST_CASE("an empty object is one; other values are not") {
  bool ok = false;
  CHECK(members_of("{}", &ok).empty());
  CHECK(ok);
  for (const char* text :
       {"", "  ", "[1]", "null", "1", "\"a\"", "{", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\" 1}",
        "{a:1}", "{\"a\":1 \"b\":2}", "{\"a\":\"x}", "{\"a\\\":1}"}) {
    members_of(text, &ok);
    CHECK_FALSE(ok);
  }
}

TEST_CASE("nesting beyond the limit is given up") {
  bool ok = true;
  members_of("{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}", &ok);
  CHECK_FALSE(ok);
  members_of("{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}", &ok);
  CHECK(ok);
}

TEST_CASE("escaped keys are decoded") {
  bool ok = false;
  const auto members = members_of(R"({"\u0069ndex":1})", &ok);
  REQUIRE(members.size() == 1);
  CHECK(members[0].first == "index");
}

TEST_CASE("random objects: the same members as a JSON parser finds") {
  std::mt19937 random(11);
  for (int round = 0; round < 2000; ++round) {
    nlohmann::json object = nlohmann::json::object();
    for (const char* key : {"m0", "m1", "m2", "m3"}) object[key] = random_value(random, 0);
    bool ok = false;
    const auto members = members_of(object.dump(random() % 2 == 0 ? -1 : 1), &ok);
    REQUIRE(ok);
    REQUIRE(members.size() == object.size());
    for (const auto& [key, value] : members) CHECK(nlohmann::json::parse(value) == object[key]);
  }
}

TEST_CASE("every prefix and every changed byte ends without harm") {
  const std::string text = R"({"a":"x\"y","b":[1,{"c":"}"}],"d":-1.5e3,"e":null})";
  bool ok = true;
  for (size_t n = 0; n < text.size(); ++n) {
    members_of(text.substr(0, n), &ok);
    CHECK_FALSE(ok);
    for (const char c : std::string("\"\\{}[],: x\0", 11)) {
      std::string changed = text;
      changed[n] = c;
      members_of(changed, &ok);
    }
  }
}
