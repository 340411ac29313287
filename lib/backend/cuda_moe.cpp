// Mixture of experts on CUDA: the router, choices sorted on the device, two grouped products and
// their weighted sum. No size is read back to the host: grids are bounds, tiles are found on the
// device.
#include <algorithm>

#include "lib/backend/cuda_backend_impl.h"
#include "lib/backend/cuda_sizes.h"

namespace mpinfer::backend {
namespace {

namespace cuda = kernels::cuda;

cuda::ExpertGate expert_gate(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return cuda::ExpertGate::kSilu;
    case Activation::kGelu:
      return cuda::ExpertGate::kGelu;
    case Activation::kGeluTanh:
      return cuda::ExpertGate::kGeluTanh;
    case Activation::kClampedSwiglu:
      return cuda::ExpertGate::kClampedSwiglu;
  }
  return cuda::ExpertGate::kSilu;
}

// Pieces of the scratch memory, in the order that moe_scratch_bytes counts them.
class Scratch {
 public:
  Scratch(void* data, int64_t bytes) : at_(static_cast<char*>(data)), end_(at_ + bytes) {}
  template <class T>
  T* take(int64_t count) {
    void* piece = at_;
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    at_ += (bytes + 255) / 256 * 256;
    MPINFER_CHECK(at_ <= end_, "{} bytes of scratch memory too few for the experts", at_ - end_);
    return static_cast<T*>(piece);
  }

 private:
  char* at_;
  char* end_;
};

static_assert(kExpertPlaces == cuda::kExpertPlaces && kLeastExpertRows == cuda::kExpertRows);

void check_then(const AddNorm& then, const Matrix& out) {
  check_same_shape(then.residual, out);
  if (then.norm_weight != nullptr) check_same_shape(then.normed, out);
  MPINFER_CHECK(then.residual.dtype == out.dtype &&
                    (then.norm_weight == nullptr || then.normed.dtype == out.dtype),
                "experts of {} for a residual of {}", name_of(out.dtype),
                name_of(then.residual.dtype));
}

void check_shapes(const MoeExperts& args) {
  check_same_shape(args.out, args.x);
  if (args.then) check_then(*args.then, args.out);
  MPINFER_CHECK(args.gate_up.first.in_features == args.x.cols &&
                    args.down.first.out_features == args.x.cols &&
                    args.gate_up.first.out_features == 2 * args.down.first.in_features,
                "experts [{}, {}] and [{}, {}] on {} columns", args.gate_up.first.out_features,
                args.gate_up.first.in_features, args.down.first.out_features,
                args.down.first.in_features, args.x.cols);
  MPINFER_CHECK((args.gate_up.first.layout & kExpertLayout) != 0 &&
                    (args.down.first.layout & kExpertLayout) != 0 &&
                    args.gate_up.first.dtype == args.x.dtype && args.out.dtype == args.x.dtype,
                "experts of {} on rows of {}", name_of(args.gate_up.first.dtype),
                name_of(args.x.dtype));
  MPINFER_CHECK(args.num_experts > 0 && args.num_experts <= kMostExperts && args.top_k > 0,
                "{} experts, {} a row", args.num_experts, args.top_k);
}

}  // namespace

int64_t CudaBackend::packed_expert_bytes(int64_t out_features, int64_t in_features, DType) const {
  return cuda::expert_elements(out_features, in_features) * size_of(activation_dtype());
}

Weight CudaBackend::make_expert_weight(void* data, int64_t out_features, int64_t in_features,
                                       DType dtype) const {
  Weight weight = make_weight(data, out_features, in_features, dtype);
  weight.layout |= kExpertLayout;
  const int64_t elements = cuda::expert_elements(out_features, in_features);
  if (elements != out_features * in_features) {
    MPINFER_CUDA(cudaMemsetAsync(data, 0, static_cast<size_t>(elements * size_of(weight.dtype)),
                                 stream_of(Stream::kCopy)));
  }
  return weight;
}

void CudaBackend::pack_expert(const Weight& weight, int64_t first_row, int64_t row_step,
                              const void* source, int64_t rows, int64_t source_bytes) {
  const int64_t row_bytes = weight.in_features * size_of(weight.dtype);
  if (expert_staging_.data() == nullptr) {
    expert_staging_ = allocate(std::max(kExpertStagingBytes, row_bytes));
  }
  const int64_t at_once = std::max<int64_t>(1, expert_staging_.bytes() / row_bytes);
  MPINFER_CHECK(row_bytes <= expert_staging_.bytes(), "an expert's row of {} bytes", row_bytes);
  const cudaStream_t stream = stream_of(Stream::kCopy);
  for (int64_t begin = 0; begin < rows; begin += at_once) {
    const int64_t count = std::min(at_once, rows - begin);
    MPINFER_CUDA(cudaMemcpy2DAsync(expert_staging_.data(), static_cast<size_t>(row_bytes),
                                   static_cast<const char*>(source) + begin * source_bytes,
                                   static_cast<size_t>(source_bytes),
                                   static_cast<size_t>(row_bytes), static_cast<size_t>(count),
                                   cudaMemcpyHostToDevice, stream));
    cuda::pack_expert_rows(stream, weight.data, expert_staging_.data(), element_type(weight.dtype),
                           weight.in_features, first_row + begin * row_step, row_step, count);
    check_launch();
  }
  MPINFER_CUDA(cudaStreamSynchronize(stream));
}

void CudaBackend::route(Stream stream, int32_t* experts, float* weights, const Matrix& logits,
                        const RouteOptions& options) {
  MPINFER_CHECK(logits.dtype == DType::kF32 && logits.cols >= options.top_k &&
                    logits.cols <= kMostExperts && options.top_k > 0 && options.top_k <= 32,
                "{} of {} experts by logits of {}", options.top_k, logits.cols,
                name_of(logits.dtype));
  MPINFER_CHECK(
      options.num_groups > 0 && options.num_groups <= 32 && logits.cols % options.num_groups == 0 &&
          options.top_groups > 0 && options.top_groups <= options.num_groups &&
          options.top_k <= logits.cols / options.num_groups * options.top_groups,
      "{} of {} groups of {} experts", options.top_groups, options.num_groups, logits.cols);
  if (logits.rows == 0) return;
  cuda::route(stream_of(stream), experts, weights,
              {.logits = logits.row<float>(0),
               .stride = logits.stride,
               .rows = logits.rows,
               .num_experts = static_cast<int32_t>(logits.cols),
               .top_k = options.top_k,
               .sigmoid = options.score == RouterScore::kSigmoid,
               .renormalise = options.renormalise,
               .scale = options.scale,
               .num_groups = options.num_groups,
               .top_groups = options.top_groups,
               .best_of_group = options.best_of_group,
               .bias = options.bias,
               .correction = options.correction,
               .counts = reinterpret_cast<unsigned long long*>(options.counts)});
  check_launch();
}

void CudaBackend::moe_experts(Stream stream, const MoeExperts& args) {
  check_shapes(args);
  if (args.x.rows == 0) return;
  const int64_t inner = args.down.first.in_features;
  const int64_t hidden = args.x.cols;
  const int64_t choices = args.x.rows * args.top_k;
  const int64_t most = args.x.rows * std::min(args.top_k, args.num_experts);
  const DType dtype = args.x.dtype;
  Scratch scratch(args.scratch, args.scratch_bytes);
  const int64_t places = moe_places(args.x.rows, args.top_k, args.num_experts);
  const Matrix activated{scratch.take<char>(places * inner * size_of(dtype)), dtype, places, inner,
                         inner};
  const Matrix parts{scratch.take<char>(places * hidden * size_of(dtype)), dtype, places, hidden,
                     hidden};
  cuda::ExpertOrder order;
  order.choices = scratch.take<int32_t>(places);
  order.places = scratch.take<int32_t>(choices);
  order.offsets = scratch.take<int32_t>(2 * (args.num_experts + 2));
  order.cursors = order.offsets + args.num_experts + 1;
  order.num_tiles = order.cursors + args.num_experts;
  order.tiles = scratch.take<cuda::ExpertTile>(most / cuda::kExpertRows + args.num_experts + 1);
  order.counters = static_cast<int32_t*>(static_cast<void*>(
      static_cast<char*>(expert_counters_) + static_cast<int64_t>(stream) * kExpertCounterBytes));
  const cuda::ExpertProduct first{.out = view(activated),
                                  .a = view(args.x),
                                  .order = order,
                                  .num_experts = args.num_experts,
                                  .top_k = args.top_k,
                                  .max_choices = most,
                                  .max_places = places,
                                  .weights = args.gate_up.first.data,
                                  .stride_bytes = args.gate_up.stride_bytes,
                                  .out_features = 2 * inner,
                                  .in_features = hidden,
                                  .bias = args.gate_up_bias,
                                  .gate = expert_gate(args.activation),
                                  .alpha = args.swiglu_alpha,
                                  .limit = args.swiglu_limit};
  const cuda::ExpertProduct second{.out = view(parts),
                                   .a = view(activated),
                                   .order = order,
                                   .num_experts = args.num_experts,
                                   .top_k = args.top_k,
                                   .max_choices = most,
                                   .max_places = places,
                                   .weights = args.down.first.data,
                                   .stride_bytes = args.down.stride_bytes,
                                   .out_features = hidden,
                                   .in_features = inner,
                                   .bias = args.down_bias};
  const bool fast = cuda::expert_product_is_fast(first) && cuda::expert_product_is_fast(second);
  const cudaStream_t on = stream_of(stream);
  cuda::sort_choices(on, order, args.experts, choices, args.first_expert, args.num_experts,
                     fast && hopper_ ? cuda::kExpertRowsHopper : cuda::kExpertRows);
  for (const cuda::ExpertProduct& product : {first, second}) {
    if (!fast) {
      cuda::expert_product_any(on, product);
    } else if (!hopper_) {
      cuda::expert_product(on, product, num_processors_);
    } else {
      MPINFER_CHECK(cuda::expert_product_hopper(on, product, num_processors_),
                    "the driver makes no tensor maps of {} places of experts, {} features", places,
                    product.in_features);
    }
  }
  cuda::CombineArgs combine{.out = view(args.out),
                            .parts = view(parts),
                            .places = order.places,
                            .experts = args.experts,
                            .weights = args.weights,
                            .rows = args.x.rows,
                            .cols = hidden,
                            .top_k = args.top_k,
                            .first_expert = args.first_expert,
                            .num_experts = args.num_experts};
  cuda::CombineArgs with_norm = combine;
  if (args.then) {
    with_norm.out = view(args.then->normed);
    with_norm.residual = view(args.then->residual);
    with_norm.scale = args.then->scale;
    with_norm.norm_weight = static_cast<const float*>(args.then->norm_weight);
    with_norm.eps = args.then->eps;
  }
  if (!cuda::combine_experts(on, with_norm)) {
    cuda::combine_experts(on, combine);
    add_norm(stream, *args.then, args.out);
  }
  check_launch();
}

void CudaBackend::add_gated(Stream stream, const Matrix& out, const Matrix& x, const Matrix& gate) {
  check_same_shape(out, x);
  MPINFER_CHECK(
      gate.rows == x.rows && gate.cols == 1 && gate.dtype == DType::kF32 && out.dtype == x.dtype,
      "a gate of [{}, {}] for {} rows", gate.rows, gate.cols, x.rows);
  if (x.rows == 0) return;
  cuda::add_gated(stream_of(stream), view(out), view(x), view(gate), x.rows, x.cols);
  check_launch();
}

}  // namespace mpinfer::backend
