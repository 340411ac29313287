#include "lib/engine/control.h"

#include <array>
#include <cstring>

#include "lib/core/error.h"

namespace mpinfer::engine {
namespace {

// Little-endian as the host has it: a replica's ranks run the same binary (checked at start).
class Writer {
 public:
  template <class T>
  void value(const T& v) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto at = bytes_.size();
    bytes_.resize(at + sizeof(T));
    std::memcpy(bytes_.data() + at, &v, sizeof(T));
  }
  template <class T>
  void values(const std::vector<T>& v) {
    value(static_cast<int64_t>(v.size()));
    const auto at = bytes_.size();
    bytes_.resize(at + v.size() * sizeof(T));
    if (!v.empty()) std::memcpy(bytes_.data() + at, v.data(), v.size() * sizeof(T));
  }
  void lists(const std::vector<std::vector<int32_t>>& v) {
    value(static_cast<int64_t>(v.size()));
    for (const auto& list : v) values(list);
  }
  void text(const std::string& s) {
    value(static_cast<int64_t>(s.size()));
    bytes_ += s;
  }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(const std::string& bytes) : bytes_(bytes) {}
  template <class T>
  T value() {
    T v;
    std::memcpy(&v, span(sizeof(T)), sizeof(T));
    return v;
  }
  template <class T>
  std::vector<T> values() {
    const auto count = count_of(sizeof(T));
    std::vector<T> v(count);
    if (count != 0) std::memcpy(v.data(), span(count * sizeof(T)), count * sizeof(T));
    return v;
  }
  std::vector<std::vector<int32_t>> lists() {
    std::vector<std::vector<int32_t>> v(count_of(sizeof(int64_t)));
    for (auto& list : v) list = values<int32_t>();
    return v;
  }
  std::string text() {
    const auto count = count_of(1);
    return {span(count), count};
  }
  size_t count_of(size_t width) {
    const auto count = value<int64_t>();
    MPINFER_CHECK(count >= 0 && static_cast<uint64_t>(count) <= (bytes_.size() - at_) / width,
                  "control record: count {} beyond its {} bytes", count, bytes_.size());
    return static_cast<size_t>(count);
  }
  bool at_end() const { return at_ == bytes_.size(); }

 private:
  const char* span(size_t count) {
    MPINFER_CHECK(count <= bytes_.size() - at_, "control record: cut short at {} bytes",
                  bytes_.size());
    const char* p = bytes_.data() + at_;
    at_ += count;
    return p;
  }
  const std::string& bytes_;
  size_t at_ = 0;
};

void write_request(Writer& writer, const Request& request) {
  const SamplingParams& s = request.sampling;
  writer.value(request.index);
  writer.values(request.prompt_token_ids);
  writer.value(s.max_tokens);
  writer.value(s.min_tokens);
  writer.value(s.temperature);
  writer.value(s.top_p);
  writer.value(s.top_k);
  writer.value(s.min_p);
  writer.value(s.repetition_penalty);
  writer.value(s.frequency_penalty);
  writer.value(s.presence_penalty);
  writer.value(s.seed.has_value());
  writer.value(s.seed.value_or(0));
  writer.value(static_cast<int64_t>(s.stop.size()));
  for (const auto& stop : s.stop) writer.text(stop);
  writer.value(s.include_stop_str_in_output);
  writer.values(s.stop_token_ids);
  writer.value(s.ignore_eos);
  writer.value(s.skip_special_tokens);
  writer.value(s.n);
  writer.value(s.num_logprobs);
  writer.value(s.num_prompt_logprobs);
  writer.value(s.prompt_logprobs_from);
  writer.value(s.prompt_only);
  writer.values(s.logit_bias);
  writer.values(s.allowed_token_ids);
  writer.lists(s.bad_words);
  writer.value(s.grammar.kind);
  writer.text(s.grammar.text);
  writer.lists(request.continuations);
  writer.values(request.begun_token_ids);
}

Request read_request(Reader& reader) {
  Request request;
  SamplingParams& s = request.sampling;
  request.index = reader.value<int64_t>();
  request.prompt_token_ids = reader.values<int32_t>();
  s.max_tokens = reader.value<int32_t>();
  s.min_tokens = reader.value<int32_t>();
  s.temperature = reader.value<float>();
  s.top_p = reader.value<float>();
  s.top_k = reader.value<int32_t>();
  s.min_p = reader.value<float>();
  s.repetition_penalty = reader.value<float>();
  s.frequency_penalty = reader.value<float>();
  s.presence_penalty = reader.value<float>();
  const bool has_seed = reader.value<bool>();
  const auto seed = reader.value<uint64_t>();
  if (has_seed) s.seed = seed;
  const auto num_stops = reader.count_of(sizeof(int64_t));
  for (size_t i = 0; i < num_stops; ++i) s.stop.push_back(reader.text());
  s.include_stop_str_in_output = reader.value<bool>();
  s.stop_token_ids = reader.values<int32_t>();
  s.ignore_eos = reader.value<bool>();
  s.skip_special_tokens = reader.value<bool>();
  s.n = reader.value<int32_t>();
  s.num_logprobs = reader.value<int32_t>();
  s.num_prompt_logprobs = reader.value<int32_t>();
  s.prompt_logprobs_from = reader.value<int32_t>();
  s.prompt_only = reader.value<bool>();
  s.logit_bias = reader.values<LogitBias>();
  s.allowed_token_ids = reader.values<int32_t>();
  s.bad_words = reader.lists();
  s.grammar.kind = reader.value<GrammarSpec::Kind>();
  s.grammar.text = reader.text();
  request.continuations = reader.lists();
  request.begun_token_ids = reader.values<int32_t>();
  return request;
}

}  // namespace

std::string serialise(const ControlRecord& record) {
  Writer writer;
  writer.value(record.plan);
  writer.value(record.no_more);
  writer.value(record.drain);
  writer.value(record.cancel);
  writer.value(record.plan_hash);
  writer.value(static_cast<int64_t>(record.requests.size()));
  for (const Request& request : record.requests) write_request(writer, request);
  writer.values(record.verdicts);
  return writer.take();
}

ControlRecord deserialise(const std::string& bytes) {
  Reader reader(bytes);
  ControlRecord record;
  record.plan = reader.value<int64_t>();
  record.no_more = reader.value<bool>();
  record.drain = reader.value<bool>();
  record.cancel = reader.value<bool>();
  record.plan_hash = reader.value<uint64_t>();
  const auto num_requests = reader.count_of(sizeof(int64_t));
  for (size_t i = 0; i < num_requests; ++i) record.requests.push_back(read_request(reader));
  record.verdicts = reader.values<StopVerdict>();
  MPINFER_CHECK(reader.at_end(), "control record: bytes left over");
  return record;
}

// A record on its way. Small ones fit the header and need no second broadcast.
struct ControlChannel::Transfer {
  struct Header {
    int64_t bytes = 0;
    std::array<char, 248> head = {};
  };
  static constexpr int64_t kInline = 248;

  Header header;
  std::string payload;
  std::unique_ptr<comm::HostRequest> header_request;
  std::unique_ptr<comm::HostRequest> payload_request;
  bool header_done = false;
  bool payload_done = false;
};

ControlChannel::ControlChannel(const comm::HostComm& replica)
    : headers_(replica.duplicate()), payloads_(replica.duplicate()) {}

ControlChannel::~ControlChannel() = default;

void ControlChannel::post(const ControlRecord& record) {
  auto transfer = std::make_unique<Transfer>();
  transfer->payload = serialise(record);
  const auto bytes = static_cast<int64_t>(transfer->payload.size());
  transfer->header.bytes = bytes;
  if (bytes <= Transfer::kInline) {
    std::memcpy(transfer->header.head.data(), transfer->payload.data(), transfer->payload.size());
  }
  transfer->header_request =
      headers_.start_broadcast(&transfer->header, sizeof(Transfer::Header), 0);
  if (bytes > Transfer::kInline) {
    transfer->payload_request = payloads_.start_broadcast(transfer->payload.data(), bytes, 0);
  }
  transfers_.push_back(std::move(transfer));
}

void ControlChannel::expect() {
  auto transfer = std::make_unique<Transfer>();
  transfer->header_request =
      headers_.start_broadcast(&transfer->header, sizeof(Transfer::Header), 0);
  transfers_.push_back(std::move(transfer));
}

bool ControlChannel::ready() {
  if (transfers_.empty()) return false;
  // Payloads are posted in record order: only up to the first header that is still under way.
  for (auto& transfer : transfers_) {
    if (!transfer->header_done) {
      if (!transfer->header_request->test()) break;
      transfer->header_done = true;
      const int64_t bytes = transfer->header.bytes;
      if (!leader()) {
        transfer->payload.resize(static_cast<size_t>(bytes));
        if (bytes <= Transfer::kInline) {
          std::memcpy(transfer->payload.data(), transfer->header.head.data(),
                      transfer->payload.size());
        } else {
          transfer->payload_request = payloads_.start_broadcast(transfer->payload.data(), bytes, 0);
        }
      }
    }
    if (!transfer->payload_done) {
      transfer->payload_done =
          transfer->payload_request == nullptr || transfer->payload_request->test();
    }
  }
  return transfers_.front()->header_done && transfers_.front()->payload_done;
}

ControlRecord ControlChannel::take() {
  MPINFER_CHECK(ready(), "control record taken before it arrived");
  ControlRecord record = deserialise(transfers_.front()->payload);
  transfers_.pop_front();
  return record;
}

bool ControlChannel::quiet() {
  while (ready()) transfers_.pop_front();
  return transfers_.empty();
}

}  // namespace mpinfer::engine
