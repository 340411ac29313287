#include "lib/backend/convert.h"

namespace mpinfer::backend {
namespace {

float to_float(float value) {
  return value;
}

template <DType kFrom, DType kTo, class From, class To>
void convert(To* to, int64_t step, const From* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (kFrom == kTo) {
      to[i * step] = from[i];
    } else {
      float value = 0.0F;
      if constexpr (kFrom == DType::kF32) value = to_float(from[i]);
      if constexpr (kFrom == DType::kBF16) value = float_from_bf16(from[i]);
      if constexpr (kFrom == DType::kF16) value = float_from_f16(from[i]);
      if constexpr (kTo == DType::kF32) to[i * step] = value;
      if constexpr (kTo == DType::kBF16) to[i * step] = bf16_from_float(value);
      if constexpr (kTo == DType::kF16) to[i * step] = f16_from_float(value);
    }
  }
}

template <DType kFrom, class From>
void convert_from(void* to, DType to_dtype, int64_t step, const From* from, int64_t count) {
  switch (to_dtype) {
    case DType::kF32:
      return convert<kFrom, DType::kF32>(static_cast<float*>(to), step, from, count);
    case DType::kBF16:
      return convert<kFrom, DType::kBF16>(static_cast<uint16_t*>(to), step, from, count);
    case DType::kF16:
      return convert<kFrom, DType::kF16>(static_cast<uint16_t*>(to), step, from, count);
    default:
      MPINFER_CHECK(false, "no conversion to {}", name_of(to_dtype));
  }
}

}  // namespace

uint16_t f16_from_float(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return static_cast<uint16_t>(sign | 0x7e00U);
  if (magnitude >= 0x477ff000U) return static_cast<uint16_t>(sign | 0x7c00U);  // rounds to 2^16
  if (magnitude < 0x38800000U) {  // below 2^-14: a multiple of 2^-24, which adding 0.5 rounds to
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000U));
  }
  const uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112U << 10)));
}

void convert_row(void* to, DType to_dtype, int64_t to_step, const void* from, DType from_dtype,
                 int64_t count) {
  switch (from_dtype) {
    case DType::kF32:
      return convert_from<DType::kF32>(to, to_dtype, to_step, static_cast<const float*>(from),
                                       count);
    case DType::kBF16:
      return convert_from<DType::kBF16>(to, to_dtype, to_step, static_cast<const uint16_t*>(from),
                                        count);
    case DType::kF16:
      return convert_from<DType::kF16>(to, to_dtype, to_step, static_cast<const uint16_t*>(from),
                                       count);
    default:
      MPINFER_CHECK(false, "no conversion from {}", name_of(from_dtype));
  }
}

}  // namespace mpinfer::backend
