// Workspace: a bump arena over one Buffer for the temporaries of a step. Pieces start at multiples
// of 256 bytes; a Scope gives back what was taken inside it. Without a buffer it measures: pieces
// have no memory (data is null) and peak_bytes() is exactly what a real workspace of the same calls
// needs.
#pragma once

#include "lib/backend/backend.h"

namespace mpinfer::backend {

class Workspace {
 public:
  static constexpr int64_t kAlignment = 256;

  Workspace() = default;  // measuring
  explicit Workspace(Buffer buffer) : buffer_(std::move(buffer)) {}

  // [rows, cols], stride cols, uninitialised. Throws Error(kInternal) naming the bytes asked for
  // and left when the buffer is too small: the plan that sized it was wrong.
  Matrix take(int64_t rows, int64_t cols, DType dtype);
  template <class T>
  T* take_array(int64_t count) {
    return static_cast<T*>(take_bytes(count * static_cast<int64_t>(sizeof(T))));
  }
  void* take_bytes(int64_t bytes);

  int64_t mark() const { return used_; }
  void reset(int64_t mark);
  int64_t peak_bytes() const { return peak_; }
  bool measuring() const { return buffer_.data() == nullptr; }

  class Scope {
   public:
    explicit Scope(Workspace& workspace) : workspace_(workspace), mark_(workspace.mark()) {}
    ~Scope() { workspace_.used_ = mark_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Workspace& workspace_;
    int64_t mark_;
  };

 private:
  Buffer buffer_;
  int64_t used_ = 0;
  int64_t peak_ = 0;
};

}  // namespace mpinfer::backend
