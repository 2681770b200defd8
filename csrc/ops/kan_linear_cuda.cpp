// torch.ops.kan_kernels.kan_linear* and kan_network* on CUDA tensors: the tensors' device and its current stream,
// workspace, the kernels' choices.
#include <dlfcn.h>

#include <limits>

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "kan_network.h"

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

// torch.backends.cuda.matmul.fp32_precision == "tf32", whichever of torch's settings made it so. The C++ name is no
// part of the stable ABI: where it cannot be found, float32 stays float32.
bool tf32_allowed() {
  enum Backend { kGeneric, kCuda };
  enum Op { kAll, kConv, kRnn, kMatmul };
  enum Precision { kNone, kIeee, kTf32 };
  using Context = void* (*)();
  using PrecisionOf = Precision (*)(const void*, Backend, Op);
  static const auto context = reinterpret_cast<Context>(dlsym(RTLD_DEFAULT, "_ZN2at13globalContextEv"));
  static const auto precision_of = reinterpret_cast<PrecisionOf>(
      dlsym(RTLD_DEFAULT, "_ZNK2at7Context16float32PrecisionENS_14Float32BackendENS_9Float32OpE"));
  return context && precision_of && precision_of(context(), kCuda, kMatmul) == kTf32;
}

cuda::Options options(int64_t capability_major) {
  check(capability_major >= 0 && capability_major < 1000, "capability_major must be in 0..999, got ", capability_major);
  cuda::Options o;
  o.path = cuda::forced_path();
  o.tf32 = tf32_allowed();
  o.capability_major = int(capability_major);
  return o;
}

// Makes the device of x current while it lives, for torch's runtime and for the one the kernels are linked to.
class CudaDevice {
 public:
  explicit CudaDevice(const Tensor& x) : x_(x) {
    static const auto create =
        reinterpret_cast<AOTITorchError (*)(int32_t, void**)>(torch_cuda_symbol("aoti_torch_create_cuda_guard"));
    static const auto stream_of =
        reinterpret_cast<AOTITorchError (*)(int32_t, void**)>(torch_cuda_symbol("aoti_torch_get_current_cuda_stream"));
    kan::ops::check(x.is_cuda(), "x is on the CPU, expected it on the CUDA device of the other tensors");
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &index_));
    STABLE_TORCH_ERROR_CODE_CHECK(create(index_, &guard_.handle));
    STABLE_TORCH_ERROR_CODE_CHECK(stream_of(index_, &stream_));
    cuda::set_device(index_);
  }
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  void check(const Tensor& t, const char* name) const {
    kan::ops::check(t.is_cuda() && t.get_device_index() == index_, name, " must be on the device of x");
  }
  void check(const OptionalTensor& t, const char* name) const {
    if (t) check(*t, name);
  }
  void run(const ForwardArgs& args) const {
    const cuda::Options o = options(cuda::capability_major(index_));
    const Workspace space(*this, cuda::forward_workspace(args, o));
    cuda::forward(args, o, space.data, stream_);
  }
  void run(const BackwardArgs& args) const {
    const cuda::Options o = options(cuda::capability_major(index_));
    const Workspace space(*this, cuda::backward_workspace(args, o));
    cuda::backward(args, o, space.data, stream_);
  }
  // Whole networks in one launch, where that serves.
  static constexpr bool kNetworks = true;
  template <class Args>
  bool has_network(const Args& args) const {
    return !cuda::network_reason(args, options(cuda::capability_major(index_)));
  }
  void run_network(const NetworkForwardArgs& args) const { cuda::network_forward(args, stream_); }
  void multiply(const Products& p, DType dtype, int64_t rows, const void* outputs, void* nodes) const {
    cuda::multiply(p, dtype, rows, outputs, nodes, stream_);
  }
  void multiply_backward(const Products& p, int64_t rows, const void* outputs, const MatrixView& g, void* made) const {
    cuda::multiply_backward(p, rows, outputs, g, made, stream_);
  }
  void run_network(const NetworkBackwardArgs& args) const {
    const Workspace space(*this, cuda::network_backward_workspace(args));
    cuda::network_backward(args, space.data, stream_);
  }
  template <class Args>
  void run_all(const Args& args, const Stack& stack) const {
    for (int64_t n = 0; n < stack.count(); ++n) run(of_network(args, stack.steps, n));
  }

 private:
  // Bytes from torch's allocator, which a CUDA graph can capture and another stream does not reuse too early.
  struct Workspace {
    Tensor tensor;
    void* data = nullptr;
    Workspace(const CudaDevice& device, int64_t bytes) {
      if (bytes == 0) return;
      int32_t type = 0;
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(device.x_.get(), &type));
      AtenTensorHandle handle = nullptr;
      const int64_t stride = 1;
      STABLE_TORCH_ERROR_CODE_CHECK(
          aoti_torch_empty_strided(1, &bytes, &stride, aoti_torch_dtype_uint8(), type, device.index_, &handle));
      tensor = Tensor(handle);
      data = tensor.mutable_data_ptr();
    }
  };

  // A member of its own: it gives the old device back also where the constructor above throws.
  struct Guard {
    void* handle = nullptr;
    ~Guard() {
      static const auto destroy =
          reinterpret_cast<AOTITorchError (*)(void*)>(torch_cuda_symbol("aoti_torch_delete_cuda_guard"));
      if (handle) destroy(handle);
    }
  };

  const Tensor& x_;
  int32_t index_ = 0;
  Guard guard_;
  void* stream_ = nullptr;
};

Layer layer_of(int64_t batch, int64_t in, int64_t out, int64_t functions, int64_t order, int64_t base, int64_t dtype,
               int64_t basis) {
  check_dtype_code(dtype);
  check_functions(functions, order, base, basis);
  check(batch >= 0 && in >= 0 && out >= 0, "batch, in_features and out_features must not be negative, got ", batch,
        ", ", in, " and ", out);
  Layer l;
  l.batch = batch, l.in_features = in, l.out_features = out, l.functions = int(functions);
  l.order = int(order), l.base = int(base), l.weight_dtype = DType(dtype), l.basis = int(basis);
  return l;
}

// What the cost model says of both paths, (dense, gather), in cycles an edge: infinite for a path that is not taken.
// Of a basis of full support: on matrix units, or with ordinary multiply-adds.
std::tuple<double, double> cuda_costs(int64_t batch, int64_t in, int64_t out, int64_t functions, int64_t order,
                                      int64_t base, int64_t dtype, int64_t derivative, int64_t capability_major,
                                      int64_t basis) {
  const Layer l = layer_of(batch, in, out, functions, order, base, dtype, basis);
  const cuda::Options o = options(capability_major);
  const double never = std::numeric_limits<double>::infinity();
  const bool local = kBases[l.basis].local;
  const int m = checked_derivative(derivative, kMaxDerivative + 1);
  const cuda::Cost cost = local ? cuda::cost(l, o) : cuda::full_support_cost(l, o);
  const char* const reason = local ? cuda::dense_reason(l, m) : cuda::full_support_matrix_reason(l, m);
  if (o.path == cuda::Path::dense) {
    check(!reason, "the dense path, asked for by KAN_KERNELS_CUDA_PATH, cannot run this: ", reason ? reason : "");
    return {cost.dense, never};
  }
  const bool no_dense = reason || o.path == cuda::Path::gather || (local && cuda::too_small(l));
  return {no_dense ? never : cost.dense, cost.gather};
}

// Why the dense path is not taken whatever it costs, or why only one is: "" where the costs decide.
std::string cuda_path_reason(int64_t batch, int64_t in, int64_t out, int64_t functions, int64_t order, int64_t base,
                             int64_t dtype, int64_t derivative, int64_t basis) {
  const Layer l = layer_of(batch, in, out, functions, order, base, dtype, basis);
  const int m = checked_derivative(derivative, kMaxDerivative + 1);
  if (!kBases[l.basis].local) {
    const char* const reason = cuda::full_support_matrix_reason(l, m);
    if (reason) return std::string("not on matrix units: ") + reason;
    return cuda::forced_path() != cuda::Path::automatic ? "asked for by KAN_KERNELS_CUDA_PATH" : "";
  }
  if (const char* const reason = cuda::dense_reason(l, m)) return std::string("not dense: ") + reason;
  if (cuda::forced_path() != cuda::Path::automatic) return "asked for by KAN_KERNELS_CUDA_PATH";
  if (const char* const small = cuda::too_small(l)) return std::string("not dense: ") + small;
  return "";
}

// Why a network of these widths takes more than a launch, forward and backward: "" where it takes one.
std::tuple<std::string, std::string> cuda_network_reason(int64_t batch, std::vector<int64_t> in_features,
                                                         std::vector<int64_t> out_features,
                                                         std::vector<int64_t> functions, int64_t order, int64_t base,
                                                         int64_t dtype, bool biased, int64_t capability_major) {
  const size_t count = functions.size();
  check(count > 0 && in_features.size() == count && out_features.size() == count,
        "in_features, out_features and functions must have a number for each layer, got ", in_features.size(), ", ",
        out_features.size(), " and ", count);
  std::vector<SplineLayer> layers;
  for (size_t n = 0; n < functions.size(); ++n) {
    layers.push_back(layer_of(batch, in_features[n], out_features[n], functions[n], order, base, dtype, kBSpline));
  }
  const cuda::Options o = options(capability_major);
  const char something = 0;  // no kernel reads it
  const std::vector<const void*> biases(layers.size(), biased ? &something : nullptr);
  std::vector<void*> gradients(layers.size(), nullptr);
  NetworkForwardArgs forward;
  forward.layers = layers.data(), forward.biases = biases.data(), forward.count = int(layers.size());
  NetworkBackwardArgs backward;
  backward.layers = layers.data(), backward.count = int(layers.size());
  backward.d_spline = gradients.data();
  if (biased) backward.d_bias = gradients.data();
  const char *const there = cuda::network_reason(forward, o), *const back = cuda::network_reason(backward, o);
  return {there ? there : "", back ? back : ""};
}

std::tuple<int64_t, int64_t> cuda_versions() {
  const cuda::Versions v = cuda::versions();
  return {v.driver, v.runtime};
}

std::string cuda_architectures() { return KAN_CUDA_ARCHITECTURES; }

}  // namespace
}  // namespace ops
}  // namespace kan

STABLE_TORCH_LIBRARY_FRAGMENT(kan_kernels, m) {
  m.def("cuda_architectures() -> str");
  m.def("cuda_tf32_allowed() -> bool");
  m.def("cuda_versions() -> (int, int)");
  m.def(
      "cuda_costs(int batch, int in_features, int out_features, int functions, int order, int base, int dtype, "
      "int derivative, int capability_major, int basis) -> (float, float)");
  m.def(
      "cuda_path_reason(int batch, int in_features, int out_features, int functions, int order, int base, "
      "int dtype, int derivative, int basis) -> str");
  m.def(
      "cuda_network_reason(int batch, int[] in_features, int[] out_features, int[] functions, int order, int base, "
      "int dtype, bool biased, int capability_major) -> (str, str)");
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CUDA, m) {
  kan::ops::register_family<kan::ops::CudaDevice>(m);
  kan::ops::register_network<kan::ops::CudaDevice>(m);
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&kan::ops::cuda_architectures));
  m.impl("cuda_costs", TORCH_BOX(&kan::ops::cuda_costs));
  m.impl("cuda_network_reason", TORCH_BOX(&kan::ops::cuda_network_reason));
  m.impl("cuda_path_reason", TORCH_BOX(&kan::ops::cuda_path_reason));
  m.impl("cuda_tf32_allowed", TORCH_BOX(&kan::ops::tf32_allowed));
  m.impl("cuda_versions", TORCH_BOX(&kan::ops::cuda_versions));
}
