// What the backend suite shares: the list of backends under test, device arrays with guard bytes
// around them, random inputs, tolerances by activation type. A CUDA backend joins the list where a
// device is found; the suite says so where there is none.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "lib/backend/convert.h"
#include "lib/backend/cpu_backend.h"
#include "lib/backend/cuda_backend.h"
#include "tests/support/catch.h"

namespace mpinfer::backend::parity {

struct Maker {
  std::string name;
  std::function<std::unique_ptr<Backend>()> make;
};

// Every SIMD target of this CPU with one thread, the best one with three, and CUDA where there is a
// device.
const std::vector<Maker>& makers();
// The CPU ones alone: bit identity is their promise.
const std::vector<Maker>& cpu_makers();

using Random = std::mt19937;
std::vector<float> random_floats(Random& random, int64_t count, float scale = 1.0F);

// value as the type holds it.
float rounded(float value, DType dtype);
std::vector<float> rounded(std::vector<float> values, DType dtype);

// Where (token, d) of K lies inside a (block, head) piece of this backend; V is always [block_size,
// head_dim].
int64_t key_offset(const Backend& backend, int64_t token, int64_t d, int64_t block_size,
                   int64_t head_dim);

// Relative bound of a sum in the backend's activation type.
double tolerance(const Backend& backend);

// Device memory with 256 guard bytes on both sides; check_guards() fails when one was written.
class DeviceBytes {
 public:
  DeviceBytes(Backend& backend, int64_t bytes);
  void* data() const { return static_cast<char*>(buffer_.data()) + kGuard; }
  int64_t bytes() const { return bytes_; }
  void write(const void* host);
  std::vector<uint8_t> read() const;
  void check_guards() const;

 private:
  static constexpr int64_t kGuard = 256;
  Backend& backend_;
  int64_t bytes_;
  Buffer buffer_;
};

template <class T>
class DeviceArray {
 public:
  DeviceArray(Backend& backend, const std::vector<T>& values)
      : bytes_(backend, static_cast<int64_t>(std::max<size_t>(values.size(), 1) * sizeof(T))),
        count_(values.size()) {
    if (count_ > 0) bytes_.write(values.data());
  }
  T* data() const { return static_cast<T*>(bytes_.data()); }
  std::vector<T> read() const {
    const std::vector<uint8_t> raw = bytes_.read();
    std::vector<T> values(count_);
    if (count_ > 0) std::memcpy(values.data(), raw.data(), count_ * sizeof(T));
    bytes_.check_guards();
    return values;
  }

 private:
  DeviceBytes bytes_;
  size_t count_;
};

// [rows, cols] with stride > cols: the gap between rows is guarded too. Rows of a multiple of eight
// stay aligned unless the gap is given, so that wide and narrow loads are both met.
class DeviceMatrix {
 public:
  static constexpr int64_t kByWidth = -1;
  DeviceMatrix(Backend& backend, int64_t rows, int64_t cols, DType dtype, int64_t gap = kByWidth);
  DeviceMatrix(Backend& backend, int64_t rows, int64_t cols, const std::vector<float>& values,
               int64_t gap = kByWidth);

  const Matrix& view() const { return view_; }
  void write(const std::vector<float>& values);
  // Row-major [rows * cols]; checks every byte outside the matrix.
  std::vector<float> read() const;

 private:
  DeviceBytes bytes_;
  Matrix view_;
};

// A weight packed from row-major values [out_features, in_features], given in the type
// source_dtype.
class PackedWeight {
 public:
  PackedWeight(Backend& backend, int64_t out_features, int64_t in_features, DType dtype,
               const std::vector<float>& values, DType source_dtype);
  const Weight& view() const { return view_; }

 private:
  DeviceBytes bytes_;
  Weight view_;
};

std::vector<double> doubles(const std::vector<float>& values);
// |got - want| <= bound * (|want| + floor), element by element.
void check_close(const std::vector<float>& got, const std::vector<double>& want, double bound,
                 double floor = 1.0);

}  // namespace mpinfer::backend::parity
