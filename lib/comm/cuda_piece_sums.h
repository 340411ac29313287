// CudaPieceSums: sums over peer GPUs that hide behind products. The copy engines push rows into the
// peers' memory on a stream of their own, a flag behind each push, so no multiprocessor is taken
// from the product that runs; the sums themselves work within this rank's memory.
// No push meets a reader of what it overwrites: a peer sends a piece again only after it received
// that piece's last sum, which this rank pushed when it had used what the peer sent before.
#pragma once

#include <cuda_runtime_api.h>

#include <array>

#include "lib/comm/cuda_peers.h"

namespace mpinfer::comm {

class CudaPieceSums final : public PieceSums {
 public:
  // Borrowed; both outlive this. Of the current device.
  CudaPieceSums(CudaPeers& peers, backend::Backend& backend, int rank, int size);
  ~CudaPieceSums() override;
  CudaPieceSums(const CudaPieceSums&) = delete;
  CudaPieceSums& operator=(const CudaPieceSums&) = delete;

  // As Communicator::begin_pieces. False: not offered.
  bool begin(Stream stream, const SumAddNorm& step);

  uint32_t send(Stream stream, const SumAddNorm& piece) override;
  void add(Stream stream, const SumAddNorm& piece, uint32_t number) override;
  void receive(Stream stream, uint32_t number) override;

 private:
  struct Share {
    int64_t begin = 0;
    int64_t rows = 0;
  };

  cudaStream_t of(Stream stream) const;
  Share share_of(int64_t rows, int rank) const;  // of a piece, that rank keeps
  uint32_t* flags(int rank, int kind, uint32_t number) const;
  void push(int peer, void* to, const void* from, int64_t bytes, int kind, uint32_t number) const;
  void after(Stream stream);

  CudaPeers& peers_;
  backend::Backend& backend_;
  int rank_;
  int size_;
  const CudaPeers::Region* region_ = nullptr;  // of the step that was begun
  cudaStream_t pushes_ = nullptr;
  cudaEvent_t computed_ = nullptr;
  std::array<cudaEvent_t, kMostInFlight> pushed_ = {};  // by number: the rows of out
  uint32_t number_ = 0;
  uint32_t steps_ = 0;
};

}  // namespace mpinfer::comm
