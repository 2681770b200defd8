// y[b,o] = sum_i row_scale[b,i] phi_{i,o}^{(m)}(x[b,i]) + bias[o] for a basis of full support, or the sum over one
// part of the inputs: tiles of values and of coefficients in shared memory, and their product.
#include "tile.h"

namespace kan {
namespace cuda {
namespace {

// values[k][row]
template <class Product>
struct ValueSink {
  static constexpr int kStride = tile_stride<typename Product::Element>(Product::kForwardRows);
  typename Product::Element *values, *at;
  KAN_DEVICE void open(int k, int row) { at = values + k * kStride + row; }
  KAN_DEVICE void put(const typename Product::Number (&value)[1], typename Product::Number row_scale) {
    *at = Product::narrow(row_scale * value[0]);
    at += kStride;
  }
};

template <class Product, template <class, int> class Basis>
KAN_KERNEL(kTileThreads, 2)
full_support_forward_kernel(FullSupportArgs a) {
  using T = typename Product::Number;
  using Element = typename Product::Element;
  using Functions = Basis<T, 1>;
  constexpr int kRows = Product::kForwardRows, kColumns = Product::kColumns, kDepth = Product::kDepth;
  constexpr int kValues = ValueSink<Product>::kStride, kCoefficients = tile_stride<Element>(kColumns);
  const int64_t batch = a.layer.batch, out = a.layer.out_features;
  const int64_t b0 = int64_t(block_index_x()) * kRows, o0 = int64_t(block_index_y()) * kColumns;
  const int64_t first = int64_t(block_index_z()) * a.cut.part, past = first + a.cut.part;
  const int64_t last = past < a.layer.in_features ? past : a.layer.in_features;

  Element* values = reinterpret_cast<Element*>(shared_memory());  // [k][row]
  Element* coefficients = values + kFullSupportDepth * kValues;   // [k][output]
  T* tables = reinterpret_cast<T*>(coefficients + kFullSupportDepth * kCoefficients);
  const int orders[1] = {a.derivative};
  fill_tables<Functions>(a, tables, orders);

  typename Product::template Down<kRows> product;
  for (int64_t i0 = first; i0 < last; i0 += a.cut.features) {
    for (int r0 = 0; r0 < a.layer.coefficient_rows(); r0 += a.cut.functions) {
      const FunctionTile tile(a, i0, last, r0);
      const int depth = (tile.depth() + kDepth - 1) / kDepth * kDepth;
      sync_block();
      stage_coefficients<Product>(a, tile, coefficients, kCoefficients, o0, depth);
      commit_copies();
      make_values<Functions, kRows>(a, tile, tables, orders, b0, batch, ValueSink<Product>{values, values});
      for (int e = tile.depth() * kRows + thread_index(); e < depth * kRows; e += kTileThreads) {
        values[e / kRows * kValues + e % kRows] = Element(0);
      }
      wait_copies<0>();
      sync_block();
      product.multiply(values, kValues, coefficients, kCoefficients, depth);
    }
  }
  product.each([&](int row, int column, T sum) {
    const int64_t b = b0 + row, o = o0 + column;
    if (b >= batch || o >= out) return;
    const T bias = a.bias ? load_as<T>(a.bias, a.layer.weight_dtype, o) : T(0);
    store_as<T>(a.y, a.y_dtype, (block_index_z() * batch + b) * out + o, sum + bias);
  });
}

template <class Product, template <class, int> class Basis>
struct Forward {
  static void run(const FullSupportArgs& a, void* stream) {
    const Grid grid{ceil_div(a.layer.batch, Product::kForwardRows), ceil_div(a.layer.out_features, Product::kColumns),
                    a.cut.splits};
    launch<FullSupportArgs>("full_support_forward", full_support_forward_kernel<Product, Basis>, grid, kTileThreads,
                            a.cut.shared_bytes, stream, a);
  }
};

template <class Product, template <class, int> class Basis>
struct ForwardRows {
  static int64_t run(const FullSupportArgs&) { return Product::kForwardRows; }
};

template <class Product, template <class, int> class Basis>
struct ForwardBytes {
  static int run(const FullSupportArgs& a) {
    using Element = typename Product::Element;
    using T = typename Product::Number;
    const int row = tile_stride<Element>(Product::kForwardRows) + tile_stride<Element>(Product::kColumns);
    return kFullSupportDepth * row * int(sizeof(Element)) + a.layer.functions * Basis<T, 1>::kTable * int(sizeof(T));
  }
};

}  // namespace

void full_support_forward(const FullSupportArgs& a, void* stream) { run_full_support<Forward>(a, stream); }
int64_t full_support_forward_rows(const FullSupportArgs& a) { return run_full_support<ForwardRows>(a); }
int full_support_forward_bytes(const FullSupportArgs& a) { return run_full_support<ForwardBytes>(a); }

}  // namespace cuda
}  // namespace kan
