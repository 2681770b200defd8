// kan_kernels._C: build information, and the CPU kernels on NumPy arrays, without torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <exception>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "grid_values.h"

namespace py = pybind11;
using namespace kan;

namespace {

// Threads that are joined whatever happens.
class Threads {
 public:
  Threads() = default;
  ~Threads() {
    for (std::thread& thread : threads_) thread.join();
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  // False where the system has none left.
  template <class Body>
  bool start(const Body& body) {
    try {
      threads_.emplace_back(body);
    } catch (const std::system_error&) {
      return false;
    }
    return true;
  }

 private:
  std::vector<std::thread> threads_;
};

// Tasks spread over fresh threads: large calls only, so that small ones never wait for one to start.
void run_on_threads(int64_t tasks, void (*body)(int64_t, int64_t, void*), void* context, int threads) {
  const int64_t share = (tasks + threads - 1) / threads;
  std::vector<std::exception_ptr> failed(threads);
  const auto run = [&](int n) {
    try {
      body(n * share, std::min(tasks, (n + 1) * share), context);
    } catch (...) {
      failed[n] = std::current_exception();
    }
  };
  {
    Threads others;
    for (int n = 1; n * share < tasks; ++n) {
      if (!others.start([&run, n] { run(n); })) run(n);
    }
    run(0);
  }
  for (const std::exception_ptr& error : failed) {
    if (error) std::rethrow_exception(error);
  }
}

cpu::Executor executor() {
  static const int threads = int(std::max(1u, std::thread::hardware_concurrency()));
  return {[](int64_t tasks, void (*body)(int64_t, int64_t, void*), void* context) {
            run_on_threads(tasks, body, context, threads);
          },
          threads};
}

const cpu::KernelTable& table(const std::optional<std::string>& isa) {
  if (!isa) return cpu::kernels();
  const cpu::KernelTable* found = cpu::kernels_for(isa->c_str());
  if (!found) throw py::value_error("isa \"" + *isa + "\" is not compiled in or cannot run on this machine");
  return *found;
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;

std::string shape_text(const py::array& a) { return std::string(py::str(a.attr("shape"))); }

// The message is only put together where the check fails: a call on one row takes a few microseconds in all.
template <class Message>
void check(bool condition, const Message& message) {
  if (!condition) throw py::value_error(message());
}

template <class T>
Array<T> as_array(const py::handle& object, const char* name) {
  check(py::isinstance<py::array_t<T>>(object),
        [&] { return std::string(name) + " must be an array of spline_weight's dtype"; });
  return Array<T>::ensure(object);  // contiguous; the same array where it already is
}

template <class T>
py::array forward_as(const py::array& x_in, const py::array& spline_in, const py::object& base_in,
                     const py::object& bias_in, const py::array& grid_in, int order, int base, int derivative,
                     const std::optional<std::string>& isa) {
  const Array<T> x = as_array<T>(x_in, "x"), spline = as_array<T>(spline_in, "spline_weight"),
                 grid = as_array<T>(grid_in, "grid");
  check(x.ndim() == 2, [&] { return "x must have 2 dimensions, got shape " + shape_text(x); });
  const int64_t in = x.shape(1);
  check(spline.ndim() == 3 && spline.shape(0) == in && spline.shape(1) > order, [&] {
    return "spline_weight must be (" + std::to_string(in) + ", more than " + std::to_string(order) +
           ", out), got shape " + shape_text(spline);
  });
  const int64_t functions = spline.shape(1), columns = kBases[kBSpline].columns(functions, order);
  check(grid.ndim() == 2 && grid.shape(0) == in && grid.shape(1) == columns, [&] {
    return "grid must be (" + std::to_string(in) + ", " + std::to_string(columns) + "), got shape " + shape_text(grid);
  });
  const int64_t out = spline.shape(2);
  ForwardArgs args;
  args.layer.batch = x.shape(0);
  args.layer.in_features = in;
  args.layer.out_features = out;
  args.layer.functions = int(functions);
  args.layer.order = order;
  args.layer.base = base;
  args.layer.weight_dtype = sizeof(T) == 8 ? DType::f64 : DType::f32;
  args.layer.grid = grid.data();
  args.layer.spline_weight = spline.data();
  const std::string complaint = grid_complaint(args.layer);
  check(complaint.empty(), [&] { return complaint; });
  Array<T> base_weight, bias;
  check((base != kNoBase) == !base_in.is_none(),
        [] { return std::string("base_weight must be given if and only if base is not 0"); });
  if (!base_in.is_none()) {
    base_weight = as_array<T>(base_in, "base_weight");
    check(base_weight.ndim() == 2 && base_weight.shape(0) == in && base_weight.shape(1) == out,
          [&] { return "base_weight must be (in, out), got shape " + shape_text(base_weight); });
    args.layer.base_weight = base_weight.data();
  }
  if (!bias_in.is_none()) {
    bias = as_array<T>(bias_in, "bias");
    check(bias.ndim() == 1 && bias.shape(0) == out,
          [&] { return "bias must be (out), got shape " + shape_text(bias); });
    args.bias = bias.data();
  }
  args.x = {x.data(), args.layer.weight_dtype, in, 1};
  args.derivative = derivative;
  Array<T> y({x.shape(0), out});
  args.y = y.mutable_data();
  const cpu::KernelTable& kernels = table(isa);
  {
    py::gil_scoped_release release;
    kernels.kan_linear(args, executor());
  }
  return y;
}

py::array forward(const py::array& x, const py::array& spline_weight, const py::object& base_weight,
                  const py::object& bias, const py::array& grid, int order, int base, int derivative,
                  const std::optional<std::string>& isa) {
  check(order >= 0 && order <= kMaxOrder, [&] { return "order must be in 0..10, got " + std::to_string(order); });
  check(base >= kNoBase && base <= kIdentity,
        [&] { return "base must be 0 (none), 1 (silu) or 2 (identity), got " + std::to_string(base); });
  check(derivative >= 0 && derivative <= kMaxDerivative,
        [&] { return "derivative must be in 0..32, got " + std::to_string(derivative); });
  if (py::isinstance<py::array_t<double>>(spline_weight)) {
    return forward_as<double>(x, spline_weight, base_weight, bias, grid, order, base, derivative, isa);
  }
  check(py::isinstance<py::array_t<float>>(spline_weight),
        [] { return std::string("spline_weight must be float32 or float64"); });
  return forward_as<float>(x, spline_weight, base_weight, bias, grid, order, base, derivative, isa);
}

// The sum of what each thread reaches while all are busy.
double fma_peak(int threads, double seconds) {
  check(threads >= 1, [&] { return "threads must be positive, got " + std::to_string(threads); });
  check(seconds > 0 && seconds <= 60, [&] { return "seconds must be in (0, 60], got " + std::to_string(seconds); });
  py::gil_scoped_release release;
  std::vector<double> rates(threads);
  {
    Threads pool;
    for (int t = 0; t < threads; ++t) {
      const bool started = pool.start([&rates, t, seconds] { rates[t] = cpu::kernels().fma_peak(seconds); });
      if (!started) throw std::runtime_error("threads: the system started " + std::to_string(t) + " of them only");
    }
  }
  return std::accumulate(rates.begin(), rates.end(), 0.0) / 1e9;
}

py::dict build_info() {
  py::dict info;
  info["version"] = KAN_VERSION;
  info["compiler"] = KAN_COMPILER;
  info["cuda"] = bool(KAN_CUDA);
  py::list isas;
  for (const char* const* name = cpu::compiled_isas(); *name; ++name) isas.append(*name);
  info["cpu_isas"] = isas;
  info["cpu_isa"] = cpu::kernels().name;
  info["vector_bytes"] = cpu::kernels().vector_bytes;
  info["max_spline_order"] = kMaxOrder;
  info["max_derivative"] = kMaxDerivative;
  return info;
}

// The records of csrc/basis/registry.h; columns: of the grid for 4 functions, of order 3 where the basis is local.
py::list bases() {
  py::list all;
  for (const BasisRecord& record : kBases) {
    py::dict one;
    one["name"] = record.name;
    one["code"] = int(record.code);
    one["local"] = record.local;
    one["columns"] = record.columns(4, record.local ? 3 : 0);
    one["most_functions"] = record.most_functions;
    one["even"] = record.even;
    one["cuda"] = record.cuda_work > 0;
    all.append(one);
  }
  return all;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "kan_kernels without torch: build information and the CPU kernels on NumPy arrays.";
  m.def("build_info", &build_info, "What was compiled, and the instruction set that this machine uses.");
  m.def("bases", &bases, "The bases that C++ knows: a dict a record.");
  m.def("forward", &forward, py::arg("x"), py::arg("spline_weight"), py::arg("base_weight"), py::arg("bias"),
        py::arg("grid"), py::arg("order"), py::arg("base"), py::arg("derivative") = 0, py::arg("isa") = py::none(),
        "y[b, o] = sum_i phi_{i,o}^{(derivative)}(x[b, i]) + bias[o] on float32 or float64 arrays.\n\n"
        "x (n, in), spline_weight (in, functions, out), base_weight (in, out) or None, bias (out) or None, grid\n"
        "(in, functions + order + 1), all of one dtype; base 0 none, 1 silu, 2 identity. Returns (n, out).");
  m.def("fma_peak", &fma_peak, py::arg("threads") = 1, py::arg("seconds") = 0.2,
        "Measured float32 multiply-add peak of so many threads at once, in GFLOP/s.");
}
