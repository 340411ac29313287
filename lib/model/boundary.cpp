#include "lib/model/boundary.h"

#include "lib/core/error.h"

namespace mpinfer::model {
namespace {

static_assert(kMostRowPieces <= comm::PieceSums::kMostInFlight);

using backend::Matrix;
using backend::Stream;

Matrix slice(const Matrix& rows, const RowPiece& piece) {
  return rows.slice_rows(piece.begin, piece.rows);
}

// All rows at once.
void sum_add_norm(backend::Backend& backend, comm::Communicator& tp, Stream stream,
                  const comm::SumAddNorm& sum) {
  if (tp.sum_add_norm(stream, sum)) return;
  MPINFER_CHECK(sum.partial.stride == sum.partial.cols, "a partial of {} columns with stride {}",
                sum.partial.cols, sum.partial.stride);
  tp.all_reduce_sum(stream, sum.partial.data, sum.partial.dtype,
                    sum.partial.rows * sum.partial.cols);
  backend.add_norm(stream,
                   {.residual = sum.residual,
                    .normed = sum.out,
                    .scale = sum.scale,
                    .norm_weight = sum.norm_weight,
                    .eps = sum.eps},
                   sum.partial);
}

}  // namespace

Boundary::Boundary(backend::Backend& backend, comm::Communicator& tp, Stream stream,
                   const BoundaryRows& rows, const BoundaryOptions& options)
    : backend_(backend), tp_(tp), stream_(stream), rows_(rows), options_(options) {
  const int64_t num_rows = rows.residual.rows;
  pieces_ = row_pieces(num_rows);
  if (rows.received.rows > 0 && pieces_.size() > 1) {
    piece_sums_ = tp.begin_pieces(stream, {.out = rows.normed,
                                           .partial = rows.partial,
                                           .residual = rows.residual,
                                           .received = rows.received});
  }
  if (piece_sums_ == nullptr) pieces_ = {{0, num_rows}};
  sums_.resize(pieces_.size());
  if (piece_sums_ == nullptr) return;
  int64_t begin = 0;
  for (const RowPiece& piece : pieces_) {
    const int64_t count = comm::received_rows(piece.rows, tp.size());
    received_.push_back(rows.received.slice_rows(begin, count));
    begin += count;
  }
}

int64_t Boundary::received_rows(int64_t rows, int tp) {
  return rows < kLeastRowsOfPieces ? 0 : (rows / tp + kMostRowPieces) * (tp - 1);
}

void Boundary::norm(const void* norm_weight) {
  backend_.rms_norm(stream_, rows_.normed, rows_.residual, norm_weight, options_.norm_eps);
}

Matrix Boundary::partial(int piece) const {
  return slice(rows_.partial, rows_of(piece));
}

Matrix Boundary::all_normed() {
  for (int piece = 0; piece < num_pieces(); ++piece) receive(piece);
  return rows_.normed;
}

std::optional<backend::AddNorm> Boundary::alone(const void* norm_weight) const {
  if (tp_.size() > 1) return std::nullopt;
  return backend::AddNorm{.residual = rows_.residual,
                          .normed = norm_weight == nullptr ? Matrix{} : rows_.normed,
                          .scale = options_.residual_scale,
                          .norm_weight = norm_weight,
                          .eps = options_.norm_eps};
}

void Boundary::sum_all(const Partial& partial, const void* norm_weight) {
  for (int piece = 0; piece < num_pieces(); ++piece)
    sum(piece, {slice(partial.rows, rows_of(piece))}, norm_weight);
}

Matrix Boundary::normed(int piece) {
  receive(piece);
  return slice(rows_.normed, rows_of(piece));
}

void Boundary::sum(int piece, const Partial& partial, const void* norm_weight) {
  const auto at = static_cast<size_t>(piece);
  MPINFER_CHECK(sums_[at].state == Sum::State::kNone, "two sums of piece {}", piece);
  const bool out = norm_weight != nullptr || piece_sums_ != nullptr;
  const comm::SumAddNorm of{.out = out ? slice(rows_.normed, rows_of(piece)) : Matrix{},
                            .partial = partial.rows,
                            .residual = slice(rows_.residual, rows_of(piece)),
                            .scale = options_.residual_scale,
                            .norm_weight = norm_weight,
                            .eps = options_.norm_eps,
                            .received = piece_sums_ != nullptr ? received_[at] : Matrix{}};
  const uint32_t number = piece_sums_ != nullptr ? piece_sums_->send(stream_, of) : 0;
  add_earlier();  // their rows came over beside this piece's products
  sums_[at] = {of, number, Sum::State::kSent};
}

void Boundary::add_earlier() {
  for (int piece = 0; piece < num_pieces(); ++piece) add(piece);
}

void Boundary::add(int piece) {
  Sum& sum = sums_[static_cast<size_t>(piece)];
  if (sum.state != Sum::State::kSent) return;
  if (piece_sums_ != nullptr) {
    piece_sums_->add(stream_, sum.of, sum.number);
  } else {
    sum_add_norm(backend_, tp_, stream_, sum.of);
  }
  sum.state = Sum::State::kAdded;
}

void Boundary::receive(int piece) {
  add(piece);
  Sum& sum = sums_[static_cast<size_t>(piece)];
  if (sum.state != Sum::State::kAdded) return;
  if (piece_sums_ != nullptr) piece_sums_->receive(stream_, sum.number);
  sum.state = Sum::State::kNone;
}

void Boundary::finish() {
  for (int piece = 0; piece < num_pieces(); ++piece) {
    receive(piece);
    const comm::SumAddNorm& last = sums_[static_cast<size_t>(piece)].of;
    if (piece_sums_ != nullptr) backend_.copy(stream_, last.residual, last.out);
  }
}

}  // namespace mpinfer::model
