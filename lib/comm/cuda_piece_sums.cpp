#include "lib/comm/cuda_piece_sums.h"

#include <cuda.h>

#include "kernels/cuda_peers.h"
#include "lib/backend/cuda_backend_impl.h"
#include "lib/backend/cuda_handles.h"
#include "lib/core/error.h"

namespace mpinfer::comm {
namespace {

namespace cuda = kernels::cuda;

// Flags of a rank: [kind][number][peer]. Those of a step come after the others.
constexpr int kSummands = 0;
constexpr int kNormed = 1;
constexpr int64_t kStepFlags = int64_t{2} * PieceSums::kMostInFlight * cuda::kMostPeers;
static_assert(kStepFlags + cuda::kMostPeers <= CudaPeers::kPieceFlags);

// In stream order, after all that the stream wrote. Asked of the driver, so that a binary starts
// where there is none; null: this one is too old.
auto write_value() {
  static const auto found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const bool known = cudaGetDriverEntryPointByVersion("cuStreamWriteValue32", &entry, 12000,
                                                        cudaEnableDefault, &result) == cudaSuccess;
    static_cast<void>(cudaGetLastError());  // that there is none is an answer, no error
    return reinterpret_cast<decltype(&cuStreamWriteValue32)>(
        known && result == cudaDriverEntryPointSuccess ? entry : nullptr);
  }();
  return found;
}

// Where the summands of rank from lie among those that a rank with this share receives, in rows.
int64_t place_of(int from, int to, int64_t share_rows) {
  return (from < to ? from : from - 1) * share_rows;
}

int64_t row_bytes(const backend::Matrix& rows) {
  return rows.cols * mpinfer::size_of(rows.dtype);
}

char* at_row(const backend::Matrix& rows, int64_t row) {
  return static_cast<char*>(rows.data) + row * row_bytes(rows);
}

}  // namespace

CudaPieceSums::CudaPieceSums(CudaPeers& peers, backend::Backend& backend, int rank, int size)
    : peers_(peers), backend_(backend), rank_(rank), size_(size) {
  MPINFER_CUDA(cudaStreamCreateWithFlags(&pushes_, cudaStreamNonBlocking));
  MPINFER_CUDA(cudaEventCreateWithFlags(&computed_, cudaEventDisableTiming));
  for (cudaEvent_t& event : pushed_)
    MPINFER_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
}

CudaPieceSums::~CudaPieceSums() {
  for (cudaEvent_t event : pushed_) cudaEventDestroy(event);
  cudaEventDestroy(computed_);
  cudaStreamDestroy(pushes_);
}

cudaStream_t CudaPieceSums::of(Stream stream) const {
  return static_cast<cudaStream_t>(backend::cuda_stream(backend_, stream));
}

uint32_t* CudaPieceSums::flags(int rank, int kind, uint32_t number) const {
  const int64_t place = kind * kMostInFlight + static_cast<int64_t>(number % kMostInFlight);
  return region_->piece_flags(rank) + place * cuda::kMostPeers;
}

CudaPieceSums::Share CudaPieceSums::share_of(int64_t rows, int rank) const {
  const int64_t begin = peers_.first_row(rows, rank);
  return {begin, peers_.first_row(rows, rank + 1) - begin};
}

void CudaPieceSums::push(int peer, void* to, const void* from, int64_t bytes, int kind,
                         uint32_t number) const {
  if (bytes > 0) {
    MPINFER_CUDA(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, pushes_));
  }
  const auto flag = reinterpret_cast<CUdeviceptr>(flags(peer, kind, number) + rank_);
  const CUresult status = write_value()(pushes_, flag, number, CU_STREAM_WRITE_VALUE_DEFAULT);
  MPINFER_CHECK(status == CUDA_SUCCESS, "cuStreamWriteValue32 to GPU {} of {}: error {}", peer,
                size_, static_cast<int>(status));
}

// Later pushes wait for what is in stream now.
void CudaPieceSums::after(Stream stream) {
  MPINFER_CUDA(cudaEventRecord(computed_, of(stream)));
  MPINFER_CUDA(cudaStreamWaitEvent(pushes_, computed_, 0));
}

bool CudaPieceSums::begin(Stream stream, const SumAddNorm& step) {
  region_ = peers_.region_of(step.partial);
  if (write_value() == nullptr || region_ == nullptr || !region_->holds(step.out) ||
      !region_->holds(step.received) ||
      !cuda::peer_sum_takes(backend::view(step.residual), step.partial.cols)) {
    return false;
  }
  // What the others do in their step before may use the memory that is written from here on.
  cuda::PeerWaitArgs args{.rank = rank_,
                          .size = size_,
                          .flags = region_->piece_flags(rank_) + kStepFlags,
                          .abandoned = peers_.abandoned(),
                          .round = ++steps_};
  for (int peer = 0; peer < size_; ++peer) {
    args.of_peers[peer] = region_->piece_flags(peer) + kStepFlags + rank_;
  }
  cuda::peer_wait(of(stream), args);
  backend::check_launch();
  return true;
}

uint32_t CudaPieceSums::send(Stream stream, const SumAddNorm& piece) {
  const backend::Matrix& partial = piece.partial;
  MPINFER_CHECK(partial.stride == partial.cols && piece.out.stride == partial.cols &&
                    piece.received.stride == partial.cols &&
                    piece.received.rows >= received_rows(partial.rows, size_),
                "a piece of [{}, {}] with room for {} rows of {} ranks", partial.rows, partial.cols,
                piece.received.rows, size_);
  const uint32_t number = ++number_;
  after(stream);
  for (int i = 1; i < size_; ++i) {
    const int peer = (rank_ + i) % size_;
    const Share share = share_of(partial.rows, peer);
    char* received = at_row(piece.received, place_of(rank_, peer, share.rows));
    push(peer, region_->of(peer, received), at_row(partial, share.begin),
         share.rows * row_bytes(partial), kSummands, number);
  }
  return number;
}

void CudaPieceSums::add(Stream stream, const SumAddNorm& piece, uint32_t number) {
  const backend::Matrix& partial = piece.partial;
  const Share share = share_of(partial.rows, rank_);
  cuda::PeerSumArgs args{.rank = rank_,
                         .size = size_,
                         .abandoned = peers_.abandoned(),
                         .round = number,
                         .residual = backend::view(piece.residual),
                         .rows = partial.rows,
                         .first_row = share.begin,
                         .end_row = share.begin + share.rows,
                         .cols = partial.cols,
                         .scale = piece.scale,
                         .weight = static_cast<const float*>(piece.norm_weight),
                         .eps = piece.eps};
  for (int peer = 0; peer < size_; ++peer) {
    // The kernel counts rows from the piece's first.
    args.partial[peer] =
        peer == rank_ ? partial.data
                      : at_row(piece.received, place_of(peer, rank_, share.rows) - share.begin);
  }
  args.out[rank_] = piece.out.data;
  cuda::piece_sum(of(stream), args, flags(rank_, kSummands, number), peers_.num_processors());
  backend::check_launch();
  after(stream);
  char* normed = at_row(piece.out, share.begin);
  for (int i = 1; i < size_; ++i) {
    const int peer = (rank_ + i) % size_;
    push(peer, region_->of(peer, normed), normed, share.rows * row_bytes(piece.out), kNormed,
         number);
  }
  MPINFER_CUDA(cudaEventRecord(pushed_[number % kMostInFlight], pushes_));
}

void CudaPieceSums::receive(Stream stream, uint32_t number) {
  MPINFER_CUDA(cudaStreamWaitEvent(of(stream), pushed_[number % kMostInFlight], 0));
  cuda::peer_wait(of(stream), {.rank = rank_,
                               .size = size_,
                               .flags = flags(rank_, kNormed, number),
                               .abandoned = peers_.abandoned(),
                               .round = number});
  backend::check_launch();
}

}  // namespace mpinfer::comm
