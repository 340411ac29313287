#include "lib/model/loader.h"

#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/normal.h"
#include "lib/model/params.h"
#include "lib/model/placement.h"
#include "lib/model/safetensors.h"

namespace mpinfer::model {
namespace {

constexpr int64_t kStagingBytes = int64_t{64} << 20;  // of all reading threads together
constexpr int kMaxThreads = 16;                       // so that each can hold the widest row
constexpr int64_t kMaxChunk = int64_t{8} << 20;
constexpr int64_t kMaxConfigBytes = int64_t{4} << 20;

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ExitCode::kModelRefused, what);
}

std::string shape_of(const StoredTensor& tensor) {
  std::string out;
  for (int32_t d = 0; d < tensor.rank; ++d) {
    out += fmt::format("{}{}", d == 0 ? "" : ", ", tensor.shape[static_cast<size_t>(d)]);
  }
  return "[" + out + "]";
}

DType dtype_of(const StoredTensor& tensor, const std::string& path) {
  if (tensor.dtype == "F32") return DType::kF32;
  if (tensor.dtype == "F16") return DType::kF16;
  if (tensor.dtype == "BF16") return DType::kBF16;
  refuse(fmt::format("{}: tensor {} has dtype {}; supported: F32, F16, BF16", printable(path),
                     printable(tensor.name), tensor.dtype));
}

// The stored tensor of every row of the table; refuses what is missing, unknown or of another
// shape.
std::vector<const StoredTensor*> match(const Checkpoint& checkpoint,
                                       const std::vector<Parameter>& table,
                                       const ModelConfig& config, const std::string& directory) {
  std::vector<const StoredTensor*> out;
  std::vector<std::string_view> known;
  for (const Parameter& parameter : table) {
    const StoredTensor* tensor = checkpoint.find(parameter.name);
    if (tensor == nullptr) {
      refuse(fmt::format("{}: tensor {} is missing", printable(directory), parameter.name));
    }
    const std::string path = checkpoint.path_of(*tensor);
    std::vector<int64_t> wanted;
    if (parameter.outer > 0) wanted.push_back(parameter.outer);
    wanted.push_back(parameter.rows);
    if (parameter.cols > 0) wanted.push_back(parameter.cols);
    if (!std::equal(wanted.begin(), wanted.end(), tensor->shape.begin(),
                    tensor->shape.begin() + tensor->rank)) {
      refuse(fmt::format("{}: tensor {} has shape {}, config.json asks for [{}]", printable(path),
                         parameter.name, shape_of(*tensor), fmt::join(wanted, ", ")));
    }
    dtype_of(*tensor, path);
    out.push_back(tensor);
    known.push_back(parameter.name);
  }
  std::sort(known.begin(), known.end());
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    if (!std::binary_search(known.begin(), known.end(), tensor.name) &&
        !is_harmless_extra(config, tensor.name)) {
      refuse(fmt::format("{}: tensor {} is not part of {} as config.json describes it",
                         printable(checkpoint.path_of(tensor)), printable(tensor.name),
                         config.architecture));
    }
  }
  return out;
}

// One chunk of one tensor; sorted by place in the files.
struct Job {
  size_t parameter = 0;
  size_t placed = 0;
  Piece piece;
};

std::vector<Job> make_jobs(const ModelConfig& config, const ShardOf& shard,
                           const std::vector<Parameter>& table, const std::vector<Placed>& placed,
                           int64_t chunk_bytes) {
  std::map<std::pair<Slot, int32_t>, size_t> places;
  for (size_t i = 0; i < placed.size(); ++i) {
    places[{placed[i].target.slot, placed[i].target.layer}] = i;
  }
  std::vector<Job> jobs;
  for (size_t p = 0; p < table.size(); ++p) {
    Slot slot = Slot::kEmbedding;
    if (!holds(shard, config, table[p], &slot)) continue;
    const auto place = places.find({slot, table[p].layer});
    MPINFER_CHECK(place != places.end(), "no place for {}", table[p].name);
    const size_t index = place->second;
    for (const Piece& piece : shard_pieces(config, shard, table[p])) {
      const int64_t row_bytes = piece.cols * size_of(DType::kF32);
      const int64_t rows = std::max<int64_t>(1, chunk_bytes / row_bytes);
      for (int64_t done = 0; done < piece.rows; done += rows) {
        Piece chunk = piece;
        (piece.transposed ? chunk.source_col : chunk.source_row) += done;
        chunk.rows = std::min(rows, piece.rows - done);
        chunk.first_row += done * piece.row_step;
        jobs.push_back({p, index, chunk});
      }
    }
  }
  return jobs;
}

// Where the elements come from: the checkpoint's files, or the dummy generator.
struct Source {
  const std::vector<Parameter>& table;
  const Checkpoint* checkpoint = nullptr;  // null: dummy
  std::vector<const StoredTensor*> tensors = {};
  uint64_t seed = 0;
};

bool is_norm(Slot slot) {
  return slot == Slot::kFinalNorm || slot == Slot::kInputNorm || slot == Slot::kQNorm ||
         slot == Slot::kKNorm || slot == Slot::kPostAttentionNorm || slot == Slot::kLatentQANorm ||
         slot == Slot::kLatentKvANorm;
}

// A row of the source is a column of the staged piece.
template <class T>
void scatter_column(T* staging, const T* row, const Piece& piece, int64_t column) {
  for (int64_t r = 0; r < piece.rows; ++r) staging[r * piece.cols + column] = row[r];
}

constexpr float kDeviation = 0.02F;

uint64_t tensor_key(const Parameter& parameter) {
  return XXH3_64bits(parameter.name.data(), parameter.name.size());
}

// Where a weight's element lies in its tensor, for the backend to draw it in place.
backend::NormalRows normal_rows(const Source& source, const Job& job,
                                const backend::Weight& weight) {
  const Parameter& parameter = source.table[job.parameter];
  const Piece& piece = job.piece;
  const int64_t cols = std::max<int64_t>(parameter.cols, 1);
  return {.weight = weight,
          .first_row = piece.first_row,
          .row_step = piece.row_step,
          .rows = piece.rows,
          .seed = source.seed,
          .tensor = tensor_key(parameter),
          .begin = piece.source_row * cols + piece.source_col,
          .row_stride = piece.transposed ? 1 : cols,
          .column_stride = piece.transposed ? cols : 1,
          .deviation = kDeviation};
}

// A vector's elements.
void draw(const Source& source, const Job& job, float* staging) {
  const Parameter& parameter = source.table[job.parameter];
  const Piece& piece = job.piece;
  if (is_norm(parameter.slot)) {
    std::fill(staging, staging + piece.rows, 1.0F);
    return;
  }
  fill_normal(staging, source.seed, tensor_key(parameter), piece.source_row, piece.rows,
              kDeviation);
}

template <class T>
void read_transposed(const ModelFile& file, T* staging, const Piece& piece, int64_t offset,
                     int64_t cols) {
  std::vector<T> row(static_cast<size_t>(piece.rows));
  for (int64_t c = 0; c < piece.cols; ++c) {
    const int64_t at = (piece.source_row + c) * cols + piece.source_col;
    file.read(row.data(), offset + at * static_cast<int64_t>(sizeof(T)),
              piece.rows * static_cast<int64_t>(sizeof(T)));
    scatter_column(staging, row.data(), piece, c);
  }
}

// Whole rows are one range; cut columns are one range a row.
void read(const Source& source, const Job& job, char* staging) {
  const StoredTensor& tensor = *source.tensors[job.parameter];
  const ModelFile& file = source.checkpoint->files()[static_cast<size_t>(tensor.file)];
  const Piece& piece = job.piece;
  const int64_t width = width_of(tensor.dtype);
  const int64_t cols = std::max<int64_t>(source.table[job.parameter].cols, 1);
  if (piece.transposed) {
    if (width == 4) {
      return read_transposed(file, static_cast<uint32_t*>(static_cast<void*>(staging)), piece,
                             tensor.offset, cols);
    }
    return read_transposed(file, static_cast<uint16_t*>(static_cast<void*>(staging)), piece,
                           tensor.offset, cols);
  }
  const int64_t begin = tensor.offset + (piece.source_row * cols + piece.source_col) * width;
  const int64_t row_bytes = piece.cols * width;
  if (piece.cols == cols) {
    file.read(staging, begin, piece.rows * row_bytes);
    return;
  }
  for (int64_t r = 0; r < piece.rows; ++r) {
    file.read(staging + r * row_bytes, begin + r * cols * width, row_bytes);
  }
}

float element(const char* data, DType dtype, int64_t index) {
  if (dtype == DType::kF32) {
    float value = 0;
    std::memcpy(&value, data + index * 4, 4);
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, data + index * 2, 2);
  return dtype == DType::kBF16 ? float_from_bf16(bits) : float_from_f16(bits);
}

// Reading runs on every thread; the backend takes one caller at a time and packs with its own
// threads.
void run_job(backend::Backend& backend, std::mutex& backend_mutex, const Source& source,
             const Job& job, Placed& placed, char* staging) {
  const backend::Weight weight = placed.weight_of(job.piece.expert);
  if (source.checkpoint == nullptr && placed.target.cols != 0) {
    const std::lock_guard lock(backend_mutex);
    return backend.draw_rows(normal_rows(source, job, weight));
  }
  DType dtype = DType::kF32;
  if (source.checkpoint == nullptr) {
    draw(source, job, static_cast<float*>(static_cast<void*>(staging)));
  } else {
    const StoredTensor& tensor = *source.tensors[job.parameter];
    dtype = dtype_of(tensor, source.checkpoint->path_of(tensor));
    read(source, job, staging);
  }
  const Piece& piece = job.piece;
  if (placed.target.cols != 0) {
    const std::lock_guard lock(backend_mutex);
    backend.pack_rows(weight, piece.first_row, piece.row_step, staging, dtype, piece.rows,
                      piece.cols);
    return;
  }
  for (int64_t i = 0; i < piece.rows; ++i) {
    placed.vector[static_cast<size_t>(piece.first_row + i * piece.row_step)] =
        element(staging, dtype, i);
  }
}

// Threads take the jobs in order; the first exception is rethrown when all have stopped.
void run_jobs(backend::Backend& backend, const Source& source, const std::vector<Job>& jobs,
              std::vector<Placed>& placed, int threads, int64_t staging_bytes) {
  const backend::Buffer staging = backend.allocate_host(staging_bytes * threads);
  std::atomic<size_t> next{0};
  std::mutex backend_mutex;
  std::mutex failure_mutex;
  std::exception_ptr failure;
  const auto work = [&](int thread) {
    char* mine = static_cast<char*>(staging.data()) + staging_bytes * thread;
    try {
      for (size_t j = next++; j < jobs.size(); j = next++) {
        run_job(backend, backend_mutex, source, jobs[j], placed[jobs[j].placed], mine);
      }
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = jobs.size();
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (int t = 1; t < threads; ++t) helpers.emplace_back(work, t);
    work(0);
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

uint64_t check_checkpoint(const std::string& directory, const ModelConfig& config) {
  const Checkpoint checkpoint(directory);
  const std::vector<const StoredTensor*> tensors =
      match(checkpoint, parameter_table(config), config, directory);
  const std::string text = read_text(directory, "config.json", kMaxConfigBytes);
  uint64_t hash = XXH3_64bits_withSeed(text.data(), text.size(), checkpoint.hash());
  // The middles of some tensors: other weights of the same shapes are another model.
  constexpr size_t kSamples = 64;
  constexpr int64_t kSampleBytes = 4096;
  std::vector<char> sample(static_cast<size_t>(kSampleBytes));
  const size_t samples = std::min(kSamples, tensors.size());
  for (size_t i = 0; i < samples; ++i) {
    const StoredTensor& tensor = *tensors[i * tensors.size() / samples];
    const int64_t bytes = std::min(kSampleBytes, tensor.bytes);
    checkpoint.files()[static_cast<size_t>(tensor.file)].read(
        sample.data(), tensor.offset + (tensor.bytes - bytes) / 2, bytes);
    hash = XXH3_64bits_withSeed(sample.data(), static_cast<size_t>(bytes), hash);
  }
  return hash;
}

StageWeights load_weights(backend::Backend& backend, const std::string& directory,
                          const ModelConfig& config, const ShardOf& shard, LoadFormat format,
                          uint64_t seed, int threads) {
  require_valid_tp(config, shard.tp);
  const std::vector<Parameter> table = parameter_table(config);
  std::unique_ptr<Checkpoint> checkpoint;
  Source source{.table = table, .seed = seed};
  if (format == LoadFormat::kAuto) {
    checkpoint = std::make_unique<Checkpoint>(directory);
    source.checkpoint = checkpoint.get();
    source.tensors = match(*checkpoint, table, config, directory);
  }
  StageWeights out;
  out.stage = shard.stage;
  out.first = shard.stage_index == 0;
  out.last = shard.stage_index == shard.num_stages - 1;
  out.tp = shard.tp;
  out.tp_rank = shard.tp_rank;
  out.ep = shard.ep;
  out.ep_rank = shard.ep_rank;
  const Part experts = expert_part(config, shard.ep, shard.ep_rank);
  out.first_expert = checked_cast<int32_t>(experts.begin);
  out.num_experts = checked_cast<int32_t>(experts.size);
  out.vocab_begin = ceil_part(config.vocab_size, shard.tp, shard.tp_rank).begin;
  out.layers.resize(static_cast<size_t>(shard.stage.end - shard.stage.begin));
  std::vector<Placed> placed = place_weights(backend, config, shard, out);

  const int used_threads = std::clamp(threads, 1, kMaxThreads);
  const int64_t widest =
      std::max({config.hidden_size, config.intermediate_size, config.moe.intermediate_size,
                config.moe.shared_intermediate_size,
                int64_t{config.num_attention_heads} * config.head_dim,
                int64_t{config.latent.q_rank}}) *
      size_of(DType::kF32);
  const int64_t chunk = std::max(widest, std::min(kMaxChunk, kStagingBytes / used_threads));
  std::vector<Job> jobs = make_jobs(config, shard, table, placed, chunk);
  if (source.checkpoint != nullptr) {
    const auto key = [&](const Job& job) {
      const StoredTensor& tensor = *source.tensors[job.parameter];
      return std::tuple(tensor.file, tensor.offset, job.piece.source_row);
    };
    std::sort(jobs.begin(), jobs.end(),
              [&](const Job& a, const Job& b) { return key(a) < key(b); });
  }
  run_jobs(backend, source, jobs, placed, used_threads, chunk);

  for (const Placed& one : placed) {
    if (one.target.cols == 0) {
      backend.upload(backend::Stream::kCopy, one.device, one.vector.data(),
                     std::ssize(one.vector) * size_of(DType::kF32));
    }
    set_slot(out, one);
  }
  if (out.last && out.first && config.tie_word_embeddings) out.lm_head = out.embedding;
  backend.synchronize();
  return out;
}

}  // namespace mpinfer::model
