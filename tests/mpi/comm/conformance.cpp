#include "tests/mpi/comm/conformance.h"

#include <cmath>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

namespace mpinfer::comm {
namespace {

constexpr Stream kStream = Stream::kCompute;
constexpr int64_t kSizes[] = {0, 1, 3, 16, 17, 1000, 65537, 300001};

float value_of(int rank, int64_t i) {
  return static_cast<float>((rank * 31 + i * 7) % 61 - 30);
}

struct Failures {
  int count = 0;
  void expect(bool condition) { count += condition ? 0 : 1; }
};

void all_reduce_f32(Communicator& c, Failures& failures) {
  for (const int64_t size : kSizes) {
    std::vector<float> data(static_cast<size_t>(size) + 2, -99.0F);
    for (int64_t i = 0; i < size; ++i) data[static_cast<size_t>(i)] = value_of(c.rank(), i);
    c.all_reduce_sum(kStream, data.data(), DType::kF32, size);
    for (int64_t i = 0; i < size; ++i) {
      float sum = 0;
      for (int r = 0; r < c.size(); ++r) sum += value_of(r, i);
      failures.expect(data[static_cast<size_t>(i)] == sum);
    }
    failures.expect(data[static_cast<size_t>(size)] == -99.0F);
  }
}

void all_reduce_bf16(Communicator& c, Failures& failures) {
  for (const int64_t size : {int64_t{1}, int64_t{33}, int64_t{5000}}) {
    std::vector<uint16_t> data(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i)
      data[static_cast<size_t>(i)] = bf16_from_float(value_of(c.rank(), i));
    c.all_reduce_sum(kStream, data.data(), DType::kBF16, size);
    for (int64_t i = 0; i < size; ++i) {
      float sum = 0;
      for (int r = 0; r < c.size(); ++r) sum += value_of(r, i);
      failures.expect(data[static_cast<size_t>(i)] == bf16_from_float(sum));
    }
  }
}

void gathers(Communicator& c, Failures& failures) {
  const auto ranks = static_cast<size_t>(c.size());
  for (const int64_t size : kSizes) {
    const auto count = static_cast<size_t>(size);
    std::vector<int32_t> mine(count);
    std::vector<int32_t> all(count * ranks, -1);
    for (size_t i = 0; i < count; ++i) mine[i] = c.rank() * 1000 + static_cast<int32_t>(i % 997);
    c.all_gather(kStream, all.data(), mine.data(), size * 4);
    for (size_t r = 0; r < ranks; ++r) {
      for (size_t i = 0; i < count; ++i) {
        failures.expect(all[r * count + i] ==
                        static_cast<int32_t>(r) * 1000 + static_cast<int32_t>(i % 997));
      }
    }
  }
  // Uneven pieces, some empty, each already in its place.
  std::vector<int64_t> bytes(ranks);
  for (size_t r = 0; r < ranks; ++r) bytes[r] = static_cast<int64_t>(r % 3) * 5;
  std::vector<char> out(
      static_cast<size_t>(std::accumulate(bytes.begin(), bytes.end(), int64_t{0})) + 1, '.');
  const int64_t at = std::accumulate(bytes.begin(), bytes.begin() + c.rank(), int64_t{0});
  for (int64_t i = 0; i < bytes[static_cast<size_t>(c.rank())]; ++i) {
    out[static_cast<size_t>(at + i)] = static_cast<char>('a' + c.rank());
  }
  c.all_gather_v(kStream, out.data(), out.data() + at, bytes);
  size_t position = 0;
  for (size_t r = 0; r < ranks; ++r) {
    for (int64_t i = 0; i < bytes[r]; ++i)
      failures.expect(out[position++] == static_cast<char>('a' + r));
  }
  failures.expect(out.back() == '.');
}

void reduce_scatters(Communicator& c, Failures& failures) {
  const auto ranks = static_cast<size_t>(c.size());
  std::vector<int64_t> counts(ranks);
  for (size_t r = 0; r < ranks; ++r) counts[r] = r == 1 ? 0 : 7 + static_cast<int64_t>(r) * 100;
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  std::vector<float> in(static_cast<size_t>(total));
  for (int64_t i = 0; i < total; ++i) in[static_cast<size_t>(i)] = value_of(c.rank(), i);
  const int64_t begin = std::accumulate(counts.begin(), counts.begin() + c.rank(), int64_t{0});
  const int64_t mine = counts[static_cast<size_t>(c.rank())];
  std::vector<float> out(static_cast<size_t>(mine));
  c.reduce_scatter_sum_v(kStream, out.data(), in.data(), DType::kF32, counts);
  for (int64_t i = 0; i < mine; ++i) {
    float sum = 0;
    for (int r = 0; r < c.size(); ++r) sum += value_of(r, begin + i);
    failures.expect(out[static_cast<size_t>(i)] == sum);
  }
}

void exchanges(Communicator& c, Failures& failures) {
  const auto ranks = static_cast<size_t>(c.size());
  constexpr size_t kPiece = 1001;
  std::vector<int32_t> in(kPiece * ranks);
  std::vector<int32_t> out(kPiece * ranks, -1);
  for (size_t r = 0; r < ranks; ++r) {
    for (size_t i = 0; i < kPiece; ++i)
      in[r * kPiece + i] = c.rank() * 100 + static_cast<int32_t>(r);
  }
  c.all_to_all(kStream, out.data(), in.data(), kPiece * 4);
  for (size_t r = 0; r < ranks; ++r) {
    for (size_t i = 0; i < kPiece; ++i)
      failures.expect(out[r * kPiece + i] == static_cast<int32_t>(r) * 100 + c.rank());
  }
  for (int root = 0; root < c.size(); ++root) {
    std::vector<int32_t> data(5000, c.rank());
    c.broadcast(kStream, data.data(), static_cast<int64_t>(data.size() * 4), root);
    for (const int32_t value : data) failures.expect(value == root);
  }
}

// Everybody sends to the next and takes from the one before, small messages behind large ones, none
// waiting for another.
void ring(Communicator& c, Failures& failures) {
  const int next = (c.rank() + 1) % c.size();
  const int before = (c.rank() + c.size() - 1) % c.size();
  for (const size_t count : {size_t{1}, size_t{300000}, size_t{17}}) {
    std::vector<int32_t> out(count, c.rank());
    std::vector<int32_t> in(count, -1);
    const auto bytes = static_cast<int64_t>(count * 4);
    const auto pending =
        c.start_send_recv(kStream, {out.data(), bytes, next}, {in.data(), bytes, before});
    while (!pending->test()) std::this_thread::yield();
    for (const int32_t value : in) failures.expect(value == before);
  }
  const auto nothing = c.start_send_recv(kStream, {}, {});
  failures.expect(nothing->test());
}

}  // namespace

int run_conformance(Communicator& communicator) {
  Failures failures;
  all_reduce_f32(communicator, failures);
  all_reduce_bf16(communicator, failures);
  gathers(communicator, failures);
  reduce_scatters(communicator, failures);
  exchanges(communicator, failures);
  ring(communicator, failures);
  return failures.count;
}

std::vector<float> sum_of_reals(Communicator& communicator, int64_t count) {
  std::mt19937 random(static_cast<uint32_t>(communicator.rank()) + 1);
  std::vector<float> data(static_cast<size_t>(count));
  for (float& value : data)
    value = std::ldexp(static_cast<float>(random()), -20 - static_cast<int>(random() % 8));
  communicator.all_reduce_sum(kStream, data.data(), DType::kF32, count);
  return data;
}

}  // namespace mpinfer::comm
