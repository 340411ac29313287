#include "lib/backend/cpu_backend.h"

#include <algorithm>
#include <cstring>

#include "lib/backend/convert.h"
#include "lib/backend/cpu_backend_impl.h"
#include "lib/backend/host_memory.h"
#include "lib/core/normal.h"

namespace mpinfer::backend {
namespace {

class DoneEvent final : public Event {
 public:
  bool query() override { return true; }
};

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

template <class T>
void add_integers(T* out, const T* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(out[i] + x[i]);
}

template <float (*kWiden)(uint16_t), uint16_t (*kNarrow)(float)>
void add_halves(uint16_t* out, const uint16_t* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = kNarrow(kWiden(out[i]) + kWiden(x[i]));
}

}  // namespace

std::vector<std::string> simd_targets() {
  return kernels::cpu::simd_targets();
}

std::string best_simd_target() {
  return simd_targets().front();
}

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) {
  if (options.threads < 1) {
    throw Error(ExitCode::kUsage, fmt::format("{} CPU threads: at least 1", options.threads));
  }
  return std::make_unique<CpuBackend>(options);
}

void check_f32(const Matrix& matrix, const char* name) {
  MPINFER_CHECK(matrix.dtype == DType::kF32, "{} is {}", name, name_of(matrix.dtype));
  MPINFER_CHECK(matrix.rows >= 0 && matrix.cols >= 0 && matrix.stride >= matrix.cols,
                "{} is [{}, {}] with stride {}", name, matrix.rows, matrix.cols, matrix.stride);
}

CpuBackend::CpuBackend(const CpuOptions& options)
    : kernels_(kernels::cpu::kernels_for(options.simd_target.empty() ? best_simd_target()
                                                                     : options.simd_target)),
      pool_(options.threads),
      memory_(static_cast<size_t>(options.threads)) {}

std::string CpuBackend::description() const {
  return fmt::format("cpu {}, {} thread{}", kernels_.target, pool_.size(),
                     pool_.size() == 1 ? "" : "s");
}

Buffer CpuBackend::allocate(int64_t bytes) {
  return Buffer(this, allocate_host_memory(bytes), bytes);
}

void CpuBackend::release(void* data, int64_t /*bytes*/) noexcept {
  release_host_memory(data);
}

MemoryInfo CpuBackend::memory_info() {
  return host_memory_info();
}

void CpuBackend::upload(Stream, void* device, const void* host, int64_t bytes) {
  if (bytes > 0) std::memcpy(device, host, static_cast<size_t>(bytes));
}

void CpuBackend::download(Stream, void* host, const void* device, int64_t bytes) {
  if (bytes > 0) std::memcpy(host, device, static_cast<size_t>(bytes));
}

std::unique_ptr<Event> CpuBackend::record(Stream) {
  return std::make_unique<DoneEvent>();
}

int64_t CpuBackend::packed_bytes(int64_t out_features, int64_t in_features, DType dtype) const {
  const int64_t width = kernels_.panel_width;
  return (out_features + width - 1) / width * width * in_features * size_of(dtype);
}

Weight CpuBackend::make_weight(void* data, int64_t out_features, int64_t in_features,
                               DType dtype) const {
  MPINFER_CHECK(is_float(dtype), "weights of {}", name_of(dtype));
  MPINFER_CHECK(out_features > 0 && in_features > 0, "weight [{}, {}]", out_features, in_features);
  const int64_t width = kernels_.panel_width;
  const int64_t panel_bytes = width * in_features * size_of(dtype);
  if (out_features % width != 0) {
    std::memset(static_cast<char*>(data) + out_features / width * panel_bytes, 0,
                static_cast<size_t>(panel_bytes));
  }
  return {.data = data,
          .dtype = dtype,
          .out_features = out_features,
          .in_features = in_features,
          .layout = checked_cast<int32_t>(width)};
}

void CpuBackend::check_weight(const Weight& weight) const {
  MPINFER_CHECK(weight.layout == kernels_.panel_width && weight.data != nullptr,
                "a weight of layout {} on a backend of layout {}", weight.layout,
                kernels_.panel_width);
}

void CpuBackend::pack_rows(const Weight& weight, int64_t first_row, int64_t row_step,
                           const void* source, DType source_dtype, int64_t rows,
                           int64_t source_stride) {
  check_weight(weight);
  MPINFER_CHECK(is_float(source_dtype), "source of {}", name_of(source_dtype));
  MPINFER_CHECK(first_row >= 0 && row_step >= 1 && rows >= 0 &&
                    (rows == 0 || first_row + (rows - 1) * row_step < weight.out_features),
                "{} rows from {} by {} into a weight of {} rows", rows, first_row, row_step,
                weight.out_features);
  const int64_t width = kernels_.panel_width;
  const int64_t size = size_of(weight.dtype);
  for_rows(rows, weight.in_features, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = first_row + i * row_step;
      const int64_t at = row / width * width * weight.in_features +
                         kernels_.panel_position(weight.dtype, row % width);
      convert_row(static_cast<char*>(weight.data) + at * size, weight.dtype, width,
                  static_cast<const char*>(source) + i * source_stride * size_of(source_dtype),
                  source_dtype, weight.in_features);
    }
  });
}

void CpuBackend::draw_rows(const NormalRows& args) {
  constexpr int64_t kFloats = int64_t{1} << 21;
  MPINFER_CHECK(args.row_stride == 1 || args.column_stride == 1, "strides {} and {}",
                args.row_stride, args.column_stride);
  const int64_t cols = args.weight.in_features;
  const int64_t at_once = std::max<int64_t>(1, kFloats / cols);
  std::vector<float> drawn(static_cast<size_t>(std::min(at_once, args.rows) * cols));
  for (int64_t first = 0; first < args.rows; first += at_once) {
    const int64_t rows = std::min(at_once, args.rows - first);
    const int64_t begin = args.begin + first * args.row_stride;
    if (args.column_stride == 1) {
      for_rows(rows, 16 * cols, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r) {
          fill_normal(drawn.data() + r * cols, args.seed, args.tensor, begin + r * args.row_stride,
                      cols, args.deviation);
        }
      });
    } else {
      for_rows(cols, 16 * rows, [&](int64_t from, int64_t to) {
        std::vector<float> column(static_cast<size_t>(rows));
        for (int64_t c = from; c < to; ++c) {
          fill_normal(column.data(), args.seed, args.tensor, begin + c * args.column_stride, rows,
                      args.deviation);
          for (int64_t r = 0; r < rows; ++r)
            drawn[static_cast<size_t>(r * cols + c)] = column[static_cast<size_t>(r)];
        }
      });
    }
    pack_rows(args.weight, args.first_row + first * args.row_step, args.row_step, drawn.data(),
              DType::kF32, rows, cols);
  }
}

void CpuBackend::gather_rows(Stream, const Matrix& out, const Matrix& x, const int32_t* rows) {
  MPINFER_CHECK(out.dtype == x.dtype && out.cols == x.cols, "{} columns of {} from {} of {}",
                out.cols, name_of(out.dtype), x.cols, name_of(x.dtype));
  const int64_t size = size_of(x.dtype);
  for (int64_t r = 0; r < out.rows; ++r) {
    MPINFER_CHECK(rows[r] >= 0 && rows[r] < x.rows, "row {} of {}", rows[r], x.rows);
    std::memcpy(static_cast<char*>(out.data) + r * out.stride * size,
                static_cast<const char*>(x.data) + rows[r] * x.stride * size,
                static_cast<size_t>(x.cols * size));
  }
}

void CpuBackend::gather_slots(Stream, int32_t* ids, const int32_t* last_token, const int32_t* slots,
                              int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    if (slots[r] >= 0) ids[r] = last_token[slots[r]];
  }
}

void CpuBackend::scatter_slots(Stream, int32_t* last_token, const int32_t* ids,
                               const int32_t* slots, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    if (slots[r] >= 0) last_token[slots[r]] = ids[r];
  }
}

void CpuBackend::copy(Stream, const Matrix& out, const Matrix& x) {
  check_same_shape(out, x);
  MPINFER_CHECK(is_float(out.dtype) ? is_float(x.dtype) : out.dtype == x.dtype, "copy of {} to {}",
                name_of(x.dtype), name_of(out.dtype));
  for_rows(x.rows, x.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      char* to = static_cast<char*>(out.data) + r * out.stride * size_of(out.dtype);
      const char* from = static_cast<const char*>(x.data) + r * x.stride * size_of(x.dtype);
      if (out.dtype == x.dtype) {
        std::memcpy(to, from, static_cast<size_t>(x.cols * size_of(x.dtype)));
      } else {
        convert_row(to, out.dtype, 1, from, x.dtype, x.cols);
      }
    }
  });
}

void CpuBackend::fill(Stream, const Matrix& out, float value) {
  MPINFER_CHECK(is_float(out.dtype), "fill of {}", name_of(out.dtype));
  for (int64_t r = 0; r < out.rows; ++r) {
    if (out.dtype == DType::kF32) {
      std::fill_n(out.row<float>(r), out.cols, value);
    } else {
      std::fill_n(out.row<uint16_t>(r), out.cols,
                  out.dtype == DType::kBF16 ? bf16_from_float(value) : f16_from_float(value));
    }
  }
}

void CpuBackend::fill_bytes(Stream, void* data, int byte, int64_t bytes) {
  if (bytes > 0) std::memset(data, byte, static_cast<size_t>(bytes));
}

void CpuBackend::accumulate(Stream, void* out, const void* x, DType dtype, int64_t count) {
  switch (dtype) {
    case DType::kF32:
      return kernels_.accumulate(static_cast<float*>(out), static_cast<const float*>(x), count);
    case DType::kBF16:
      return add_halves<float_from_bf16, bf16_from_float>(static_cast<uint16_t*>(out),
                                                          static_cast<const uint16_t*>(x), count);
    case DType::kF16:
      return add_halves<float_from_f16, f16_from_float>(static_cast<uint16_t*>(out),
                                                        static_cast<const uint16_t*>(x), count);
    case DType::kI32:
      return add_integers(static_cast<int32_t*>(out), static_cast<const int32_t*>(x), count);
    case DType::kI64:
      return add_integers(static_cast<int64_t*>(out), static_cast<const int64_t*>(x), count);
    case DType::kU8:
      return add_integers(static_cast<uint8_t*>(out), static_cast<const uint8_t*>(x), count);
  }
}

}  // namespace mpinfer::backend
