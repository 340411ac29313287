// RELIABILITY.md §5, cases 24, 25 and 28: files that lie.
#include "lib/model/safetensors.h"

#include <unistd.h>

#include "tests/support/catch.h"
#include "tests/unit/model/model_folder.h"

namespace mpinfer::model::test {
namespace {

const std::string kFile = "model.safetensors";
const std::string kIndex = "model.safetensors.index.json";

std::string refusal_of_file(const std::string& bytes) {
  const ModelFolder folder;
  folder.write(kFile, bytes);
  return refusal_of([&] { const Checkpoint checkpoint(folder.path()); });
}

std::string refusal_of_header(const std::string& header, size_t data_bytes) {
  return refusal_of_file(safetensors_bytes(header, std::string(data_bytes, 'x')));
}

TEST_CASE("a valid file: tensors by name, absolute offsets, metadata and empty tensors") {
  const ModelFolder folder;
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]},)"
      R"("a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
      R"("none":{"dtype":"F32","shape":[0,5],"data_offsets":[12,12]},)"
      R"("scalar":{"dtype":"U8","shape":[],"data_offsets":[12,13]}}   )";
  folder.write(kFile, safetensors_bytes(header, std::string(13, 'x')));
  const Checkpoint checkpoint(folder.path());
  CHECK(checkpoint.tensors().size() == 4);
  REQUIRE(checkpoint.find("b") != nullptr);
  CHECK(checkpoint.find("b")->offset == 8 + std::ssize(header) + 4);
  CHECK(checkpoint.find("b")->bytes == 8);
  CHECK(checkpoint.find("b")->shape[1] == 2);
  CHECK(checkpoint.find("scalar")->rank == 0);
  CHECK(checkpoint.find("c") == nullptr);
}

TEST_CASE("lengths of file and header") {
  CHECK_THAT(refusal_of_file("abc"), Contains("no safetensors file"));
  CHECK_THAT(refusal_of_file(safetensors_bytes(1'000'000'000'000, "{}", "")),
             Contains("header of 1000000000000 bytes"));
  CHECK_THAT(refusal_of_file(safetensors_bytes(~0ULL, "{}", "")), Contains("limit is 100000000"));
  CHECK_THAT(refusal_of_file(safetensors_bytes(3, "{}", "")), Contains("truncated"));
  CHECK_THAT(refusal_of_file(safetensors_bytes("", "")), Contains("start with '{'"));
  CHECK_THAT(refusal_of_file(safetensors_bytes(" {}", "")), Contains("start with '{'"));
  CHECK_THAT(refusal_of_header("{}", 1), Contains("1 bytes after the last tensor"));
}

TEST_CASE("offsets must tile the data") {
  const auto two = [](const std::string& first, const std::string& second) {
    return fmt::format(R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":[{}]}},)"
                       R"("b":{{"dtype":"U8","shape":[4],"data_offsets":[{}]}}}})",
                       first, second);
  };
  CHECK(refusal_of_header(two("0,4", "4,8"), 8).empty());
  CHECK_THAT(refusal_of_header(two("0,4", "4,8"), 7), Contains("b") && Contains("truncated"));
  CHECK_THAT(refusal_of_header(two("0,4", "4,8"), 9), Contains("after the last tensor"));
  CHECK_THAT(refusal_of_header(two("0,4", "3,7"), 8), Contains("overlap"));
  CHECK_THAT(refusal_of_header(two("0,4", "0,4"), 4), Contains("overlap"));
  CHECK_THAT(refusal_of_header(two("0,4", "5,9"), 9), Contains("hole"));
  CHECK_THAT(refusal_of_header(two("1,5", "5,9"), 9), Contains("hole"));
  CHECK_THAT(refusal_of_header(two("4,0", "4,8"), 8), Contains("begin <= end"));
  CHECK_THAT(refusal_of_header(two("0", "4,8"), 8), Contains("[begin, end]"));
  CHECK_THAT(refusal_of_header(two("0,4,5", "4,8"), 8), Contains("[begin, end]"));
  CHECK_THAT(refusal_of_header(two("-1,4", "4,8"), 8), Contains("number -1"));
  CHECK_THAT(refusal_of_header(two("0,4", "4,9223372036854775807"), 8), Contains("truncated"));
  CHECK_THAT(refusal_of_header(two("0,4", "4,18446744073709551615"), 8), Contains("63 bits"));
}

TEST_CASE("a tensor's own fields") {
  const auto tensor = [](const std::string& fields) { return R"({"t":{)" + fields + "}}"; };
  CHECK_THAT(refusal_of_header(tensor(R"("dtype":"U8","shape":[5],"data_offsets":[0,4])"), 4),
             Contains("need 5 bytes, data_offsets give 4"));
  CHECK_THAT(refusal_of_header(tensor(R"("dtype":"Q4","shape":[4],"data_offsets":[0,4])"), 4),
             Contains("unknown dtype \"Q4\""));
  CHECK_THAT(
      refusal_of_header(
          tensor(R"("dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,4])"), 4),
      Contains("overflows"));
  CHECK_THAT(
      refusal_of_header(tensor(R"("dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4])"), 4),
      Contains("dtype is given twice"));
  CHECK_THAT(refusal_of_header(tensor(R"("dtype":"U8","shape":[4])"), 4), Contains("missing"));
  CHECK_THAT(refusal_of_header(tensor(R"("dtype":"U8","shape":4,"data_offsets":[0,4])"), 4),
             Contains("number 4"));
  CHECK_THAT(refusal_of_header(tensor(R"("dtype":"U8","shape":[[4]],"data_offsets":[0,4])"), 4),
             Contains("a list"));
  CHECK_THAT(refusal_of_header(tensor(R"("dtype":"U8","shape":[4.5],"data_offsets":[0,4])"), 4),
             Contains("4.5"));
  CHECK_THAT(refusal_of_header(
                 tensor(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,4])"), 4),
             Contains("more than 8 dimensions"));
  CHECK_THAT(refusal_of_header(tensor(R"("dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1)"), 4),
             Contains("unknown key x"));
  CHECK_THAT(refusal_of_header(R"({"t":7})", 0), Contains("number 7"));
  CHECK_THAT(refusal_of_header(R"({"t":[]})", 0), Contains("a list"));
  CHECK_THAT(refusal_of_header(R"({"__metadata__":{"a":{}}})", 0), Contains("an object"));
}

TEST_CASE("the header's JSON") {
  const std::string one = R"("t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})";
  CHECK_THAT(refusal_of_header("{" + one + "," + one + "}", 4), Contains("t is listed twice"));
  CHECK_THAT(refusal_of_header("{" + one, 4), Contains("not valid JSON"));
  CHECK_THAT(refusal_of_header("{" + one + "} {}", 4), Contains("not valid JSON"));
  CHECK_THAT(refusal_of_header("{\"\xff\xfe\":{}}", 0), Contains("not valid JSON"));
  CHECK_THAT(refusal_of_header("{" + std::string(100'000, '['), 0), Contains("not valid JSON"));
  CHECK_THAT(refusal_of_header(R"({"t":)" + std::string(100'000, '['), 0), Contains("a list"));
  CHECK_THAT(refusal_of_header(R"({"t":{"shape":[)" + std::string(1'000'000, '9') + "]}}", 0),
             Contains("not valid JSON"));
}

TEST_CASE("which files a directory gives") {
  const ModelFolder folder;
  const auto refusal = [&] {
    return refusal_of([&] { const Checkpoint checkpoint(folder.path()); });
  };
  CHECK_THAT(refusal(), Contains("neither model.safetensors nor"));
  folder.write("pytorch_model.bin", "PK");
  CHECK_THAT(refusal(), Contains("pickled and never opened"));
  std::filesystem::create_directory(folder.path() + "/" + kFile);
  CHECK_THAT(refusal(), Contains("not a regular file"));
}

TEST_CASE("index.json") {
  const ModelFolder folder;
  const std::string header = R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
  folder.write("a.safetensors", safetensors_bytes(header, "data"));
  folder.write("b.safetensors", safetensors_bytes(header, "data"));
  const auto refusal = [&](const std::string& index) {
    folder.write(kIndex, index);
    return refusal_of([&] { const Checkpoint checkpoint(folder.path()); });
  };
  const auto maps = [&](const std::string& file) {
    return refusal(R"({"metadata":{"total_size":4},"weight_map":{"t":")" + file + R"("}})");
  };
  CHECK(maps("a.safetensors").empty());
  CHECK_THAT(maps("../a.safetensors"), Contains("not one plain path component"));
  CHECK_THAT(maps("/etc/passwd"), Contains("not one plain path component"));
  CHECK_THAT(maps("x\\\\a.safetensors"), Contains("not one plain path component"));
  CHECK_THAT(maps("a\\u0000.safetensors"), Contains("not one plain path component"));
  CHECK_THAT(maps(".a.safetensors"), Contains("not one plain path component"));
  CHECK_THAT(maps(""), Contains("not one plain path component"));
  CHECK_THAT(maps(std::string(300, 'a')), Contains("not one plain path component"));
  CHECK_THAT(maps("pytorch_model.bin"), Contains("pickled"));
  CHECK_THAT(maps("weights.npz"), Contains(".safetensors"));
  CHECK_THAT(maps("c.safetensors"), Contains("not in the directory"));
  CHECK_THAT(refusal(R"({"weight_map":{"t":"a.safetensors","t":"a.safetensors"}})"),
             Contains("t twice"));
  CHECK_THAT(refusal(R"({"weight_map":{"u":"a.safetensors"}})"), Contains("tensor u"));
  CHECK_THAT(refusal(R"({"weight_map":{"t":"a.safetensors","u":"b.safetensors"}})"),
             Contains("t is also in"));
  CHECK_THAT(refusal(R"({"weight_map":{"t":7}})"), Contains("where a file name belongs"));
  CHECK_THAT(refusal(R"({"weight_map":["t"]})"), Contains("where a file name belongs"));
  CHECK_THAT(refusal(R"({"weight_map":{}})"), Contains("weight_map is empty"));
  CHECK_THAT(refusal("{}"), Contains("weight_map is missing"));
  CHECK_THAT(refusal("[]"), Contains("not an object"));
  CHECK_THAT(refusal(R"({"metadata":)" + std::string(100'000, '[')), Contains("deeper than 32"));
}

TEST_CASE("an index of ten million entries is refused by its size") {
  const ModelFolder folder;
  folder.write(kIndex, "{");
  std::filesystem::resize_file(folder.path() + "/" + kIndex, 500'000'000);
  CHECK_THAT(refusal_of([&] { const Checkpoint checkpoint(folder.path()); }),
             Contains("500000000 bytes, the limit is 67108864"));
}

TEST_CASE("an index of too many entries is refused by their number") {
  std::string index = R"({"weight_map":{)";
  for (int i = 0; i <= 1'000'000; ++i) index += fmt::format(R"("{}":"",)", i);
  CHECK_THAT(refusal_of([&] { parse_index(index, "index"); }), Contains("1000000"));
}

TEST_CASE("a file that is cut while it is read is named") {
  const ModelFolder folder;
  folder.write("weights", std::string(100'000, 'x'));
  const ModelFile file(folder.path(), "weights");
  std::string bytes(100'000, '\0');
  REQUIRE(::truncate(file.path().c_str(), 60'000) == 0);
  CHECK_THAT(refusal_of([&] { file.read(bytes.data(), 0, 100'000); }),
             Contains("ends at offset 60000") && Contains("weights"));
}

TEST_CASE("a symlink is followed: hub caches are made of them") {
  const ModelFolder blobs;
  const ModelFolder folder;
  const std::string header = R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
  blobs.write("blob", safetensors_bytes(header, "data"));
  std::filesystem::create_symlink(blobs.path() + "/blob", folder.path() + "/" + kFile);
  CHECK(Checkpoint(folder.path()).find("t") != nullptr);
}

}  // namespace
}  // namespace mpinfer::model::test
