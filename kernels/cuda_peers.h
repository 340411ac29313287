// Launchers for sums over peers beside peer_sum of kernels/cuda.h (lib/comm/cuda_peers,
// lib/comm/cuda_piece_sums).
#pragma once

#include "kernels/cuda.h"

namespace mpinfer::kernels::cuda {

// As peer_sum, within this rank's memory: partial[peer] is a copy, complete when arrived[peer]
// [kMostPeers] has reached round. out of this rank alone is written, the residual itself where
// there is no weight. flags are not used.
void piece_sum(cudaStream_t stream, const PeerSumArgs& args, const uint32_t* arrived,
               int32_t num_processors);

// What comes later in the stream waits until flags[peer] of every peer has reached round.
struct PeerWaitArgs {
  int rank = 0;
  int size = 1;
  const uint32_t* flags = nullptr;      // [kMostPeers], in this rank's memory
  uint32_t* of_peers[kMostPeers] = {};  // where this rank's flag lies in theirs; set first if given
  const uint32_t* abandoned = nullptr;
  uint32_t round = 1;
};
void peer_wait(cudaStream_t stream, const PeerWaitArgs& args);

}  // namespace mpinfer::kernels::cuda
