#include "tests/golden/strict_pieces.h"

#include <cstring>
#include <limits>
#include <map>
#include <vector>

namespace mpinfer::model::test {
namespace {

using backend::Matrix;
using backend::Stream;
using comm::Communicator;
using comm::Pending;
using comm::SumAddNorm;
using comm::Transfer;

class StrictPieces final : public Communicator, public comm::PieceSums {
 public:
  StrictPieces(std::unique_ptr<Communicator> inner, backend::Backend& backend, int* sums)
      : inner_(std::move(inner)), backend_(backend), sums_(sums) {}

  bool may_sum_pieces() const override { return true; }
  PieceSums* begin_pieces(Stream, const SumAddNorm&) override { return this; }

  uint32_t send(Stream stream, const SumAddNorm& piece) override {
    const Matrix& partial = piece.partial;
    Kept& kept = summed_[++number_];
    kept.memory = backend_.allocate(partial.rows * partial.cols * size_of(partial.dtype));
    kept.rows = partial;
    kept.out = piece.out;
    kept.rows.data = kept.memory.data();
    backend_.copy(stream, kept.rows, partial);
    inner_->all_reduce_sum(stream, kept.rows.data, partial.dtype, partial.rows * partial.cols);
    poison(stream, partial);
    poison(stream, piece.out);
    return number_;
  }
  void add(Stream stream, const SumAddNorm& piece, uint32_t number) override {
    const int64_t rows = piece.partial.rows;
    const int64_t begin = first(rows, rank());
    const int64_t count = first(rows, rank() + 1) - begin;
    const Matrix sum = summed_.at(number).rows.slice_rows(begin, count);
    const Matrix residual = piece.residual.slice_rows(begin, count);
    const Matrix out = piece.out.slice_rows(begin, count);
    if (piece.norm_weight == nullptr) {
      backend_.add(stream, residual, sum, piece.scale);
      backend_.copy(stream, out, residual);
    } else {
      backend_.add_rms_norm(stream, out, residual, sum, piece.scale, piece.norm_weight, piece.eps);
    }
    poison(stream, piece.residual.slice_rows(0, begin));
    poison(stream, piece.residual.slice_rows(begin + count, rows - begin - count));
  }
  void receive(Stream stream, uint32_t number) override {
    const Matrix out = summed_.at(number).out;
    const int64_t row_bytes = out.cols * size_of(out.dtype);
    std::vector<int64_t> bytes;
    for (int r = 0; r < size(); ++r) {
      bytes.push_back((first(out.rows, r + 1) - first(out.rows, r)) * row_bytes);
    }
    inner_->all_gather_v(stream, out.data, out.row<char>(0) + first(out.rows, rank()) * row_bytes,
                         bytes);
    summed_.erase(number);
    ++*sums_;
  }

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  backend::Buffer allocate(int64_t bytes) override { return inner_->allocate(bytes); }
  void all_reduce_sum(Stream stream, void* data, DType dtype, int64_t count) override {
    inner_->all_reduce_sum(stream, data, dtype, count);
  }
  void all_gather(Stream stream, void* out, const void* in, int64_t bytes) override {
    inner_->all_gather(stream, out, in, bytes);
  }
  void all_gather_v(Stream stream, void* out, const void* in,
                    std::span<const int64_t> bytes) override {
    inner_->all_gather_v(stream, out, in, bytes);
  }
  void reduce_scatter_sum_v(Stream stream, void* out, const void* in, DType dtype,
                            std::span<const int64_t> counts) override {
    inner_->reduce_scatter_sum_v(stream, out, in, dtype, counts);
  }
  void all_to_all(Stream stream, void* out, const void* in, int64_t bytes) override {
    inner_->all_to_all(stream, out, in, bytes);
  }
  void broadcast(Stream stream, void* data, int64_t bytes, int root) override {
    inner_->broadcast(stream, data, bytes, root);
  }
  std::unique_ptr<Pending> start_send_recv(Stream stream, const Transfer& send,
                                           const Transfer& receive) override {
    return inner_->start_send_recv(stream, send, receive);
  }

 private:
  struct Kept {
    backend::Buffer memory;
    Matrix rows;
    Matrix out;
  };
  int64_t first(int64_t rows, int rank) const { return rows * rank / size(); }
  void poison(Stream stream, const Matrix& rows) {
    if (rows.rows > 0) backend_.fill(stream, rows, std::numeric_limits<float>::quiet_NaN());
  }

  std::unique_ptr<Communicator> inner_;
  backend::Backend& backend_;
  int* sums_;
  uint32_t number_ = 0;
  std::map<uint32_t, Kept> summed_;
};

}  // namespace

std::unique_ptr<Communicator> make_strict_pieces(std::unique_ptr<Communicator> inner,
                                                 backend::Backend& backend, int* sums) {
  return std::make_unique<StrictPieces>(std::move(inner), backend, sums);
}

}  // namespace mpinfer::model::test
