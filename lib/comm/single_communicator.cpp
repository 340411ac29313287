#include "lib/comm/single_communicator.h"

#include "lib/core/error.h"

namespace mpinfer::comm {
namespace {

class DonePending : public Pending {
 public:
  bool test() override { return true; }
};

}  // namespace

void SingleCommunicator::copy(Stream stream, void* out, const void* in, int64_t bytes) {
  if (out == in || bytes == 0) return;
  const backend::Matrix to{out, DType::kU8, 1, bytes, bytes};
  const backend::Matrix from{const_cast<void*>(in), DType::kU8, 1, bytes, bytes};
  backend_.copy(stream, to, from);
}

std::unique_ptr<Pending> SingleCommunicator::start_send_recv(Stream stream, const Transfer& send,
                                                             const Transfer& receive) {
  MPINFER_CHECK(send.bytes == receive.bytes, "one rank sends itself {} bytes and takes {}",
                send.bytes, receive.bytes);
  copy(stream, receive.data, send.data, send.bytes);
  return std::make_unique<DonePending>();
}

}  // namespace mpinfer::comm
