#include "lib/comm/host_sum.h"

#include <algorithm>

#include "lib/core/error.h"

namespace mpinfer::comm {
namespace {

template <class T, class Load, class Store>
void sum(T* out, const char* parts, int num_parts, int64_t part_stride, int64_t count, Load load,
         Store store) {
  constexpr int64_t kTile = 1024;
  float tile[kTile];
  for (int64_t at = 0; at < count; at += kTile) {
    const int64_t length = std::min(kTile, count - at);
    for (int part = 0; part < num_parts; ++part) {
      const T* in = reinterpret_cast<const T*>(parts + part * part_stride) + at;
      if (part == 0) {
        for (int64_t i = 0; i < length; ++i) tile[i] = load(in[i]);
      } else {
        for (int64_t i = 0; i < length; ++i) tile[i] += load(in[i]);
      }
    }
    for (int64_t i = 0; i < length; ++i) out[at + i] = store(tile[i]);
  }
}

}  // namespace

void sum_in_rank_order(void* out, const void* parts, int num_parts, int64_t part_stride,
                       DType dtype, int64_t count) {
  const char* bytes = static_cast<const char*>(parts);
  switch (dtype) {
    case DType::kF32:
      sum(
          static_cast<float*>(out), bytes, num_parts, part_stride, count, [](float v) { return v; },
          [](float v) { return v; });
      return;
    case DType::kBF16:
      sum(static_cast<uint16_t*>(out), bytes, num_parts, part_stride, count, float_from_bf16,
          bf16_from_float);
      return;
    default:
      MPINFER_CHECK(false, "sum over ranks of {}", name_of(dtype));
  }
}

Share share_of(int64_t count, int size, int rank) {
  // Whole cache lines of f32, so that pieces do not share one.
  constexpr int64_t kGrain = 16;
  const int64_t grains = (count + kGrain - 1) / kGrain;
  const auto edge = [&](int64_t r) { return std::min(count, grains * r / size * kGrain); };
  return {edge(rank), edge(rank + 1) - edge(rank)};
}

}  // namespace mpinfer::comm
