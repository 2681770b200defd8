// torch.ops.kan_kernels.* on CUDA tensors: checks, allocation, the tensors' device and its current stream.
#include <dlfcn.h>

#include "../cuda/device.h"
#include "../cuda/kernels.h"
#include "checks.h"

namespace kan {
namespace ops {
namespace {

// torch's CUDA half is a library of its own, which a CPU-only torch lacks: found in the process at the first call.
void* torch_cuda_symbol(const char* name) {
  static void* const library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
  void* const symbol = library ? dlsym(library, name) : nullptr;
  check(symbol != nullptr, "this torch has no ", name, ": CUDA tensors need a torch that was built with CUDA");
  return symbol;
}

// Makes the device of `t` current while it lives, for torch's runtime and for the one the kernels are linked to.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) {
    static const auto create =
        reinterpret_cast<AOTITorchError (*)(int32_t, void**)>(torch_cuda_symbol("aoti_torch_create_cuda_guard"));
    static const auto stream_of =
        reinterpret_cast<AOTITorchError (*)(int32_t, void**)>(torch_cuda_symbol("aoti_torch_get_current_cuda_stream"));
    int32_t index = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &index));
    STABLE_TORCH_ERROR_CODE_CHECK(create(index, &guard_));
    STABLE_TORCH_ERROR_CODE_CHECK(stream_of(index, &stream_));
    cuda::set_device(index);
  }
  ~OnDevice() {
    static const auto destroy =
        reinterpret_cast<AOTITorchError (*)(void*)>(torch_cuda_symbol("aoti_torch_delete_cuda_guard"));
    if (guard_) destroy(guard_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  void* stream() const { return stream_; }

 private:
  void *guard_ = nullptr, *stream_ = nullptr;
};

void check_device(const Tensor& t, const char* name, const Tensor& x) {
  check(t.is_cuda() && t.get_device_index() == x.get_device_index(), name, " must be on the device of x");
}
void check_device(const OptionalTensor& t, const char* name, const Tensor& x) {
  if (t) check_device(*t, name, x);
}

// torch's own rule for float32 products, asked where torch.matmul asks. Its C++ name is no part of the stable ABI:
// where it cannot be found, float32 stays float32.
bool tf32_allowed() {
  using Context = void* (*)();
  using Allowed = bool (*)(const void*);
  static const auto context = reinterpret_cast<Context>(dlsym(RTLD_DEFAULT, "_ZN2at13globalContextEv"));
  static const auto allowed = reinterpret_cast<Allowed>(dlsym(RTLD_DEFAULT, "_ZNK2at7Context15allowTF32CuBLASEv"));
  if (!context || !allowed) return false;
  try {
    return allowed(context());
  } catch (...) {  // torch refuses to answer where its old and its new setting were mixed
    return false;
  }
}

cuda::Options options() {
  cuda::Options o;
  o.path = cuda::forced_path();
  o.tf32 = tf32_allowed();
  return o;
}

// Bytes from torch's allocator, which a CUDA graph can capture and another stream does not reuse too early.
Tensor workspace(const Tensor& like, int64_t bytes) {
  int32_t device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  const int64_t stride = 1;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(1, &bytes, &stride, aoti_torch_dtype_uint8(), device_type, device_index, &handle));
  return Tensor(handle);
}

void run(const cpu::BackwardArgs& args, const Tensor& x, const OnDevice& device) {
  const cuda::Options o = options();
  const int64_t bytes = cuda::backward_workspace(args, o);
  if (bytes == 0) return cuda::backward(args, o, nullptr, device.stream());
  Tensor space = workspace(x, bytes);
  cuda::backward(args, o, space.mutable_data_ptr(), device.stream());
}

Tensor forward(const Tensor& x, const OptionalTensor& s, const Tensor& spline_weight, const OptionalTensor& base_weight,
               const OptionalTensor& bias, const Tensor& grid, int64_t spline_order, int64_t base, int64_t derivative) {
  check(spline_weight.dim() == 3, "spline_weight must have 3 dimensions, got ", spline_weight.dim());
  check_device(s, "s", x), check_device(spline_weight, "spline_weight", x), check_device(base_weight, "base_weight", x);
  check_device(bias, "bias", x), check_device(grid, "grid", x);
  const OnDevice device(x);
  const int64_t out = spline_weight.size(2);
  LayerTensors tensors(x, grid, out, dtype_of(spline_weight, "spline_weight"), spline_order, base);
  tensors.set_weights(spline_weight, base_weight);
  cpu::ForwardArgs args;
  args.layer = tensors.layer;
  args.x = view(x, "x", x.size(0), x.size(1));
  args.side = view_side(s, x);
  OptionalTensor bias_rows;
  if (bias) {
    check_shape(*bias, "bias", {out});
    check(dtype_of(*bias, "bias") == args.layer.weight_dtype, "bias must have spline_weight's dtype");
    bias_rows = dense(*bias);
    args.bias = bias_rows->const_data_ptr();
  }
  args.derivative = checked_derivative(derivative);
  Tensor y = empty(spline_weight, {x.size(0), out});
  args.y = y.mutable_data_ptr();
  const cuda::Options o = options();
  const int64_t bytes = cuda::forward_workspace(args, o);
  if (bytes == 0) {
    cuda::forward(args, o, nullptr, device.stream());
  } else {
    Tensor space = workspace(x, bytes);
    cuda::forward(args, o, space.mutable_data_ptr(), device.stream());
  }
  return y;
}

Tensor input(const Tensor& x, const Tensor& spline_weight, const OptionalTensor& base_weight, const Tensor& g,
             const Tensor& grid, int64_t spline_order, int64_t base, int64_t derivative) {
  check_matrix(g, "g");
  check_device(spline_weight, "spline_weight", x), check_device(base_weight, "base_weight", x);
  check_device(g, "g", x), check_device(grid, "grid", x);
  const OnDevice device(x);
  LayerTensors tensors(x, grid, g.size(1), dtype_of(spline_weight, "spline_weight"), spline_order, base);
  tensors.set_weights(spline_weight, base_weight);
  check(g.scalar_type() == spline_weight.scalar_type(), "g must have spline_weight's dtype");
  cpu::BackwardArgs args;
  args.layer = tensors.layer;
  args.x = view(x, "x", x.size(0), x.size(1));
  args.g = view(g, "g", x.size(0), g.size(1));
  args.input_derivative = checked_derivative(derivative);
  Tensor result = empty(x, {x.size(0), x.size(1)});
  args.input = result.mutable_data_ptr();
  run(args, x, device);
  return result;
}

std::tuple<Tensor, Tensor> weight(const Tensor& x, const OptionalTensor& s, const Tensor& g, const Tensor& grid,
                                  int64_t spline_order, int64_t base, int64_t derivative) {
  check_matrix(g, "g");
  check_device(s, "s", x), check_device(g, "g", x), check_device(grid, "grid", x);
  const OnDevice device(x);
  const int64_t out = g.size(1);
  LayerTensors tensors(x, grid, out, dtype_of(g, "g"), spline_order, base);
  cpu::BackwardArgs args;
  args.layer = tensors.layer;
  args.x = view(x, "x", x.size(0), x.size(1));
  args.side = view_side(s, x);
  args.g = view(g, "g", x.size(0), out);
  args.weight_derivative = checked_derivative(derivative);
  Tensor d_spline = empty(g, {x.size(1), args.layer.grid_size + args.layer.spline_order, out});
  Tensor d_base = base != kNoBase ? empty(g, {x.size(1), out}) : empty(g, {0});
  args.d_spline = d_spline.mutable_data_ptr();
  args.d_base = d_base.mutable_data_ptr();
  if (d_spline.numel() > 0) run(args, x, device);
  return {d_spline, d_base};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& x, const Tensor& spline_weight,
                                            const OptionalTensor& base_weight, const Tensor& g, const Tensor& grid,
                                            int64_t spline_order, int64_t base, int64_t derivative) {
  check_matrix(g, "g");
  check_device(spline_weight, "spline_weight", x), check_device(base_weight, "base_weight", x);
  check_device(g, "g", x), check_device(grid, "grid", x);
  const OnDevice device(x);
  const int64_t out = g.size(1);
  LayerTensors tensors(x, grid, out, dtype_of(spline_weight, "spline_weight"), spline_order, base);
  tensors.set_weights(spline_weight, base_weight);
  check(g.scalar_type() == spline_weight.scalar_type(), "g must have spline_weight's dtype");
  cpu::BackwardArgs args;
  args.layer = tensors.layer;
  args.x = view(x, "x", x.size(0), x.size(1));
  args.g = view(g, "g", x.size(0), out);
  args.weight_derivative = checked_derivative(derivative);
  args.input_derivative = checked_derivative(derivative + 1);
  Tensor result = empty(x, {x.size(0), x.size(1)});
  Tensor d_spline = empty(g, {x.size(1), args.layer.grid_size + args.layer.spline_order, out});
  Tensor d_base = base != kNoBase ? empty(g, {x.size(1), out}) : empty(g, {0});
  args.input = result.mutable_data_ptr();
  args.d_spline = d_spline.mutable_data_ptr();
  args.d_base = d_base.mutable_data_ptr();
  if (d_spline.numel() > 0) run(args, x, device);
  return {result, d_spline, d_base};
}

// The path that a case takes, and what the cost model says of either: "dense 0.011 gather 0.174 because ...".
std::string cuda_path(int64_t batch, int64_t in, int64_t out, int64_t grid_size, int64_t order, int64_t base,
                      int64_t dtype, int64_t derivative) {
  check(dtype >= 0 && dtype <= 3, "dtype must be 0 (float32), 1 (float64), 2 (bfloat16) or 3 (float16), got ", dtype);
  cpu::Layer l;
  l.batch = batch, l.in_features = in, l.out_features = out, l.grid_size = int(grid_size);
  l.spline_order = int(order), l.base = int(base), l.weight_dtype = cpu::DType(dtype);
  const cuda::Options o = options();
  const cuda::Cost cost = cuda::cost(l, o);
  const char* const reason = cuda::dense_reason(l, int(derivative));
  const bool forced = o.path != cuda::Path::automatic;
  const bool dense = (forced ? o.path : cuda::choose(l, int(derivative), o)) == cuda::Path::dense;
  std::ostringstream text;
  text << (dense ? "dense" : "gather") << ": cycles an edge " << cost.dense << " dense, " << cost.gather << " gather";
  if (forced) text << "; asked for by KAN_KERNELS_CUDA_PATH";
  if (reason) text << "; not dense: " << reason;
  const char* const small = cuda::too_small(l);
  if (!reason && !forced && small) text << "; not dense: " << small;
  return text.str();
}

std::string cuda_architectures() { return KAN_CUDA_ARCHITECTURES; }

}  // namespace
}  // namespace ops
}  // namespace kan

STABLE_TORCH_LIBRARY_FRAGMENT(kan_kernels, m) {
  m.def("cuda_architectures() -> str");
  m.def("cuda_tf32_allowed() -> bool");
  m.def(
      "cuda_path(int batch, int in_features, int out_features, int grid_size, int spline_order, int base, int dtype, "
      "int derivative) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CUDA, m) {
  m.impl("forward", TORCH_BOX(&kan::ops::forward));
  m.impl("input", TORCH_BOX(&kan::ops::input));
  m.impl("weight", TORCH_BOX(&kan::ops::weight));
  m.impl("backward", TORCH_BOX(&kan::ops::backward));
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&kan::ops::cuda_architectures));
  m.impl("cuda_path", TORCH_BOX(&kan::ops::cuda_path));
  m.impl("cuda_tf32_allowed", TORCH_BOX(&kan::ops::tf32_allowed));
}
