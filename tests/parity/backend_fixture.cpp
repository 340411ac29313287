#include "tests/parity/backend_fixture.h"

namespace mpinfer::backend::parity {
namespace {

constexpr uint8_t kPattern = 0xA5;

Maker cpu_maker(const std::string& target, int threads) {
  return {.name = fmt::format("cpu {} x{}", target, threads), .make = [target, threads] {
            return make_cpu_backend({.threads = threads, .simd_target = target});
          }};
}

std::vector<uint8_t> raw_of(const std::vector<float>& values, DType dtype) {
  std::vector<uint8_t> raw(values.size() * static_cast<size_t>(size_of(dtype)));
  convert_row(raw.data(), dtype, 1, values.data(), DType::kF32,
              static_cast<int64_t>(values.size()));
  return raw;
}

}  // namespace

const std::vector<Maker>& cpu_makers() {
  static const std::vector<Maker> list = [] {
    std::vector<Maker> made;
    for (const std::string& target : simd_targets()) made.push_back(cpu_maker(target, 1));
    made.push_back(cpu_maker(best_simd_target(), 3));
    return made;
  }();
  return list;
}

const std::vector<Maker>& makers() {
  static const std::vector<Maker> list = [] {
    std::vector<Maker> made = cpu_makers();
    if (cuda_device_count() == 0) {
      WARN("no CUDA device: the CUDA cases of the backend suite are skipped");
    } else {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        made.push_back({.name = fmt::format("cuda {}", name_of(dtype)), .make = [dtype] {
                          return make_cuda_backend({.activation_dtype = dtype});
                        }});
      }
    }
    return made;
  }();
  return list;
}

std::vector<float> random_floats(Random& random, int64_t count, float scale) {
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

float rounded(float value, DType dtype) {
  if (dtype == DType::kBF16) return float_from_bf16(bf16_from_float(value));
  if (dtype == DType::kF16) return float_from_f16(f16_from_float(value));
  return value;
}

std::vector<float> rounded(std::vector<float> values, DType dtype) {
  for (float& value : values) value = rounded(value, dtype);
  return values;
}

int64_t key_offset(const Backend& backend, int64_t token, int64_t d, int64_t block_size,
                   int64_t head_dim) {
  const bool transposed = backend.description().starts_with("cpu");
  return transposed ? d * block_size + token : token * head_dim + d;
}

double tolerance(const Backend& backend) {
  switch (backend.activation_dtype()) {
    case DType::kBF16:
      return 1.0 / 64;
    case DType::kF16:
      return 1.0 / 512;
    default:
      return 1e-5;
  }
}

DeviceBytes::DeviceBytes(Backend& backend, int64_t bytes)
    : backend_(backend), bytes_(bytes), buffer_(backend.allocate(bytes + 2 * kGuard)) {
  backend.fill_bytes(Stream::kCompute, buffer_.data(), kPattern, bytes + 2 * kGuard);
}

void DeviceBytes::write(const void* host) {
  backend_.upload(Stream::kCompute, data(), host, bytes_);
  backend_.synchronize();
}

std::vector<uint8_t> DeviceBytes::read() const {
  std::vector<uint8_t> host(static_cast<size_t>(bytes_));
  backend_.download(Stream::kCompute, host.data(), data(), bytes_);
  backend_.synchronize();
  return host;
}

void DeviceBytes::check_guards() const {
  std::vector<uint8_t> all(static_cast<size_t>(bytes_ + 2 * kGuard));
  backend_.download(Stream::kCompute, all.data(), buffer_.data(), bytes_ + 2 * kGuard);
  backend_.synchronize();
  bool intact = true;
  for (int64_t i = 0; i < kGuard; ++i) {
    intact = intact && all[static_cast<size_t>(i)] == kPattern &&
             all[static_cast<size_t>(kGuard + bytes_ + i)] == kPattern;
  }
  CHECK(intact);
}

namespace {

int64_t stride_of(int64_t cols, int64_t gap) {
  return cols + (gap != DeviceMatrix::kByWidth ? gap : cols % 8 == 0 ? 8 : 5);
}

}  // namespace

DeviceMatrix::DeviceMatrix(Backend& backend, int64_t rows, int64_t cols, DType dtype, int64_t gap)
    : bytes_(backend, std::max<int64_t>(rows * stride_of(cols, gap), 1) * size_of(dtype)),
      view_{.data = bytes_.data(),
            .dtype = dtype,
            .rows = rows,
            .cols = cols,
            .stride = stride_of(cols, gap)} {}

DeviceMatrix::DeviceMatrix(Backend& backend, int64_t rows, int64_t cols,
                           const std::vector<float>& values, int64_t gap)
    : DeviceMatrix(backend, rows, cols, backend.activation_dtype(), gap) {
  write(values);
}

void DeviceMatrix::write(const std::vector<float>& values) {
  const std::vector<uint8_t> raw = raw_of(values, view_.dtype);
  std::vector<uint8_t> all = bytes_.read();
  const int64_t size = size_of(view_.dtype);
  for (int64_t r = 0; r < view_.rows; ++r) {
    std::memcpy(all.data() + r * view_.stride * size, raw.data() + r * view_.cols * size,
                static_cast<size_t>(view_.cols * size));
  }
  bytes_.write(all.data());
}

std::vector<float> DeviceMatrix::read() const {
  const std::vector<uint8_t> all = bytes_.read();
  const int64_t size = size_of(view_.dtype);
  std::vector<float> values(static_cast<size_t>(view_.rows * view_.cols));
  bool intact = true;
  for (int64_t r = 0; r < view_.rows; ++r) {
    const uint8_t* row = all.data() + r * view_.stride * size;
    convert_row(values.data() + r * view_.cols, DType::kF32, 1, row, view_.dtype, view_.cols);
    for (int64_t i = view_.cols * size; i < view_.stride * size; ++i) {
      intact = intact && row[i] == kPattern;
    }
  }
  CHECK(intact);
  bytes_.check_guards();
  return values;
}

PackedWeight::PackedWeight(Backend& backend, int64_t out_features, int64_t in_features, DType dtype,
                           const std::vector<float>& values, DType source_dtype)
    : bytes_(backend, backend.packed_bytes(out_features, in_features, dtype)),
      view_(backend.make_weight(bytes_.data(), out_features, in_features, dtype)) {
  const std::vector<uint8_t> raw = raw_of(values, source_dtype);
  backend.pack_rows(view_, 0, 1, raw.data(), source_dtype, out_features, in_features);
  backend.synchronize();
  bytes_.check_guards();
}

std::vector<double> doubles(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

void check_close(const std::vector<float>& got, const std::vector<double>& want, double bound,
                 double floor) {
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - want[i]);
    if (!(error <= bound * (std::abs(want[i]) + floor))) {
      FAIL("element " << i << ": " << got[i] << " instead of " << want[i]);
    }
  }
  SUCCEED();
}

}  // namespace mpinfer::backend::parity
