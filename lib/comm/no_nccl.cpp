// Stands in for nccl_communicator.cpp where CMake finds no NCCL.
#include "lib/comm/nccl_communicator.h"
#include "lib/comm/single_communicator.h"
#include "lib/core/error.h"

namespace mpinfer::comm {

std::unique_ptr<Communicator> make_nccl_communicator(const HostComm& comm,
                                                     backend::Backend& backend, Watch&,
                                                     const char* name, AxisUse) {
  if (comm.size() == 1) return std::make_unique<SingleCommunicator>(backend);
  throw Error(ExitCode::kUsage, fmt::format("{} of {} GPUs needs NCCL, which this build was made "
                                            "without; use --dp {} alone, or build "
                                            "where CMake finds nccl.h",
                                            name, comm.size(), comm.size()));
}

}  // namespace mpinfer::comm
