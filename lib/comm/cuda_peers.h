// CudaPeers: memory of one axis' GPUs that every rank of the axis sees (CUDA IPC, one host), and
// the sum that works through it (kernels/cuda/peer_sum.cu). Where the ranks are on several hosts,
// or a GPU cannot open another's memory, it offers nothing, on all ranks alike.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/comm/communicator.h"
#include "lib/comm/mpi.h"

namespace mpinfer::comm {

class CudaPeers {
 public:
  // Borrowed; both outlive this. Collective over comm.
  CudaPeers(const HostComm& comm, backend::Backend& backend);
  ~CudaPeers();
  CudaPeers(const CudaPeers&) = delete;
  CudaPeers& operator=(const CudaPeers&) = delete;

  // Collective. Seen by every rank if that can be done.
  backend::Buffer allocate(int64_t bytes);
  // As Communicator::sum_add_norm, but without a norm, too, only rows that this rank keeps are
  // right.
  bool sum_add_norm(Stream stream, const SumAddNorm& sum);
  // Two ranks both sum up every row: as many bytes cross the link as with half of the rows each,
  // but once, and nobody waits for the other's half.
  bool keeps_all_rows() const { return comm_.size() == 2; }
  // Rows that a rank keeps otherwise.
  int64_t first_row(int64_t rows, int rank) const { return rows * rank / comm_.size(); }
  // Kernels that wait for a peer end, now and later: the peer is gone.
  void abandon();
  const uint32_t* abandoned() const { return static_cast<const uint32_t*>(abandoned_.data()); }

  struct Region {  // one a call of allocate, the same on every rank
    int rank = 0;  // this one
    int64_t bytes = 0;
    std::vector<char*> bases;  // by rank
    uint32_t rounds = 0;

    bool holds(const backend::Matrix& rows) const;
    char* of(int peer, const void* data) const;  // where peer keeps what this rank keeps at data
    uint32_t* sum_flags(int peer) const;         // [kernels::cuda::kPeerSumFlags]
    uint32_t* piece_flags(int peer) const;       // [kPieceFlags]
  };
  static constexpr int64_t kPieceFlags = 1024;
  Region* region_of(const backend::Matrix& rows);  // null: not seen
  int32_t num_processors() const { return num_processors_; }

 private:
  const HostComm& comm_;
  backend::Backend& backend_;
  bool possible_ = false;
  int32_t num_processors_ = 0;
  backend::Buffer abandoned_;  // host, u32
  std::vector<Region> regions_;
};

}  // namespace mpinfer::comm
