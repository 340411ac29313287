#include "lib/comm/thread_communicator.h"

#include <barrier>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>

#include "lib/comm/host_sum.h"
#include "lib/core/error.h"

namespace mpinfer::comm {
namespace {

struct Meeting {
  explicit Meeting(int ranks)
      : size(ranks), barrier(ranks), in(static_cast<size_t>(ranks), nullptr) {}
  int size;
  std::barrier<> barrier;
  std::vector<const char*> in;  // what each rank brought to the collective under way
  std::mutex mutex;
  std::map<std::pair<int, int>, std::deque<std::string>> mail;  // (from, to) → messages
};

class ReceivePending : public Pending {
 public:
  ReceivePending(Meeting& meeting, const Transfer& receive, int to)
      : meeting_(meeting), receive_(receive), to_(to) {}
  bool test() override {
    if (done_) return true;
    const std::lock_guard lock(meeting_.mutex);
    auto& box = meeting_.mail[{receive_.peer, to_}];
    if (box.empty()) return false;
    MPINFER_CHECK(static_cast<int64_t>(box.front().size()) == receive_.bytes,
                  "a message of {} bytes where {} were due", box.front().size(), receive_.bytes);
    std::memcpy(receive_.data, box.front().data(), box.front().size());
    box.pop_front();
    return done_ = true;
  }

 private:
  Meeting& meeting_;
  Transfer receive_;
  int to_;
  bool done_ = false;
};

class SentPending : public Pending {
 public:
  bool test() override { return true; }
};

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Meeting> meeting, int rank, backend::Backend& backend)
      : meeting_(std::move(meeting)), rank_(rank), backend_(backend) {}

  int rank() const override { return rank_; }
  int size() const override { return meeting_->size; }
  backend::Buffer allocate(int64_t bytes) override { return backend_.allocate(bytes); }

  void all_reduce_sum(Stream, void* data, DType dtype, int64_t count) override {
    const int64_t bytes = count * size_of(dtype);
    const std::string mine(static_cast<const char*>(data), static_cast<size_t>(bytes));
    meet(mine.data(),
         [&](const std::vector<const char*>& in) { sum_from(data, in, 0, dtype, count); });
  }
  void all_gather(Stream stream, void* out, const void* in, int64_t bytes) override {
    all_gather_v(stream, out, in, std::vector<int64_t>(static_cast<size_t>(size()), bytes));
  }
  void all_gather_v(Stream, void* out, const void* in, std::span<const int64_t> bytes) override {
    const std::string mine(static_cast<const char*>(in),
                           static_cast<size_t>(bytes[static_cast<size_t>(rank_)]));
    meet(mine.data(), [&](const std::vector<const char*>& parts) {
      char* at = static_cast<char*>(out);
      for (size_t r = 0; r < parts.size(); ++r) {
        if (bytes[r] == 0) continue;  // a rank without rows may bring no buffer either
        std::memcpy(at, parts[r], static_cast<size_t>(bytes[r]));
        at += bytes[r];
      }
    });
  }
  void reduce_scatter_sum_v(Stream, void* out, const void* in, DType dtype,
                            std::span<const int64_t> counts) override {
    int64_t before = 0;
    int64_t all = 0;
    for (int r = 0; r < size(); ++r) {
      if (r < rank_) before += counts[static_cast<size_t>(r)];
      all += counts[static_cast<size_t>(r)];
    }
    const std::string mine(static_cast<const char*>(in), static_cast<size_t>(all * size_of(dtype)));
    meet(mine.data(), [&](const std::vector<const char*>& parts) {
      sum_from(out, parts, before * size_of(dtype), dtype, counts[static_cast<size_t>(rank_)]);
    });
  }
  void all_to_all(Stream, void* out, const void* in, int64_t bytes) override {
    const std::string mine(static_cast<const char*>(in), static_cast<size_t>(bytes * size()));
    meet(mine.data(), [&](const std::vector<const char*>& parts) {
      for (size_t r = 0; r < parts.size(); ++r) {
        std::memcpy(static_cast<char*>(out) + static_cast<int64_t>(r) * bytes,
                    parts[r] + rank_ * bytes, static_cast<size_t>(bytes));
      }
    });
  }
  void broadcast(Stream, void* data, int64_t bytes, int root) override {
    meet(static_cast<const char*>(data), [&](const std::vector<const char*>& parts) {
      if (rank_ != root)
        std::memcpy(data, parts[static_cast<size_t>(root)], static_cast<size_t>(bytes));
    });
  }
  std::unique_ptr<Pending> start_send_recv(Stream, const Transfer& send,
                                           const Transfer& receive) override {
    if (send.bytes > 0) {
      const std::lock_guard lock(meeting_->mutex);
      meeting_->mail[{rank_, send.peer}].emplace_back(static_cast<const char*>(send.data),
                                                      static_cast<size_t>(send.bytes));
    }
    if (receive.bytes > 0) return std::make_unique<ReceivePending>(*meeting_, receive, rank_);
    return std::make_unique<SentPending>();
  }

 private:
  // Everybody shows what it brings, everybody takes, nobody leaves before all have taken.
  template <class Take>
  void meet(const char* mine, Take take) {
    meeting_->in[static_cast<size_t>(rank_)] = mine;
    meeting_->barrier.arrive_and_wait();
    take(meeting_->in);
    meeting_->barrier.arrive_and_wait();
  }
  void sum_from(void* out, const std::vector<const char*>& parts, int64_t offset, DType dtype,
                int64_t count) {
    const auto bytes = static_cast<size_t>(count * size_of(dtype));
    std::string together(bytes * parts.size(), '\0');
    for (size_t r = 0; r < parts.size(); ++r)
      std::memcpy(together.data() + r * bytes, parts[r] + offset, bytes);
    sum_in_rank_order(out, together.data(), size(), static_cast<int64_t>(bytes), dtype, count);
  }

  std::shared_ptr<Meeting> meeting_;
  int rank_;
  backend::Backend& backend_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_communicators(
    const std::vector<backend::Backend*>& backends) {
  auto meeting = std::make_shared<Meeting>(static_cast<int>(backends.size()));
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (size_t rank = 0; rank < backends.size(); ++rank) {
    communicators.push_back(
        std::make_unique<ThreadCommunicator>(meeting, static_cast<int>(rank), *backends[rank]));
  }
  return communicators;
}

}  // namespace mpinfer::comm
