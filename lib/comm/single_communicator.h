// The communicator of one: everything is already where it should be. Gathers still fill a separate
// out.
#pragma once

#include "lib/comm/communicator.h"

namespace mpinfer::comm {

class SingleCommunicator : public Communicator {
 public:
  explicit SingleCommunicator(backend::Backend& backend) : backend_(backend) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  backend::Buffer allocate(int64_t bytes) override { return backend_.allocate(bytes); }
  void all_reduce_sum(Stream, void*, DType, int64_t) override {}
  void all_gather(Stream stream, void* out, const void* in, int64_t bytes) override {
    copy(stream, out, in, bytes);
  }
  void all_gather_v(Stream stream, void* out, const void* in,
                    std::span<const int64_t> bytes) override {
    copy(stream, out, in, bytes[0]);
  }
  void reduce_scatter_sum_v(Stream stream, void* out, const void* in, DType dtype,
                            std::span<const int64_t> counts) override {
    copy(stream, out, in, counts[0] * size_of(dtype));
  }
  void all_to_all(Stream stream, void* out, const void* in, int64_t bytes) override {
    copy(stream, out, in, bytes);
  }
  void broadcast(Stream, void*, int64_t, int) override {}
  std::unique_ptr<Pending> start_send_recv(Stream stream, const Transfer& send,
                                           const Transfer& receive) override;

 private:
  void copy(Stream stream, void* out, const void* in, int64_t bytes);
  backend::Backend& backend_;
};

}  // namespace mpinfer::comm
