#include "lib/backend/cuda_backend.h"

#include <cstring>

#include "lib/backend/convert.h"
#include "lib/backend/cuda_backend_impl.h"
#include "lib/backend/cuda_sizes.h"

namespace mpinfer::backend {
namespace {

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(cudaStream_t stream) {
    MPINFER_CUDA(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
    MPINFER_CUDA(cudaEventRecord(event_, stream));
  }
  ~CudaEvent() override { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  bool query() override {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) return false;
    cuda_check(status, "cudaEventQuery");
    return true;
  }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

std::string uuid_of(const cudaUUID_t& uuid) {
  std::string out = "GPU-";
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out += '-';
    out += fmt::format("{:02x}", static_cast<unsigned char>(uuid.bytes[i]));
  }
  return out;
}

void* device_memory(int64_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    throw Error(ExitCode::kOutOfResource,
                fmt::format("{} bytes of GPU memory asked for, {} free of {}; lower "
                            "--gpu-memory-utilization or use more "
                            "ranks per replica",
                            bytes, free_bytes, total_bytes));
  }
  cuda_check(status, "cudaMalloc");
  return data;
}

}  // namespace

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  return count;
}

std::string cuda_version() {
  return fmt::format("{}.{}", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
}

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  MPINFER_CUDA(cudaSetDevice(options.device));
  return std::make_unique<CudaBackend>(options);
}

void* cuda_stream(Backend& backend, Stream stream) {
  return static_cast<CudaBackend&>(backend).stream_of(stream);
}

CudaBackend::CudaBackend(const CudaOptions& options) : options_(options) {
  cudaDeviceProp properties{};
  MPINFER_CUDA(cudaGetDeviceProperties(&properties, options.device));
  num_processors_ = properties.multiProcessorCount;
  hopper_ = properties.major == 9;
  gemm_ = std::make_unique<CudaGemm>(options.deterministic, properties.name);
  description_ =
      fmt::format("cuda {} {} {}", options.device, properties.name, uuid_of(properties.uuid));
  for (cudaStream_t& stream : streams_)
    MPINFER_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  logits_tile_ = device_memory(kLogitsTileBytes);
  split_partials_ = device_memory(kSplitPartialFloats * 4);
  constexpr int64_t kCounterBytes = (kSplitCounters + kNumStreams) * 4;
  split_counters_ = device_memory(kCounterBytes);
  MPINFER_CUDA(cudaMemset(split_counters_, 0, static_cast<size_t>(kCounterBytes)));
  expert_counters_ = device_memory(kExpertCounterBytes * kNumStreams);
  MPINFER_CUDA(
      cudaMemset(expert_counters_, 0, static_cast<size_t>(kExpertCounterBytes * kNumStreams)));
  const int64_t left_bytes = int64_t{num_processors_} * 2 * 4 * kNumStreams;
  balanced_left_ = device_memory(left_bytes);
  MPINFER_CUDA(cudaMemset(balanced_left_, 0, static_cast<size_t>(left_bytes)));
  gemm_workspace(Stream::kCompute);
}

CudaBackend::~CudaBackend() {
  cudaDeviceSynchronize();
  for (void* workspace : gemm_workspaces_) cudaFree(workspace);
  cudaFree(logits_tile_);
  cudaFree(split_partials_);
  cudaFree(split_counters_);
  cudaFree(balanced_left_);
  cudaFree(expert_counters_);
  expert_staging_ = {};
  for (cudaStream_t stream : streams_) cudaStreamDestroy(stream);
}

void* CudaBackend::gemm_workspace(Stream stream) {
  void*& workspace = gemm_workspaces_[static_cast<size_t>(stream)];
  if (workspace == nullptr) workspace = device_memory(CudaGemm::kWorkspaceBytes);
  return workspace;
}

Buffer CudaBackend::allocate(int64_t bytes) {
  MPINFER_CHECK(bytes >= 0, "{} bytes asked for", bytes);
  if (bytes == 0) return {};
  return {this, device_memory(bytes), bytes};
}

Buffer CudaBackend::allocate_host(int64_t bytes) {
  MPINFER_CHECK(bytes >= 0, "{} bytes asked for", bytes);
  if (bytes == 0) return {};
  void* data = nullptr;
  MPINFER_CUDA(cudaMallocHost(&data, static_cast<size_t>(bytes)));
  const std::lock_guard lock(host_mutex_);
  host_memory_.insert(data);
  return {this, data, bytes};
}

void CudaBackend::release(void* data, int64_t) noexcept {
  {
    const std::lock_guard lock(host_mutex_);
    if (host_memory_.erase(data) != 0) {
      cudaFreeHost(data);
      return;
    }
  }
  cudaFree(data);
}

MemoryInfo CudaBackend::memory_info() {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  MPINFER_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
  return {static_cast<int64_t>(free_bytes), static_cast<int64_t>(total_bytes)};
}

void CudaBackend::upload(Stream stream, void* device, const void* host, int64_t bytes) {
  if (bytes == 0) return;
  MPINFER_CUDA(cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                               stream_of(stream)));
}

void CudaBackend::download(Stream stream, void* host, const void* device, int64_t bytes) {
  if (bytes == 0) return;
  MPINFER_CUDA(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                               stream_of(stream)));
}

std::unique_ptr<Event> CudaBackend::record(Stream stream) {
  return std::make_unique<CudaEvent>(stream_of(stream));
}

void CudaBackend::wait(Stream stream, Event& event) {
  MPINFER_CUDA(cudaStreamWaitEvent(stream_of(stream), static_cast<CudaEvent&>(event).get(), 0));
}

void CudaBackend::synchronize() {
  gemm_->wait_for_expected();
  MPINFER_CUDA(cudaDeviceSynchronize());
}

// The stored type is the activation type: products take operands of one type. The layout tag keeps
// the type the weight was declared with, to which its values are rounded first.
int64_t CudaBackend::packed_bytes(int64_t out_features, int64_t in_features, DType) const {
  return out_features * in_features * size_of(activation_dtype());
}

Weight CudaBackend::make_weight(void* data, int64_t out_features, int64_t in_features,
                                DType dtype) const {
  Weight weight;
  weight.data = data;
  weight.dtype = activation_dtype();
  weight.layout = static_cast<int32_t>(dtype);
  weight.out_features = out_features;
  weight.in_features = in_features;
  gemm_->expect(out_features, in_features);
  return weight;
}

void CudaBackend::pack_rows(const Weight& weight, int64_t first_row, int64_t row_step,
                            const void* source, DType source_dtype, int64_t rows,
                            int64_t source_stride) {
  const int64_t width = size_of(weight.dtype);
  const int64_t row_bytes = weight.in_features * width;
  MPINFER_CHECK(
      first_row >= 0 && row_step > 0 && first_row + (rows - 1) * row_step < weight.out_features,
      "rows {} + {} * {} of a weight of {}", first_row, rows, row_step, weight.out_features);
  const void* from = source;
  int64_t from_bytes = source_stride * width;
  std::vector<uint8_t> converted;
  const DType declared = declared_dtype(weight);
  if (source_dtype != weight.dtype || declared != weight.dtype) {
    converted.resize(static_cast<size_t>(rows * row_bytes));
    std::vector<uint8_t> as_declared(static_cast<size_t>(weight.in_features * size_of(declared)));
    const auto* bytes = static_cast<const uint8_t*>(source);
    for (int64_t r = 0; r < rows; ++r) {
      convert_row(as_declared.data(), declared, 1,
                  bytes + r * source_stride * size_of(source_dtype), source_dtype,
                  weight.in_features);
      convert_row(converted.data() + r * row_bytes, weight.dtype, 1, as_declared.data(), declared,
                  weight.in_features);
    }
    from = converted.data();
    from_bytes = row_bytes;
  }
  // pack_rows is called by several threads of the loader, which CUDA asks for the device one by
  // one.
  MPINFER_CUDA(cudaSetDevice(options_.device));
  if ((weight.layout & kExpertLayout) != 0) {
    return pack_expert(weight, first_row, row_step, from, rows, from_bytes);
  }
  auto* to = static_cast<uint8_t*>(weight.data) + first_row * row_bytes;
  MPINFER_CUDA(cudaMemcpy2DAsync(to, static_cast<size_t>(row_step * row_bytes), from,
                                 static_cast<size_t>(from_bytes), static_cast<size_t>(row_bytes),
                                 static_cast<size_t>(rows), cudaMemcpyHostToDevice,
                                 stream_of(Stream::kCopy)));
  MPINFER_CUDA(cudaStreamSynchronize(stream_of(Stream::kCopy)));
}

void CudaBackend::draw_rows(const NormalRows& args) {
  MPINFER_CHECK(args.row_stride == 1 || args.column_stride == 1, "strides {} and {}",
                args.row_stride, args.column_stride);
  MPINFER_CUDA(cudaSetDevice(options_.device));
  const bool columns_together = args.column_stride == 1;
  kernels::cuda::draw_rows(stream_of(Stream::kCopy),
                           {.weight = args.weight.data,
                            .dtype = element_type(args.weight.dtype),
                            .declared = element_type(declared_dtype(args.weight)),
                            .tiled = (args.weight.layout & kExpertLayout) != 0,
                            .in_features = args.weight.in_features,
                            .first_row = args.first_row,
                            .row_step = args.row_step,
                            .rows = args.rows,
                            .seed = args.seed,
                            .tensor = args.tensor,
                            .begin = args.begin,
                            .line_stride = columns_together ? args.row_stride : args.column_stride,
                            .columns_together = columns_together,
                            .deviation = args.deviation});
  check_launch();
}

}  // namespace mpinfer::backend
