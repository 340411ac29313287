// Views, the arena and element conversions.
#include "lib/backend/workspace.h"

#include <bit>
#include <cmath>

#include "lib/backend/convert.h"
#include "lib/backend/cpu_backend.h"
#include "lib/backend/cuda_backend.h"
#include "tests/support/catch.h"

namespace mpinfer::backend {
namespace {

// The calls of a step; returns the addresses handed out.
std::vector<void*> a_step(Workspace& workspace) {
  std::vector<void*> data = {workspace.take(3, 5, DType::kF32).data};
  for (int layer = 0; layer < 2; ++layer) {
    const Workspace::Scope scope(workspace);
    data.push_back(workspace.take(1, 1000, DType::kBF16).data);
    const int64_t mark = workspace.mark();
    data.push_back(workspace.take_array<int64_t>(7));
    workspace.reset(mark);
    data.push_back(workspace.take(2, 2, DType::kU8).data);
  }
  data.push_back(workspace.take(0, 9, DType::kF32).data);
  return data;
}

// What an Error thrown by f says; empty if it throws none.
template <class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a measuring workspace records exactly the bytes that the same calls need") {
  Workspace measure;
  for (void* data : a_step(measure)) CHECK(data == nullptr);
  CHECK(measure.peak_bytes() == 256 + 2048 + 256);

  const auto backend = make_cpu_backend({});
  Workspace exact(backend->allocate(measure.peak_bytes()));
  const auto data = a_step(exact);
  for (void* piece : data) CHECK(std::bit_cast<uintptr_t>(piece) % Workspace::kAlignment == 0);
  CHECK(data[1] == data[4]);
  CHECK(data[2] == data[3]);
  CHECK(exact.peak_bytes() == measure.peak_bytes());

  Workspace small(backend->allocate(measure.peak_bytes() - 1));
  CHECK(contains(message_of([&] { a_step(small); }), "too small"));
}

TEST_CASE("slices stay inside their matrix and of nothing are nothing") {
  std::vector<float> values(60);
  const Matrix m = {.data = values.data(), .rows = 5, .cols = 10, .stride = 12};
  CHECK(m.slice_rows(2, 3).row<float>(1) == values.data() + 36);
  CHECK(m.slice_cols(4, 6).row<float>(1) == values.data() + 16);
  CHECK(m.slice_rows(5, 0).rows == 0);
  CHECK_THROWS_AS(m.slice_rows(3, 3), Error);
  CHECK_THROWS_AS(m.slice_rows(-1, 2), Error);
  CHECK_THROWS_AS(m.slice_cols(11, 0), Error);
  CHECK_THROWS_AS(m.slice_cols(1, 10), Error);
  const Matrix nothing = {.rows = 5, .cols = 10, .stride = 10};
  CHECK(nothing.slice_rows(2, 3).slice_cols(1, 2).data == nullptr);
}

TEST_CASE("memory that is not there is refused with the bytes asked for and free") {
  const auto backend = make_cpu_backend({});
  const MemoryInfo info = backend->memory_info();
  CHECK(info.free_bytes > 0);
  CHECK(info.free_bytes <= info.total_bytes);
  const int64_t too_much = info.total_bytes * 2;
  try {
    backend->allocate(too_much);
    FAIL("allocated twice the memory of the machine");
  } catch (const Error& error) {
    CHECK(error.exit_code() == ExitCode::kOutOfResource);
    CHECK(contains(error.what(), std::to_string(too_much)));
  }
}

TEST_CASE("backends that cannot be made say what can") {
  CHECK(contains(message_of([] { make_cpu_backend({.threads = 0}); }), "at least 1"));
  const std::string unknown = message_of([] { make_cpu_backend({.simd_target = "AVX9"}); });
  CHECK(contains(unknown, "AVX9"));
  CHECK(contains(unknown, best_simd_target()));
  if (cuda_device_count() == 0) CHECK_THROWS_AS(make_cuda_backend({}), Error);
}

TEST_CASE("a weight of another layout, or rows that do not fit, are refused") {
  const auto backend = make_cpu_backend({});
  const Buffer memory = backend->allocate(backend->packed_bytes(40, 8, DType::kBF16));
  Weight weight = backend->make_weight(memory.data(), 40, 8, DType::kBF16);
  const std::vector<float> source(40 * 8);
  CHECK_THROWS_AS(backend->pack_rows(weight, 1, 1, source.data(), DType::kF32, 40, 8), Error);
  CHECK_THROWS_AS(backend->pack_rows(weight, 0, 2, source.data(), DType::kF32, 21, 8), Error);
  CHECK_THROWS_AS(backend->pack_rows(weight, 0, 1, source.data(), DType::kI32, 40, 8), Error);
  weight.layout += 1;
  CHECK_THROWS_AS(backend->pack_rows(weight, 0, 1, source.data(), DType::kF32, 40, 8), Error);
}

TEST_CASE("f16 rounds to nearest even, all bit patterns survive the round trip") {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = float_from_f16(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      REQUIRE(std::isnan(float_from_f16(f16_from_float(value))));
      continue;
    }
    REQUIRE(f16_from_float(value) == bits);
    const float next = float_from_f16(static_cast<uint16_t>(bits + 1));
    if ((bits & 0x7fff) < 0x7bff) {
      const float middle = value + (next - value) / 2.0F;
      REQUIRE(f16_from_float(middle) == ((bits & 1) == 0 ? bits : bits + 1));
      REQUIRE(f16_from_float(std::nextafter(middle, value)) == bits);
      REQUIRE(f16_from_float(std::nextafter(middle, next)) == bits + 1);
    }
  }
  CHECK(f16_from_float(65519.99F) == 0x7bff);
  CHECK(f16_from_float(65520.0F) == 0x7c00);
  CHECK(f16_from_float(-1e30F) == 0xfc00);
  CHECK(f16_from_float(1e-30F) == 0);
}

}  // namespace mpinfer::backend
