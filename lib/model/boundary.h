// The boundary between a row-parallel linear and the residual stream: the one place inside the
// layers where ranks of TP meet. Layers read normed rows and leave partial ones; between them lies
// residual += scale * sum over TP of partial; normed = rms_norm(residual) * weight. Where GPUs see
// each other's memory, between the boundaries of a stage the residual of a row may be kept by one
// rank alone, and in steps of many rows the sums go in pieces beside products of other pieces.
#pragma once

#include <optional>
#include <vector>

#include "lib/backend/backend.h"
#include "lib/comm/communicator.h"
#include "lib/model/linear.h"
#include "lib/model/row_pieces.h"

namespace mpinfer::model {

struct BoundaryRows {
  backend::Matrix residual;  // [num_rows, hidden_size]
  backend::Matrix normed;    // likewise
  backend::Matrix partial;   // likewise
  backend::Matrix received;  // [received_rows, hidden_size]: others' summands; none: no pieces
};

struct BoundaryOptions {
  float residual_scale = 1.0F;
  float norm_eps = 0.0F;
};

// Of one step, from the first norm to the last sum.
class Boundary {
 public:
  Boundary(backend::Backend& backend, comm::Communicator& tp, backend::Stream stream,
           const BoundaryRows& rows, const BoundaryOptions& options);

  int num_pieces() const { return static_cast<int>(pieces_.size()); }
  const RowPiece& rows_of(int piece) const { return pieces_[static_cast<size_t>(piece)]; }
  // The first norm of the stage.
  void norm(const void* norm_weight);
  // Rows of a piece for a product that is launched next.
  backend::Matrix normed(int piece);
  backend::Matrix partial(int piece) const;
  // After the launch of the products that leave this in partial(piece): its sum and norm are on
  // their way, and normed(piece) waits for them. Without a weight, the last sum of the stage.
  void sum(int piece, const Partial& partial, const void* norm_weight);
  // After products that leave nothing to sum up: adds what came over beside them.
  void add_earlier();
  // The same for what takes all rows at once.
  backend::Matrix all_normed();
  void sum_all(const Partial& partial, const void* norm_weight);
  // Where no other rank adds to it: what sum_all would do, for a layer that does it itself instead.
  std::optional<backend::AddNorm> alone(const void* norm_weight) const;
  // Until the residual is right on every rank.
  void finish();

  // Enough for so many rows or fewer.
  static int64_t received_rows(int64_t rows, int tp);

 private:
  struct Sum {
    comm::SumAddNorm of;
    uint32_t number = 0;
    enum class State { kNone, kSent, kAdded } state = State::kNone;
  };

  void add(int piece);
  void receive(int piece);

  backend::Backend& backend_;
  comm::Communicator& tp_;
  backend::Stream stream_;
  BoundaryRows rows_;
  BoundaryOptions options_;
  std::vector<RowPiece> pieces_;
  std::vector<backend::Matrix> received_;  // by piece
  std::vector<Sum> sums_;                  // by piece
  comm::PieceSums* piece_sums_ = nullptr;  // null: one piece
};

}  // namespace mpinfer::model
