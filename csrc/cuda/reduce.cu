// The second phase of a split contraction: adds the parts, always in the same order.
#include "reduce.h"

namespace kan {
namespace cuda {
namespace {

template <class T>
KAN_KERNEL(256, 1)
reduce_kernel(ReduceArgs a) {
  for (int64_t e = int64_t(block_index_x()) * 256 + thread_index(); e < a.count; e += a.stride) {
    const int64_t o = e % a.columns, row = e / a.columns % a.rows, i = e / a.columns / a.rows;
    T sum = a.bias ? load_as<T>(a.bias, a.dtype, o) : T(0);
    for (int64_t part = 0; part < a.parts; ++part) sum += static_cast<const T*>(a.from)[part * a.count + e];
    if (row < a.main_rows) {
      store_as<T>(a.to, a.dtype, (i * a.main_rows + row) * a.columns + o, sum);
    } else {
      store_as<T>(a.last, a.dtype, i * a.columns + o, sum);
    }
  }
}

}  // namespace

void reduce(ReduceArgs a, bool wide, void* stream) {
  if (a.count == 0) return;
  const int64_t blocks = ceil_div(a.count, 256), most = 16384;
  const Grid grid{blocks < most ? blocks : most, 1, 1};
  a.stride = grid.x * 256;
  launch<ReduceArgs>("reduce", wide ? reduce_kernel<double> : reduce_kernel<float>, grid, 256, 0, stream, a);
}

}  // namespace cuda
}  // namespace kan
