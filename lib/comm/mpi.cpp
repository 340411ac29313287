#include "lib/comm/mpi.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <vector>

#include "lib/comm/mpi_handle.h"
#include "lib/core/error.h"

namespace mpinfer::comm {
namespace {

constexpr int64_t kPiece = int64_t{1} << 30;  // counts are 31-bit

int count_of(int64_t bytes) {
  return checked_cast<int>(bytes);
}

class DoneRequest : public HostRequest {
 public:
  bool test() override { return true; }
};

// One MPI request for each piece of a range of any size.
template <class Start>
std::unique_ptr<HostRequest> start_in_pieces(char* data, int64_t bytes, Start start) {
  std::vector<MPI_Request> requests;
  for (int64_t at = 0; at == 0 || at < bytes; at += kPiece) {
    MPI_Request request = MPI_REQUEST_NULL;
    start(data + at, count_of(std::min(kPiece, bytes - at)), &request);
    requests.push_back(request);
  }
  return std::make_unique<MpiRequest>(std::move(requests));
}

// int counts and displacements of pieces laid end to end; throws when the sum does not fit in 31
// bits.
struct Pieces {
  std::vector<int> counts;
  std::vector<int> displacements;
  int64_t total = 0;

  explicit Pieces(const std::vector<int64_t>& bytes) {
    for (const int64_t piece : bytes) {
      counts.push_back(count_of(piece));
      displacements.push_back(count_of(total));
      total += piece;
    }
    count_of(total);
  }
  std::vector<std::string> cut(const std::string& all) const {
    std::vector<std::string> parts;
    for (size_t i = 0; i < counts.size(); ++i) {
      parts.push_back(
          all.substr(static_cast<size_t>(displacements[i]), static_cast<size_t>(counts[i])));
    }
    return parts;
  }
};

std::vector<int64_t> sizes_everywhere(MPI_Comm comm, int size, int64_t mine) {
  std::vector<int64_t> sizes(static_cast<size_t>(size));
  MPINFER_MPI(MPI_Allgather(&mine, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, comm));
  return sizes;
}

int64_t all_reduce(const HostComm::Handle& handle, int64_t value, MPI_Op op) {
  if (handle.comm == MPI_COMM_NULL) return value;
  int64_t out = 0;
  MPINFER_MPI(MPI_Allreduce(&value, &out, 1, MPI_INT64_T, op, handle.comm));
  return out;
}

// Of Open MPI 4 and 5, not of its mpi.h: whether calls that find nothing yield; returns what was so
// before. The setting mpi_yield_when_idle is fixed once MPI has started.
using SetYield = bool (*)(bool);

SetYield set_yield() {
  static const auto found =
      reinterpret_cast<SetYield>(::dlsym(RTLD_DEFAULT, "opal_progress_set_yield_when_idle"));
  return found;
}

HostComm made(MPI_Comm comm) {
  wait_until_made(comm);
  return HostComm(std::make_unique<HostComm::Handle>(comm));
}

}  // namespace

KeepsCore::KeepsCore() {
  if (set_yield() != nullptr) yielded_ = set_yield()(false);
}

KeepsCore::~KeepsCore() {
  if (set_yield() != nullptr) set_yield()(yielded_);
}

bool MpiRequest::test() {
  const KeepsCore keeps_core;
  int done = 0;
  MPINFER_MPI(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done,
                          MPI_STATUSES_IGNORE));
  return done != 0;
}

void check_mpi(int status, const char* call, std::source_location where) {
  if (status == MPI_SUCCESS) return;
  note_loss(status);
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(status, text, &length);
  int rank = -1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  throw Error(ExitCode::kPeerFailure,
              fmt::format("rank {} on {}: {}: {}", rank, host_name(), call, text), where);
}

std::string host_name() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0) return "unknown";
  return name;
}

MpiSession::MpiSession(int* argc, char*** argv) {
  // The one window is a counter of a few steps a second, for which every component is fast enough.
  // With osc/ucx (Open MPI 4.1.4, UCX 1.13) MPI_Win_allocate was seen to fail between two network
  // namespaces; the cause is not known, and the same set-up has worked with it since. What the user
  // says goes first.
  setenv("OMPI_MCA_osc", "^ucx", 0);
  int provided = 0;
  if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
    throw Error(ExitCode::kPeerFailure, "MPI_Init_thread failed");
  }
  if (provided < MPI_THREAD_FUNNELED) {
    throw Error(ExitCode::kUsage,
                "this MPI library does not offer MPI_THREAD_FUNNELED; Open MPI 4.1 or newer does");
  }
  MPINFER_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
}

MpiSession::~MpiSession() {
  if (std::uncaught_exceptions() == 0 && !has_lost_ranks()) MPI_Finalize();
}

void MpiSession::abort(int exit_code) {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

HostComm::Handle::Handle(MPI_Comm owned) : comm(owned) {
  MPINFER_MPI(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN));
  MPINFER_MPI(MPI_Comm_rank(comm, &rank));
  MPINFER_MPI(MPI_Comm_size(comm, &size));
  keep_in_mind(comm, size);
}

HostComm::Handle::~Handle() {
  if (comm == MPI_COMM_NULL || std::uncaught_exceptions() != 0) return;
  forget(comm);
  MPI_Comm_free(&comm);
}

HostComm::HostComm() : handle_(std::make_unique<Handle>()) {}
HostComm::HostComm(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {}
HostComm::~HostComm() = default;
HostComm::HostComm(HostComm&&) noexcept = default;
HostComm& HostComm::operator=(HostComm&&) noexcept = default;

HostComm HostComm::world() {
  MPI_Comm comm = MPI_COMM_NULL;
  MPINFER_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &comm));
  return made(comm);
}

int HostComm::rank() const {
  return handle_->rank;
}
int HostComm::size() const {
  return handle_->size;
}

HostComm HostComm::split(int color, int key) const {
  if (handle_->comm == MPI_COMM_NULL) return HostComm();
  MPI_Comm comm = MPI_COMM_NULL;
  MPINFER_MPI(MPI_Comm_split(handle_->comm, color, key, &comm));
  return made(comm);
}

HostComm HostComm::split_host() const {
  if (handle_->comm == MPI_COMM_NULL) return HostComm();
  MPI_Comm comm = MPI_COMM_NULL;
  MPINFER_MPI(
      MPI_Comm_split_type(handle_->comm, MPI_COMM_TYPE_SHARED, rank(), MPI_INFO_NULL, &comm));
  return made(comm);
}

HostComm HostComm::duplicate() const {
  if (handle_->comm == MPI_COMM_NULL) return HostComm();
  MPI_Comm comm = MPI_COMM_NULL;
  MPINFER_MPI(MPI_Comm_dup(handle_->comm, &comm));
  return made(comm);
}

void HostComm::barrier() const {
  if (handle_->comm != MPI_COMM_NULL) MPINFER_MPI(MPI_Barrier(handle_->comm));
}

void HostComm::broadcast(void* data, int64_t bytes, int root) const {
  if (size() == 1) return;
  for (int64_t at = 0; at < bytes; at += kPiece) {
    MPINFER_MPI(MPI_Bcast(static_cast<char*>(data) + at, count_of(std::min(kPiece, bytes - at)),
                          MPI_BYTE, root, handle_->comm));
  }
}

void HostComm::broadcast(std::string& bytes, int root) const {
  auto count = static_cast<int64_t>(bytes.size());
  broadcast(&count, sizeof(count), root);
  bytes.resize(static_cast<size_t>(count));
  broadcast(bytes.data(), count, root);
}

std::vector<std::string> HostComm::all_gather(const std::string& mine) const {
  if (size() == 1) return {mine};
  const Pieces pieces(sizes_everywhere(handle_->comm, size(), static_cast<int64_t>(mine.size())));
  std::string all(static_cast<size_t>(pieces.total), '\0');
  MPINFER_MPI(MPI_Allgatherv(mine.data(), count_of(static_cast<int64_t>(mine.size())), MPI_BYTE,
                             all.data(), pieces.counts.data(), pieces.displacements.data(),
                             MPI_BYTE, handle_->comm));
  return pieces.cut(all);
}

std::vector<std::string> HostComm::gather(const std::string& mine, int root) const {
  if (size() == 1) return {mine};
  const auto sizes = sizes_everywhere(handle_->comm, size(), static_cast<int64_t>(mine.size()));
  std::string all;
  gather_v(mine, sizes, root, &all);
  if (rank() != root) return {};
  return Pieces(sizes).cut(all);
}

std::string HostComm::scatter(const std::vector<std::string>& parts, int root) const {
  if (size() == 1) return parts.at(0);
  std::vector<int64_t> sizes(static_cast<size_t>(size()), 0);
  std::string all;
  if (rank() == root) {
    MPINFER_CHECK(parts.size() == sizes.size(), "{} parts for {} ranks", parts.size(),
                  sizes.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      sizes[i] = static_cast<int64_t>(parts[i].size());
      all += parts[i];
    }
  }
  broadcast(sizes.data(), static_cast<int64_t>(sizes.size() * sizeof(int64_t)), root);
  const Pieces pieces(sizes);
  std::string mine(static_cast<size_t>(sizes[static_cast<size_t>(rank())]), '\0');
  MPINFER_MPI(MPI_Scatterv(all.data(), pieces.counts.data(), pieces.displacements.data(), MPI_BYTE,
                           mine.data(), count_of(static_cast<int64_t>(mine.size())), MPI_BYTE, root,
                           handle_->comm));
  return mine;
}

std::string_view HostComm::gather_v(std::string_view mine,
                                    const std::vector<int64_t>& bytes_by_rank, int root,
                                    std::string* buffer) const {
  if (size() == 1) return mine;
  const Pieces pieces(bytes_by_rank);
  const size_t bytes = rank() == root ? static_cast<size_t>(pieces.total) : 0;
  if (buffer->size() < bytes) buffer->resize(bytes);
  MPINFER_MPI(MPI_Gatherv(mine.data(), count_of(static_cast<int64_t>(mine.size())), MPI_BYTE,
                          buffer->data(), pieces.counts.data(), pieces.displacements.data(),
                          MPI_BYTE, root, handle_->comm));
  return std::string_view(*buffer).substr(0, bytes);
}

int64_t HostComm::all_reduce_sum(int64_t value) const {
  return all_reduce(*handle_, value, MPI_SUM);
}
int64_t HostComm::all_reduce_min(int64_t value) const {
  return all_reduce(*handle_, value, MPI_MIN);
}
int64_t HostComm::all_reduce_max(int64_t value) const {
  return all_reduce(*handle_, value, MPI_MAX);
}

std::unique_ptr<HostRequest> HostComm::start_barrier() const {
  if (size() == 1) return std::make_unique<DoneRequest>();
  MPI_Request request = MPI_REQUEST_NULL;
  MPINFER_MPI(MPI_Ibarrier(handle_->comm, &request));
  return std::make_unique<MpiRequest>(std::vector<MPI_Request>{request});
}

std::unique_ptr<HostRequest> HostComm::start_broadcast(void* data, int64_t bytes, int root) const {
  if (size() == 1) return std::make_unique<DoneRequest>();
  return start_in_pieces(
      static_cast<char*>(data), bytes, [&](char* piece, int count, MPI_Request* request) {
        MPINFER_MPI(MPI_Ibcast(piece, count, MPI_BYTE, root, handle_->comm, request));
      });
}

std::unique_ptr<HostRequest> HostComm::start_all_gather(void* all, int64_t bytes) const {
  if (size() == 1) return std::make_unique<DoneRequest>();
  const int count = count_of(bytes);
  MPI_Request request = MPI_REQUEST_NULL;
  MPINFER_MPI(
      MPI_Iallgather(MPI_IN_PLACE, 0, MPI_BYTE, all, count, MPI_BYTE, handle_->comm, &request));
  return std::make_unique<MpiRequest>(std::vector<MPI_Request>{request});
}

std::unique_ptr<HostRequest> HostComm::start_send(const void* data, int64_t bytes, int peer,
                                                  int tag) const {
  auto* source = const_cast<char*>(static_cast<const char*>(data));
  return start_in_pieces(source, bytes, [&](char* piece, int count, MPI_Request* request) {
    MPINFER_MPI(MPI_Isend(piece, count, MPI_BYTE, peer, tag, handle_->comm, request));
  });
}

std::unique_ptr<HostRequest> HostComm::start_receive(void* data, int64_t bytes, int peer,
                                                     int tag) const {
  return start_in_pieces(
      static_cast<char*>(data), bytes, [&](char* piece, int count, MPI_Request* request) {
        MPINFER_MPI(MPI_Irecv(piece, count, MPI_BYTE, peer, tag, handle_->comm, request));
      });
}

bool HostComm::try_receive(Message* message, int tag) const {
  if (handle_->comm == MPI_COMM_NULL) return false;
  int waiting = 0;
  MPI_Message handle = MPI_MESSAGE_NULL;
  MPI_Status status;
  {
    const KeepsCore keeps_core;
    MPINFER_MPI(MPI_Improbe(MPI_ANY_SOURCE, tag, handle_->comm, &waiting, &handle, &status));
  }
  if (waiting == 0) return false;
  int bytes = 0;
  MPINFER_MPI(MPI_Get_count(&status, MPI_BYTE, &bytes));
  message->source = status.MPI_SOURCE;
  message->bytes.assign(static_cast<size_t>(bytes), '\0');
  MPINFER_MPI(MPI_Mrecv(message->bytes.data(), bytes, MPI_BYTE, &handle, MPI_STATUS_IGNORE));
  return true;
}

struct SharedCounter::State {
  MPI_Win window = MPI_WIN_NULL;
  int64_t* memory = nullptr;
  int64_t alone = 0;  // a world of one
  MPI_Comm comm = MPI_COMM_NULL;
  int owner = 0;
};

SharedCounter::SharedCounter(const HostComm& comm, int owner) : state_(std::make_unique<State>()) {
  state_->owner = owner;
  state_->comm = comm.handle().comm;
  if (comm.size() == 1) return;
  const MPI_Aint bytes = comm.rank() == owner ? sizeof(int64_t) : 0;
  MPINFER_MPI(MPI_Win_allocate(bytes, sizeof(int64_t), MPI_INFO_NULL, state_->comm, &state_->memory,
                               &state_->window));
  if (comm.rank() == owner) *state_->memory = 0;
  MPINFER_MPI(MPI_Win_lock_all(0, state_->window));
  MPINFER_MPI(MPI_Win_sync(state_->window));
  MPINFER_MPI(MPI_Barrier(state_->comm));
}

SharedCounter::~SharedCounter() {
  if (state_->window == MPI_WIN_NULL || std::uncaught_exceptions() != 0) return;
  MPI_Win_unlock_all(state_->window);
  MPI_Win_free(&state_->window);
}

int64_t SharedCounter::fetch_and_add(int64_t value) {
  if (state_->window == MPI_WIN_NULL) return std::exchange(state_->alone, state_->alone + value);
  int64_t before = 0;
  MPINFER_MPI(
      MPI_Fetch_and_op(&value, &before, MPI_INT64_T, state_->owner, 0, MPI_SUM, state_->window));
  MPINFER_MPI(MPI_Win_flush(state_->owner, state_->window));
  return before;
}

void SharedCounter::poll() {
  if (state_->window == MPI_WIN_NULL) return;
  const KeepsCore keeps_core;
  int waiting = 0;
  MPINFER_MPI(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, state_->comm, &waiting, MPI_STATUS_IGNORE));
}

}  // namespace mpinfer::comm
