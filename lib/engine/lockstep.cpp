#include "lib/engine/lockstep.h"

#include "lib/core/error.h"

namespace mpinfer::engine {

LockstepChannel::LockstepChannel(const comm::HostComm& members)
    : members_(members.duplicate()), records_(static_cast<size_t>(members.size())) {}

void LockstepChannel::post(const LockstepRecord& mine) {
  MPINFER_CHECK(request_ == nullptr, "plan {} is posted before the one before was taken",
                mine.plan);
  records_[static_cast<size_t>(members_.rank())] = mine;
  request_ =
      members_.start_all_gather(records_.data(), static_cast<int64_t>(sizeof(LockstepRecord)));
}

bool LockstepChannel::ready() {
  return request_ == nullptr || request_->test();
}

const std::vector<LockstepRecord>& LockstepChannel::take() {
  request_.reset();
  const int64_t plan = records_[static_cast<size_t>(members_.rank())].plan;
  for (size_t member = 0; member < records_.size(); ++member) {
    if (records_[member].plan == plan) continue;
    throw Error(ExitCode::kPeerFailure,
                fmt::format("replica {} of a lockstep group of {} is at plan {}, replica {} at {}; "
                            "the group cannot go on",
                            members_.rank(), members_.size(), plan, member, records_[member].plan));
  }
  return records_;
}

}  // namespace mpinfer::engine
