// Communicator: collectives on device tensors of one axis (tp, pp ring, lockstep group), in stream
// order. Counts come from the plan: there is no size exchange and no host sync inside. All-reduce
// gives equal bits on every rank; the MPI and thread implementations sum in rank order whatever the
// size. A communicator of size 1 does nothing, so callers never ask for the size. Implementations:
// SingleCommunicator, MpiCommunicator, ThreadCommunicator (tests), NcclCommunicator.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lib/backend/backend.h"

namespace mpinfer::comm {

using backend::Stream;

// A transfer under way; test() makes progress and is true once both buffers may be used again.
class Pending {
 public:
  virtual ~Pending() = default;
  virtual bool test() = 0;
};

// What an axis is for: collectives that kernels wait for, or transfers beside kernels (the stage
// shift), which should leave the device to them.
enum class AxisUse { kCollectives, kTransfers };

struct Transfer {
  void* data = nullptr;
  int64_t bytes = 0;  // 0: none
  int peer = -1;
};

// What follows a row-parallel product: the sum over ranks, the residual sum, the next norm.
struct SumAddNorm {
  backend::Matrix out;       // [rows, cols]; no memory: without a norm
  backend::Matrix partial;   // [rows, cols], this rank's summand; used up
  backend::Matrix residual;  // [rows, cols]
  float scale = 1.0F;
  const void* norm_weight = nullptr;  // f32 [cols]
  float eps = 0.0F;
  backend::Matrix received = {};  // PieceSums alone: [received_rows, cols], others' summands
};

// sum_add_norm of the pieces of a step's rows, several of which may be under way: send, add and
// receive of one piece are called around products of others, and what crosses between ranks goes
// on beside those. Every rank makes the same calls in the same order. A rank keeps the residual of
// a part of each piece. Without a weight out is the residual itself.
class PieceSums {
 public:
  virtual ~PieceSums() = default;
  // partial of a piece is computed: it goes to the ranks that keep its rows. Nobody reads out any
  // more. Returns the sum's number for the other two.
  virtual uint32_t send(Stream, const SumAddNorm& piece) = 0;
  // This rank's rows of the residual and of out, the latter to the others too.
  virtual void add(Stream, const SumAddNorm& piece, uint32_t number) = 0;
  // out is complete, and nothing of this sum uses its memory any more.
  virtual void receive(Stream, uint32_t number) = 0;

  static constexpr int kMostInFlight = 32;  // sent and not received
};

// Rows of SumAddNorm::received for a piece.
constexpr int64_t received_rows(int64_t rows, int size) {
  return (rows + size - 1) / size * (size - 1);
}

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // A peer may be gone: what waits for it on a device ends, with any result; no call may follow.
  virtual void abandon() {}

  // Memory that the ranks may come to see of each other; collective, of the same size on all.
  virtual backend::Buffer allocate(int64_t bytes) = 0;

  virtual void all_reduce_sum(Stream, void* data, DType dtype, int64_t count) = 0;
  // out holds size() × bytes, rank by rank; in may be its own place in out.
  virtual void all_gather(Stream, void* out, const void* in, int64_t bytes) = 0;
  // byte counts per rank, equal on every rank.
  virtual void all_gather_v(Stream, void* out, const void* in, std::span<const int64_t> bytes) = 0;
  // in holds the counts[] pieces rank by rank; out receives this rank's sum.
  virtual void reduce_scatter_sum_v(Stream, void* out, const void* in, DType dtype,
                                    std::span<const int64_t> counts) = 0;
  // in and out hold size() pieces of bytes each.
  virtual void all_to_all(Stream, void* out, const void* in, int64_t bytes) = 0;
  virtual void broadcast(Stream, void* data, int64_t bytes, int root) = 0;
  // residual += scale * sum over ranks of partial; out = rms_norm(residual) * norm_weight, in one
  // pass through memory from allocate(). With a norm a rank may keep the residual of a part of the
  // rows alone, the same part every time; without one all of them are right on every rank. False:
  // not offered here, on no rank and for no rows of this width; nothing was done.
  virtual bool sum_add_norm(Stream, const SumAddNorm&) { return false; }
  // Whether begin_pieces may offer anything, so that memory for received summands is of use.
  virtual bool may_sum_pieces() const { return false; }
  // For a step whose pieces are rows of these matrices; scale and norm are each piece's. The
  // residual is right on every rank now, and out is, wherever it was received; a step ends with all
  // that was sent received. Null: not offered, as with sum_add_norm.
  virtual PieceSums* begin_pieces(Stream, const SumAddNorm&) { return nullptr; }
  // Nonblocking exchange for the stage shift; either side may be absent (bytes 0). Messages between
  // a pair arrive in the order of the calls.
  virtual std::unique_ptr<Pending> start_send_recv(Stream, const Transfer& send,
                                                   const Transfer& receive) = 0;
};

}  // namespace mpinfer::comm
