#include "lib/backend/cuda_gemm.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "kernels/cuda.h"
#include "lib/backend/cuda_handles.h"

namespace mpinfer::backend {
namespace {

constexpr int kCandidates = 8;
// A candidate's launches are timed together, behind a kernel that waits until all of them stand in
// the queue: an event and a launch cost as much as a product of few rows.
constexpr int kRepeats = 4;
constexpr float kHopeless = 1.2F;  // times the fastest: one launch says enough
constexpr int64_t kHoldNanoseconds = 40000;
// A kernel that is used already is taken where it is so close to the fastest: bringing another onto
// the GPU costs milliseconds in every run.
constexpr float kClose = 1.03F;
constexpr float kCloseNarrow = 1.01F;
// Products of a narrow bucket that go by the wide one's choice before a choice of their own pays:
// timing costs as much as some thirty of them, and 3-4 ms for a kernel that no product used before.
constexpr int kUsesBeforeNarrow = 128;
constexpr int64_t kPreloadSize = 512;  // n, k of the small products that bring kernels in
constexpr int64_t kPreloadBytes = kPreloadSize * kPreloadSize * 4;

cudaDataType_t cuda_type(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return CUDA_R_16BF;
    case DType::kF16:
      return CUDA_R_16F;
    default:
      return CUDA_R_32F;
  }
}

// Rows whose best kernel is at first taken to be the same: four steps an octave from 64 on, two
// below, one up to 16.
int64_t bucket_of(int64_t rows) {
  if (rows <= 16) return 16;
  const auto octave = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(rows - 1)));
  const int64_t step = octave / (rows > 64 ? 4 : 2);
  return (rows + step - 1) / step * step;
}

// Rows that fill the same tiles; 0: they have the wide bucket alone, which is narrow itself, or has
// so many rows that tiles matter little. Within a wide one the kernel that is best for some rows
// takes others 10 to 30 % longer than theirs.
int64_t narrow_bucket_of(int64_t rows) {
  if (rows <= 128 || rows > 4096) return 0;
  const int64_t step = rows <= 1024 ? 16 : 32;
  return (rows + step - 1) / step * step;
}

uint32_t alignment_of(const void* data, int64_t stride, int64_t step, DType dtype) {
  const auto bits = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(data)) |
                    static_cast<uint64_t>((stride | step) * size_of(dtype)) | 16U;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

cublasLtMatrixLayoutOpaque_t layout(DType dtype, int64_t rows, int64_t cols, int64_t stride,
                                    int32_t count, int64_t step) {
  cublasLtMatrixLayoutOpaque_t out{};
  MPINFER_CUBLAS(cublasLtMatrixLayoutInit(&out, cuda_type(dtype), static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(cols), stride));
  if (count == 1) return out;
  MPINFER_CUBLAS(cublasLtMatrixLayoutSetAttribute(&out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                                  sizeof(count)));
  MPINFER_CUBLAS(cublasLtMatrixLayoutSetAttribute(&out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                  &step, sizeof(step)));
  return out;
}

class Timer {
 public:
  Timer() {
    MPINFER_CUDA(cudaEventCreate(&start_));
    MPINFER_CUDA(cudaEventCreate(&end_));
  }
  ~Timer() {
    cudaEventDestroy(start_);
    cudaEventDestroy(end_);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  template <class F>
  float milliseconds(cudaStream_t stream, F f) {
    MPINFER_CUDA(cudaEventRecord(start_, stream));
    f();
    MPINFER_CUDA(cudaEventRecord(end_, stream));
    MPINFER_CUDA(cudaEventSynchronize(end_));
    float out = 0.0F;
    MPINFER_CUDA(cudaEventElapsedTime(&out, start_, end_));
    return out;
  }

 private:
  cudaEvent_t start_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

}  // namespace

// Row-major out = a · weightᵀ is column-major outᵀ[n, rows] = weight (k × n, transposed) · aᵀ (k ×
// rows).
struct CudaGemm::Problem {
  cublasLtMatrixLayoutOpaque_t weight, a, out;
  const void* weight_data;
  const void* a_data;
  void* out_data;
  float scale;
  uint32_t alignment[3];
  DType in, out_type;
};

CudaGemm::CudaGemm(bool deterministic, const std::string& gpu) : deterministic_(deterministic) {
  MPINFER_CUBLAS(cublasLtCreate(&handle_));
  MPINFER_CUBLAS(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t transpose = CUBLAS_OP_T;
  MPINFER_CUBLAS(cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                                sizeof(transpose)));
  if (!deterministic_) read_cache(gpu);
  if (chosen_.empty()) return;
  int device = 0;
  MPINFER_CUDA(cudaGetDevice(&device));
  MPINFER_CUDA(
      cudaMalloc(&preload_memory_, static_cast<size_t>(2 * kPreloadBytes + kWorkspaceBytes)));
  preloader_ = std::thread([this, device] { preload(device); });
}

CudaGemm::~CudaGemm() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  if (preloader_.joinable()) preloader_.join();
  write_cache();
  cudaFree(preload_memory_);
  cublasLtMatmulDescDestroy(operation_);
  cublasLtDestroy(handle_);
}

// Lines of "n k bucket narrow count type type alignment algorithm-in-hex". The library checks an
// algorithm before it is used.
void CudaGemm::read_cache(const std::string& gpu) {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  if (cache == nullptr && home == nullptr) return;
  std::string name = gpu;
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '-');
  cache_path_ = fmt::format("{}/mpinfer/products-5-{}-{}",
                            cache != nullptr ? cache : std::string(home) + "/.cache", name,
                            cublasLtGetVersion());
  std::ifstream file(cache_path_);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    int64_t n = 0, k = 0, bucket = 0;
    bool narrow = false;
    int32_t count = 0;
    int in = 0, out = 0;
    uint32_t alignment = 0;
    std::string hex;
    if (!(fields >> n >> k >> bucket >> narrow >> count >> in >> out >> alignment >> hex)) continue;
    cublasLtMatmulAlgo_t algo{};
    if (hex.size() != 2 * sizeof(algo) ||
        hex.find_first_not_of("0123456789abcdef") != std::string::npos)
      continue;
    auto* bytes = reinterpret_cast<unsigned char*>(&algo);
    for (size_t i = 0; i < sizeof(algo); ++i) {
      bytes[i] = static_cast<unsigned char>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
    }
    chosen_.emplace(Key{n, k, bucket, narrow, count, static_cast<DType>(in),
                        static_cast<DType>(out), alignment},
                    algo);
  }
}

void CudaGemm::expect(int64_t n, int64_t k) {
  if (!preloader_.joinable() || !expected_.emplace(n, k).second) return;
  const std::lock_guard lock(mutex_);
  for (const auto& [key, algo] : chosen_) {
    if (std::get<0>(key) != n || std::get<1>(key) != k) continue;
    const Kernel kernel{std::get<5>(key), std::get<6>(key), algo};
    const std::string bytes(reinterpret_cast<const char*>(&algo), sizeof(algo));
    if (seen_.emplace(kernel.in, kernel.out, bytes).second) to_preload_.push_back(kernel);
  }
  changed_.notify_all();
}

void CudaGemm::wait_for_expected() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return to_preload_.empty(); });
}

void CudaGemm::preload(int device) noexcept {
  cudaStream_t stream = nullptr;
  const bool ready = cudaSetDevice(device) == cudaSuccess &&
                     cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopped_ || !to_preload_.empty(); });
    if (stopped_) break;
    const Kernel kernel = to_preload_.front();
    lock.unlock();
    if (ready) bring_in(stream, kernel);
    lock.lock();
    to_preload_.pop_front();
    changed_.notify_all();
  }
  if (ready) cudaStreamDestroy(stream);
}

// By a product too small to notice. What fails here is loaded when it is needed.
void CudaGemm::bring_in(cudaStream_t stream, const Kernel& kernel) const noexcept {
  cublasLtMatrixLayoutOpaque_t from{};
  cublasLtMatrixLayoutOpaque_t to{};
  const auto size = static_cast<uint64_t>(kPreloadSize);
  cublasLtMatrixLayoutInit(&from, cuda_type(kernel.in), size, size, kPreloadSize);
  cublasLtMatrixLayoutInit(&to, cuda_type(kernel.out), size, size, kPreloadSize);
  const float one = 1.0F;
  const float zero = 0.0F;
  char* result = static_cast<char*>(preload_memory_) + kPreloadBytes;
  cublasLtMatmul(handle_, operation_, &one, preload_memory_, &from, preload_memory_, &from, &zero,
                 result, &to, result, &to, &kernel.algo, result + kPreloadBytes,
                 static_cast<size_t>(kWorkspaceBytes), stream);
}

// A cache that cannot be written costs the next run its timings, nothing more.
void CudaGemm::write_cache() const noexcept {
  if (!grown_ || cache_path_.empty()) return;
  try {
    std::filesystem::create_directories(std::filesystem::path(cache_path_).parent_path());
    const std::string temporary = fmt::format("{}.{}", cache_path_, ::getpid());
    {
      std::ofstream file(temporary);
      for (const auto& [key, algo] : chosen_) {
        const auto& [n, k, bucket, narrow, count, in, out, alignment] = key;
        file << n << ' ' << k << ' ' << bucket << ' ' << narrow << ' ' << count << ' '
             << static_cast<int>(in) << ' ' << static_cast<int>(out) << ' ' << alignment << ' ';
        const auto* bytes = reinterpret_cast<const unsigned char*>(&algo);
        for (size_t i = 0; i < sizeof(algo); ++i) file << fmt::format("{:02x}", bytes[i]);
        file << '\n';
      }
    }
    std::filesystem::rename(temporary, cache_path_);
  } catch (const std::exception&) {
  }
}

bool CudaGemm::in_use(const cublasLtMatmulAlgo_t& algo, DType in, DType out) const {
  return std::any_of(chosen_.begin(), chosen_.end(), [&](const auto& one) {
    const auto& [key, other] = one;
    return std::get<5>(key) == in && std::get<6>(key) == out &&
           std::memcmp(&other, &algo, sizeof(algo)) == 0;
  });
}

cublasLtMatmulAlgo_t CudaGemm::choose(cudaStream_t stream, void* workspace, const Problem& p,
                                      float close) {
  // Deterministic: as for this many rows, whatever batch happens to come first.
  constexpr uint64_t kTypicalRows = 1024;
  cublasLtMatrixLayoutOpaque_t a = p.a;
  cublasLtMatrixLayoutOpaque_t out = p.out;
  if (deterministic_) {
    for (cublasLtMatrixLayoutOpaque_t* rows : {&a, &out}) {
      MPINFER_CUBLAS(cublasLtMatrixLayoutSetAttribute(rows, CUBLASLT_MATRIX_LAYOUT_COLS,
                                                      &kTypicalRows, sizeof(kTypicalRows)));
    }
  }
  cublasLtMatmulPreference_t preference = nullptr;
  MPINFER_CUBLAS(cublasLtMatmulPreferenceCreate(&preference));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
    MPINFER_CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference, name, &value, sizeof(value)));
  };
  const auto bytes = static_cast<uint64_t>(kWorkspaceBytes);
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p.alignment[0]);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p.alignment[1]);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p.alignment[2]);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p.alignment[2]);
  if (deterministic_) {
    const auto none = static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE);
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, none);
  }
  std::vector<cublasLtMatmulHeuristicResult_t> results(kCandidates);
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle_, operation_, const_cast<cublasLtMatrixLayoutOpaque_t*>(&p.weight), &a, &out, &out,
      preference, kCandidates, results.data(), &found);
  cublasLtMatmulPreferenceDestroy(preference);
  MPINFER_CUBLAS(status);
  MPINFER_CHECK(found > 0, "cuBLASLt knows no kernel for this product");
  if (deterministic_ || found == 1) return results[0].algo;
  Timer timer;
  std::vector<float> times(static_cast<size_t>(found), 1e30F);
  float fastest_once = 1e30F;
  const float zero = 0.0F;
  for (int i = 0; i < found; ++i) {
    const auto run = [&] {
      return cublasLtMatmul(handle_, operation_, &p.scale, p.weight_data,
                            const_cast<cublasLtMatrixLayoutOpaque_t*>(&p.weight), p.a_data,
                            const_cast<cublasLtMatrixLayoutOpaque_t*>(&p.a), &zero, p.out_data,
                            const_cast<cublasLtMatrixLayoutOpaque_t*>(&p.out), p.out_data,
                            const_cast<cublasLtMatrixLayoutOpaque_t*>(&p.out),
                            &results[static_cast<size_t>(i)].algo, workspace,
                            static_cast<size_t>(kWorkspaceBytes), stream);
    };
    if (run() != CUBLAS_STATUS_SUCCESS)
      continue;  // warms up; a candidate may refuse what the heuristic promised
    const auto measured = [&](int repeats) {
      kernels::cuda::hold(stream, kHoldNanoseconds);
      return timer.milliseconds(stream, [&] {
        for (int repeat = 0; repeat < repeats; ++repeat) run();
      }) / static_cast<float>(repeats);
    };
    float& time = times[static_cast<size_t>(i)];
    time = measured(1);
    const bool hopeless = time > kHopeless * fastest_once;
    fastest_once = std::min(fastest_once, time);
    if (!hopeless) time = measured(kRepeats);
  }
  auto best = static_cast<size_t>(std::min_element(times.begin(), times.end()) - times.begin());
  float least = close * times[best];
  for (size_t i = 0; i < times.size(); ++i) {
    if (times[i] > least || !in_use(results[i].algo, p.in, p.out_type)) continue;
    best = i;
    least = times[i];
  }
  return results[best].algo;
}

void CudaGemm::multiply(cudaStream_t stream, void* workspace, const Matrix& out, const Matrix& a,
                        const void* weight, float scale, const Batch& batch) {
  const int64_t n = out.cols;
  const int64_t k = a.cols;
  Problem p{.weight = layout(a.dtype, k, n, k, batch.count, batch.weight_step),
            .a = layout(a.dtype, k, a.rows, a.stride, batch.count, batch.a_step),
            .out = layout(out.dtype, n, out.rows, out.stride, batch.count, batch.out_step),
            .weight_data = weight,
            .a_data = a.data,
            .out_data = out.data,
            .scale = scale,
            .alignment = {alignment_of(weight, k, batch.weight_step, a.dtype),
                          alignment_of(a.data, a.stride, batch.a_step, a.dtype),
                          alignment_of(out.data, out.stride, batch.out_step, out.dtype)},
            .in = a.dtype,
            .out_type = out.dtype};
  const uint32_t alignment = p.alignment[0] << 16 | p.alignment[1] << 8 | p.alignment[2];
  const auto key_of = [&](int64_t bucket, bool narrow) {
    return Key{n, k, bucket, narrow, batch.count, a.dtype, out.dtype, alignment};
  };
  const auto choose_for = [&](const Key& key, float close) {
    grown_ = true;
    return chosen_.emplace(key, choose(stream, workspace, p, close)).first;
  };
  const Key wide = key_of(deterministic_ ? 0 : bucket_of(a.rows), false);
  auto found = chosen_.find(wide);
  if (found == chosen_.end()) found = choose_for(wide, kClose);
  float close = kClose;
  // Not a router's, which every tp rank multiplies: a choice that changed during a run could make
  // ranks differ about a row's experts.
  constexpr int64_t kMostExperts = 1024;
  const bool router = out.dtype == DType::kF32 && n <= kMostExperts;
  const int64_t narrow_bucket = deterministic_ || router ? 0 : narrow_bucket_of(a.rows);
  if (narrow_bucket != 0) {
    const Key narrow = key_of(narrow_bucket, true);
    auto own = chosen_.find(narrow);
    if (own == chosen_.end() && ++uses_[narrow] > kUsesBeforeNarrow) {
      own = choose_for(narrow, kCloseNarrow);
      uses_.erase(narrow);
    }
    if (own != chosen_.end()) {
      found = own;
      close = kCloseNarrow;
    }
  }
  const float zero = 0.0F;
  const auto run = [&] {
    return cublasLtMatmul(handle_, operation_, &p.scale, p.weight_data, &p.weight, p.a_data, &p.a,
                          &zero, p.out_data, &p.out, p.out_data, &p.out, &found->second, workspace,
                          static_cast<size_t>(kWorkspaceBytes), stream);
  };
  cublasStatus_t status = run();
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) {
    // Chosen for another number of rows of this bucket.
    found->second = choose(stream, workspace, p, close);
    grown_ = true;
    status = run();
  }
  cublas_check(status, "cublasLtMatmul");
}

}  // namespace mpinfer::backend
