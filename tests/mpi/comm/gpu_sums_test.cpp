// Sums through GPUs' views of each other's memory, all rows at once and piece by piece, against an
// all-reduce with an add and a norm after it, on the same numbers.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "lib/comm/nccl_communicator.h"
#include "tests/mpi/comm/gpu_world.h"

namespace mpinfer::comm {
namespace {

using backend::Matrix;

constexpr int64_t kMost = 700 * 4096;
constexpr int64_t kWidest = 8200;
constexpr float kScale = 0.5F;
constexpr float kEps = 1e-5F;

// A rank with memory for a sum and for the sum that it is compared with.
class Sums {
 public:
  explicit Sums(const HostComm& world)
      : world_(world),
        backend_(
            backend::make_cuda_backend({.device = world.rank(), .activation_dtype = DType::kF32})),
        watch_(patient(world)),
        communicator_(
            make_nccl_communicator(world, *backend_, watch_, "tp", AxisUse::kCollectives)),
        shared_(communicator_->allocate(3 * kMost * 4)),
        plain_(backend_->allocate(4 * kMost * 4)),
        weight_(backend_->allocate(kWidest * 4)) {
    const std::vector<float> weights(static_cast<size_t>(kWidest), 1.5F);
    backend_->upload(Stream::kCompute, weight_.data(), weights.data(), kWidest * 4);
    backend_->synchronize();
  }

  void resize(int64_t rows, int64_t cols) {
    rows_ = rows;
    cols_ = cols;
    fill(residual(), 99);
    fill(expected(), 99);
    barrier();
  }

  Matrix partial() const { return matrix(shared_, 0, rows_); }
  Matrix out() const { return matrix(shared_, 1, rows_); }
  Matrix received() const { return matrix(shared_, 2, kMost / cols_); }
  Matrix residual() const { return matrix(plain_, 0, rows_); }
  Matrix expected() const { return matrix(plain_, 1, rows_); }  // residual
  Matrix expected_out() const { return matrix(plain_, 2, rows_); }
  Matrix source() const { return matrix(plain_, 3, rows_); }

  void fill(const Matrix& to, int seed) {
    std::vector<float> values(static_cast<size_t>(rows_ * cols_));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] =
          static_cast<float>((i * 7919 + static_cast<size_t>(seed) * 104729) % 2001) / 1000.0F -
          1.0F;
    }
    backend_->upload(Stream::kCompute, to.data, values.data(), rows_ * cols_ * 4);
    backend_->synchronize();
  }
  std::vector<float> values_of(const Matrix& from) {
    std::vector<float> values(static_cast<size_t>(rows_ * cols_));
    backend_->download(Stream::kCompute, values.data(), from.data, rows_ * cols_ * 4);
    backend_->synchronize();
    return values;
  }
  // What the sum of source over ranks makes of expected and expected_out.
  void expect(bool norm) {
    communicator_->all_reduce_sum(Stream::kCompute, source().data, DType::kF32, rows_ * cols_);
    if (norm) {
      backend_->add_rms_norm(Stream::kCompute, expected_out(), expected(), source(), kScale,
                             weight_.data(), kEps);
    } else {
      backend_->add(Stream::kCompute, expected(), source(), kScale);
      backend_->copy(Stream::kCompute, expected_out(), expected());
    }
  }
  void check_same_on_all_ranks(const std::vector<float>& values) {
    const std::string mine(reinterpret_cast<const char*>(values.data()), values.size() * 4);
    for (const std::string& other : world_.all_gather(mine)) CHECK(other == mine);
  }
  void barrier() {
    backend_->synchronize();
    world_.barrier();
  }

  backend::Backend& backend() { return *backend_; }
  Communicator& communicator() { return *communicator_; }
  const void* weight() const { return weight_.data(); }

 private:
  Matrix matrix(const backend::Buffer& of, int64_t place, int64_t rows) const {
    return {static_cast<float*>(of.data()) + place * kMost, DType::kF32, rows, cols_, cols_};
  }

  const HostComm& world_;
  std::unique_ptr<backend::Backend> backend_;
  Watch watch_;
  std::unique_ptr<Communicator> communicator_;
  backend::Buffer shared_;
  backend::Buffer plain_;
  backend::Buffer weight_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
};

void check_close(const std::vector<float>& a, const std::vector<float>& b) {
  float worst = 0.0F;
  float largest = 1.0F;
  for (size_t i = 0; i < a.size(); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    worst = difference <= worst ? worst : difference;  // a NaN is the worst
    largest = std::max(largest, std::abs(b[i]));
  }
  CHECK(worst < 2e-5F * largest);
}

constexpr const char* kUnseen = "these GPUs do not see each other's memory: skipped";

SumAddNorm whole_step(const Sums& sums) {
  return {.out = sums.out(),
          .partial = sums.partial(),
          .residual = sums.residual(),
          .received = sums.received()};
}

// Layers of a model: what a rank brings to a sum is source and a part of the norm before.
constexpr int kLayers = 12;

void bring(Sums& sums, const Matrix& partial, const Matrix& source, const Matrix& out, int layer) {
  sums.backend().copy(Stream::kCompute, partial, source);
  if (layer > 0) sums.backend().add(Stream::kCompute, partial, out, 0.25F);
}

// The residual after kLayers and a sum without a norm, by an all-reduce each.
std::vector<float> expected_layers(Sums& sums, int seed) {
  for (int layer = 0; layer <= kLayers; ++layer) {
    sums.fill(sums.source(), seed);
    if (layer > 0) sums.backend().add(Stream::kCompute, sums.source(), sums.expected_out(), 0.25F);
    sums.expect(layer < kLayers);
  }
  return sums.values_of(sums.expected());
}

void maybe_late(bool late) {
  if (late) std::this_thread::sleep_for(std::chrono::microseconds(300));
}

// Pieces of these sizes, in order.
std::vector<SumAddNorm> pieces_of(const Sums& sums, const std::vector<int64_t>& sizes, bool norm,
                                  int ranks) {
  std::vector<SumAddNorm> out;
  int64_t begin = 0;
  int64_t received = 0;
  for (const int64_t rows : sizes) {
    const int64_t room = received_rows(rows, ranks);
    out.push_back({.out = sums.out().slice_rows(begin, rows),
                   .partial = sums.partial().slice_rows(begin, rows),
                   .residual = sums.residual().slice_rows(begin, rows),
                   .scale = kScale,
                   .norm_weight = norm ? sums.weight() : nullptr,
                   .eps = kEps,
                   .received = sums.received().slice_rows(received, room)});
    begin += rows;
    received += room;
  }
  return out;
}

}  // namespace

TEST_CASE("GPUs sum, add and norm through each other's memory", "[comm]") {
  const HostComm world = HostComm::world();
  if (!has_gpus(world)) return;
  Sums sums(world);
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 4096}, {2, 8}, {5, 8200}, {333, 1024}, {700, 4096}, {7, 4096}}) {
    CAPTURE(rows, cols);
    sums.resize(rows, cols);
    // Layers: two sums with a norm, one without.
    for (int step = 0; step < 3; ++step) {
      const bool norm = step < 2;
      sums.fill(sums.partial(), 3 * step + world.rank());
      sums.fill(sums.source(), 3 * step + world.rank());
      const bool offered =
          sums.communicator().sum_add_norm(Stream::kCompute, {.out = norm ? sums.out() : Matrix{},
                                                              .partial = sums.partial(),
                                                              .residual = sums.residual(),
                                                              .scale = kScale,
                                                              .norm_weight = sums.weight(),
                                                              .eps = kEps});
      if (!offered) {
        WARN(kUnseen);
        return;
      }
      sums.barrier();
      sums.expect(norm);
      if (norm) {
        const std::vector<float> normed = sums.values_of(sums.out());
        check_close(normed, sums.values_of(sums.expected_out()));
        sums.check_same_on_all_ranks(normed);
      } else {
        check_close(sums.values_of(sums.residual()), sums.values_of(sums.expected()));
      }
      sums.barrier();
    }
  }
}

// A late rank shows what is read or overwritten too early.
TEST_CASE("GPUs sum one layer after the other", "[comm]") {
  const HostComm world = HostComm::world();
  if (!has_gpus(world)) return;
  Sums sums(world);
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 4096}, {2, 8}, {600, 4096}, {333, 1024}}) {
    CAPTURE(rows, cols);
    sums.resize(rows, cols);
    for (int step = 0; step < 4; ++step) {
      sums.fill(sums.source(), step + world.rank());
      for (int layer = 0; layer <= kLayers; ++layer) {
        maybe_late(step % world.size() == world.rank());
        const bool norm = layer < kLayers;
        bring(sums, sums.partial(), sums.source(), sums.out(), layer);
        if (!sums.communicator().sum_add_norm(Stream::kCompute,
                                              {.out = norm ? sums.out() : Matrix{},
                                               .partial = sums.partial(),
                                               .residual = sums.residual(),
                                               .scale = kScale,
                                               .norm_weight = sums.weight(),
                                               .eps = kEps})) {
          WARN(kUnseen);
          return;
        }
      }
      const std::vector<float> found = sums.values_of(sums.residual());
      sums.check_same_on_all_ranks(found);
      check_close(found, expected_layers(sums, step + world.rank()));
    }
  }
}

// As a model runs them: a piece is sent, the one before is added, and what the next product reads
// is received just before.
TEST_CASE("GPUs sum pieces of rows, several under way", "[comm]") {
  const HostComm world = HostComm::world();
  if (!has_gpus(world)) return;
  Sums sums(world);
  for (const auto& [cols, sizes] : std::vector<std::pair<int64_t, std::vector<int64_t>>>{
           {4096, {200, 200, 200, 100}}, {8200, {40, 1, 3}}, {8, {1}}, {1024, {333, 1, 2, 300}}}) {
    int64_t rows = 0;
    for (const int64_t piece : sizes) rows += piece;
    CAPTURE(rows, cols);
    sums.resize(rows, cols);
    for (int step = 0; step < 4; ++step) {
      PieceSums* pieces = sums.communicator().begin_pieces(Stream::kCompute, whole_step(sums));
      if (pieces == nullptr) {
        WARN(kUnseen);
        return;
      }
      sums.fill(sums.source(), step + world.rank());
      std::vector<SumAddNorm> now;
      std::vector<uint32_t> numbers(sizes.size());
      for (int layer = 0; layer <= kLayers; ++layer) {
        const std::vector<SumAddNorm> before = now;
        now = pieces_of(sums, sizes, layer < kLayers, world.size());
        int64_t begin = 0;
        for (size_t i = 0; i < now.size(); ++i) {
          if (layer > 0) {
            if (i == 0) pieces->add(Stream::kCompute, before.back(), numbers.back());
            pieces->receive(Stream::kCompute, numbers[i]);
          }
          maybe_late(step % world.size() == world.rank());
          bring(sums, now[i].partial, sums.source().slice_rows(begin, sizes[i]), now[i].out, layer);
          numbers[i] = pieces->send(Stream::kCompute, now[i]);
          if (i > 0) pieces->add(Stream::kCompute, now[i - 1], numbers[i - 1]);
          begin += sizes[i];
        }
      }
      pieces->add(Stream::kCompute, now.back(), numbers.back());
      for (size_t i = 0; i < now.size(); ++i) {
        pieces->receive(Stream::kCompute, numbers[i]);
      }
      sums.backend().copy(Stream::kCompute, sums.residual(), sums.out());
      const std::vector<float> found = sums.values_of(sums.residual());
      sums.check_same_on_all_ranks(found);
      check_close(found, expected_layers(sums, step + world.rank()));
    }
  }
}

TEST_CASE("what waits for a GPU that never comes ends when it is given up", "[comm]") {
  const HostComm world = HostComm::world();
  if (!has_gpus(world)) return;
  Sums sums(world);
  sums.resize(8, 4096);
  PieceSums* pieces = sums.communicator().begin_pieces(Stream::kCompute, whole_step(sums));
  if (pieces == nullptr) {
    WARN(kUnseen);
    return;
  }
  sums.barrier();
  if (world.rank() == 0) {
    const SumAddNorm piece = pieces_of(sums, {8}, true, world.size()).front();
    const uint32_t number = pieces->send(Stream::kCompute, piece);
    pieces->add(Stream::kCompute, piece, number);
    pieces->receive(Stream::kCompute, number);
    pieces = sums.communicator().begin_pieces(Stream::kCompute, whole_step(sums));
    const auto event = sums.backend().record(Stream::kCompute);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    CHECK_FALSE(event->query());
    sums.communicator().abandon();
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!event->query() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    CHECK(event->query());
  } else {
    sums.communicator().abandon();
  }
  world.barrier();
}

}  // namespace mpinfer::comm
