// Inside lib/comm only: what HostComm hides, and the check around every MPI call.
#pragma once

#include <mpi.h>

#include <source_location>

#include "lib/comm/mpi.h"

namespace mpinfer::comm {

struct HostComm::Handle {
  MPI_Comm comm = MPI_COMM_NULL;  // null: a communicator of one that needs no MPI
  int rank = 0;
  int size = 1;

  Handle() = default;
  explicit Handle(MPI_Comm owned);
  ~Handle();
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
};

// Throws Error(kPeerFailure) with rank, host, call and the library's text.
void check_mpi(int status, const char* call,
               std::source_location where = std::source_location::current());

}  // namespace mpinfer::comm

#define MPINFER_MPI(call) ::mpinfer::comm::check_mpi((call), #call)
