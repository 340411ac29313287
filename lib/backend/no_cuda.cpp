// Stands in for the CUDA backend in a build without the CUDA toolkit.
#include "lib/backend/cuda_backend.h"

namespace mpinfer::backend {

int cuda_device_count() {
  return 0;
}

std::string cuda_version() {
  return "";
}

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  throw Error(
      ExitCode::kUsage,
      fmt::format("CUDA device {} asked for, but this build has no CUDA: use --backend cpu, "
                  "or build where nvcc is found",
                  options.device));
}

}  // namespace mpinfer::backend
