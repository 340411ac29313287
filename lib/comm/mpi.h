// Host data over MPI: RAII communicators with the verbs the rest of the program needs, and the only
// header through which other rooms reach MPI (mpi.h stays inside lib/comm). Every failing call
// throws Error(kPeerFailure) with rank, host and the library's text. MPI_THREAD_FUNNELED: only the
// main thread calls any of this. Blocking verbs are for start and end; a step uses the start_*
// verbs and test().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace mpinfer::comm {

// MPI_Init_thread (FUNNELED) … MPI_Finalize. Without a launcher: a world of one.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  ~MpiSession();  // does not finalize while unwinding, nor without ranks that were lost
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  // Ends every rank with this code (MPI_Abort). Ranks other than 0 may be killed by the launcher.
  [[noreturn]] static void abort(int exit_code);
};

// A nonblocking operation; its buffers live until test() has returned true.
class HostRequest {
 public:
  virtual ~HostRequest() = default;
  virtual bool test() = 0;
};

class HostComm {
 public:
  static HostComm world();  // a duplicate of MPI_COMM_WORLD
  HostComm();               // size 1, no MPI needed
  ~HostComm();
  HostComm(HostComm&&) noexcept;
  HostComm& operator=(HostComm&&) noexcept;

  int rank() const;
  int size() const;
  HostComm split(int color, int key) const;  // MPI_Comm_split
  HostComm split_host() const;               // ranks that share memory (MPI_Comm_split_type)
  HostComm duplicate() const;

  void barrier() const;
  void broadcast(void* data, int64_t bytes, int root) const;  // any size (cut in 1 GiB pieces)
  void broadcast(std::string& bytes, int root) const;         // size first
  // Every rank's bytes on every rank / on root (others get an empty vector). Pieces may differ in
  // size.
  std::vector<std::string> all_gather(const std::string& mine) const;
  std::vector<std::string> gather(const std::string& mine, int root) const;
  // Different bytes to each rank: parts is read on root only, parts.size() == size().
  std::string scatter(const std::vector<std::string>& parts, int root) const;
  // MPI_Gatherv of one round; the sum must fit in 31 bits (checked). Result on root: bytes rank by
  // rank, valid until the next use of buffer (which only grows) and of mine.
  std::string_view gather_v(std::string_view mine, const std::vector<int64_t>& bytes_by_rank,
                            int root, std::string* buffer) const;
  int64_t all_reduce_sum(int64_t value) const;
  int64_t all_reduce_min(int64_t value) const;
  int64_t all_reduce_max(int64_t value) const;

  std::unique_ptr<HostRequest> start_barrier() const;
  std::unique_ptr<HostRequest> start_broadcast(void* data, int64_t bytes, int root) const;
  // all holds size() pieces of bytes each, this rank's in its place.
  std::unique_ptr<HostRequest> start_all_gather(void* all, int64_t bytes) const;
  std::unique_ptr<HostRequest> start_send(const void* data, int64_t bytes, int peer, int tag) const;
  std::unique_ptr<HostRequest> start_receive(void* data, int64_t bytes, int peer, int tag) const;
  // A message from anyone under tag, if one is waiting.
  struct Message {
    int source = -1;
    std::string bytes;
  };
  bool try_receive(Message* message, int tag) const;

  struct Handle;  // defined in lib/comm: holds the MPI_Comm
  const Handle& handle() const { return *handle_; }
  explicit HostComm(std::unique_ptr<Handle> handle);

 private:
  std::unique_ptr<Handle> handle_;
};

// A counter on one rank that others fetch and add without its help (MPI_Win_allocate,
// MPI_Fetch_and_op). Over TCP the owner must enter MPI now and then (poll()).
class SharedCounter {
 public:
  SharedCounter(const HostComm& comm, int owner);
  ~SharedCounter();
  SharedCounter(const SharedCounter&) = delete;
  SharedCounter& operator=(const SharedCounter&) = delete;
  int64_t fetch_and_add(int64_t value);
  void poll();  // progress on the owner's side

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string host_name();

}  // namespace mpinfer::comm
