#include "lib/comm/heartbeat.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <thread>

#include "lib/core/error.h"

namespace mpinfer::comm {
namespace {

constexpr int kBeatTag = 91;
constexpr auto kBeatInterval = std::chrono::seconds(1);
constexpr auto kPollInterval = std::chrono::milliseconds(50);

template <size_t N>
void copy_text(std::array<char, N>* out, const std::string& text) {
  out->fill('\0');
  std::memcpy(out->data(), text.data(), std::min(text.size(), N - 1));
}

double seconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

Heartbeat::Heartbeat(const HostComm& world, double first_seconds, double step_seconds)
    : world_(world.duplicate()), first_seconds_(first_seconds), step_seconds_(step_seconds) {
  last_poll_ = last_heard_ = Clock::now();
  copy_text(&outgoing_.host, host_name());
  copy_text(&heard_.label, "start");
}

Heartbeat::~Heartbeat() {
  if (std::uncaught_exceptions() != 0) return;
  try {
    for (int turn = 0; under_way_ && !under_way_->test() && turn < 100; ++turn) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  } catch (const Error&) {
    // The neighbour died at the very end; nobody waits for it any more.
  }
}

void Heartbeat::set_rows(std::vector<ReplicaRows> rows, int replica_ranks) {
  rows_ = std::move(rows);
  replica_ranks_ = replica_ranks;
}

void Heartbeat::set_stepping(bool stepping) {
  stepping_ = stepping;
  changed_ = true;
}

void Heartbeat::send(const char* label, int64_t step) {
  const auto now = Clock::now();
  if (!changed_ && now - last_sent_ < kBeatInterval) return;
  if (under_way_ && !under_way_->test()) return;
  changed_ = false;
  last_sent_ = now;
  copy_text(&outgoing_.label, label);
  outgoing_.step = step;
  outgoing_.longest_turn = longest_turn_;
  outgoing_.stepping = stepping_ ? 1 : 0;
  const int next = (world_.rank() + 1) % world_.size();
  under_way_ = world_.start_send(&outgoing_, sizeof(outgoing_), next, kBeatTag);
}

void Heartbeat::receive() {
  HostComm::Message message;
  while (world_.try_receive(&message, kBeatTag)) {
    MPINFER_CHECK(message.bytes.size() == sizeof(heard_), "heartbeat of {} bytes",
                  message.bytes.size());
    std::memcpy(&heard_, message.bytes.data(), sizeof(heard_));
    last_heard_ = Clock::now();
  }
}

double Heartbeat::patience() const {
  if (heard_.stepping == 0) return std::max(first_seconds_, step_seconds_);
  return std::max(step_seconds_, 4.0 * heard_.longest_turn) + seconds(kBeatInterval);
}

std::string Heartbeat::verdict(double silent) const {
  const int rank = (world_.rank() + world_.size() - 1) % world_.size();
  const auto replica = static_cast<size_t>(rank / std::max(1, replica_ranks_));
  std::string rows;
  if (replica < rows_.size() && rows_[replica].num_rows > 0) {
    rows = fmt::format("; its replica {} holds rows {} to {} ({} of them)", replica,
                       rows_[replica].first, rows_[replica].last, rows_[replica].num_rows);
  }
  return fmt::format(
      "rank {} on {} gave no sign of life for {:.1f} s, last in {}{} (--step-timeout {:g} s): it "
      "is "
      "dead, stopped or stuck{}",
      rank, heard_.host[0] != '\0' ? heard_.host.data() : "a host not known", silent,
      heard_.label.data(), heard_.step >= 0 ? fmt::format(" at step {}", heard_.step) : "",
      step_seconds_, rows);
}

void Heartbeat::poll(const char* label, int64_t step) {
  if (world_.size() == 1) return;
  const auto now = Clock::now();
  if (!changed_ && now - last_poll_ < kPollInterval) return;
  const double turn = seconds(now - last_poll_);
  if (stepping_) longest_turn_ = std::max(longest_turn_, turn);
  last_poll_ = now;
  send(label, step);
  receive();
  // After a long turn of our own, what came meanwhile has been received: its sender lives.
  const double silent = seconds(Clock::now() - last_heard_);
  if (silent > patience()) throw Error(ExitCode::kPeerFailure, verdict(silent));
}

}  // namespace mpinfer::comm
