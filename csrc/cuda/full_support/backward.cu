// Either or both of the input's and the weights' gradients for a basis of full support, without atomics.
//
// A block owns a tile of functions. For some rows of x and g at a time it makes the functions' values and slopes, and
//   1. adds values' g to the weights' gradient, which stays in registers to the end;
//   2. multiplies g with the coefficients, output tile by output tile, and that with the slopes: their sum over an
//      input's functions is its gradient, or one part of it where an input has several tiles.
#include "tile.h"

namespace kan {
namespace cuda {
namespace {

constexpr int kSlopes = kFullSupportTile + 1;  // numbers from one row of slopes to the next: neighbouring banks

// values[row][k] and slopes[row][k], each if there are any.
template <class Product>
struct PairSink {
  using T = typename Product::Number;
  static constexpr int kValues = tile_stride<typename Product::Element>(kFullSupportTile);
  typename Product::Element* values;
  T* slopes;
  int value_at = 0, slope_at = 0;
  KAN_DEVICE void open(int k, int row) { value_at = row * kValues + k, slope_at = row * kSlopes + k; }
  KAN_DEVICE void put(const T (&value)[2], T row_scale) {
    if (values) values[value_at] = Product::narrow(row_scale * value[0]);
    if (slopes) slopes[slope_at] = value[1];
    ++value_at, ++slope_at;
  }
};

template <class Product, template <class, int> class Basis>
struct BackwardLayout {
  using T = typename Product::Number;
  using Element = typename Product::Element;
  static constexpr int kRows = Product::kBackwardRows;
  static constexpr int kColumns = tile_stride<Element>(Product::kColumns), kValues = PairSink<Product>::kValues;
  // Bytes. g [row][output], coefficients [k][output], values [row][k], slopes [row][k], tables of two orders.
  int coefficients, values, slopes, tables, all;

  KAN_HD explicit BackwardLayout(const FullSupportArgs& a) {
    const int size = int(sizeof(Element));
    coefficients = kRows * kColumns * size;
    values = coefficients + (a.input ? kFullSupportTile * kColumns * size : 0);
    slopes = values + (a.d_spline ? kRows * kValues * size : 0);
    tables = slopes + (a.input ? kRows * kSlopes * int(sizeof(T)) : 0);
    all = tables + 2 * a.layer.functions * Basis<T, 2>::kTable * int(sizeof(T));
  }
};

template <class Product, template <class, int> class Basis>
KAN_KERNEL(kTileThreads, sizeof(typename Product::Number) == 8 ? 1 : 2)
full_support_backward_kernel(FullSupportArgs a) {
  using T = typename Product::Number;
  using Element = typename Product::Element;
  using Layout = BackwardLayout<Product, Basis>;
  using Functions = Basis<T, 2>;
  constexpr int kRows = Layout::kRows, kColumns = Product::kColumns;
  const bool input = a.input != nullptr, weight = a.d_spline != nullptr;
  const int64_t batch = a.layer.batch, in = a.layer.in_features, out = a.layer.out_features;
  const int tile_index = block_index_x() % a.cut.tiles;
  const FunctionTile tile(a, int64_t(block_index_x()) / a.cut.tiles * a.cut.features, in, tile_index * a.cut.functions);
  const int64_t first = int64_t(block_index_z()) * a.cut.part, past = first + a.cut.part;
  const int64_t last = past < batch ? past : batch;
  // The input's gradient takes all outputs, and the weights' beside it if one block has them all.
  const int64_t o_begin = int64_t(block_index_y()) * kColumns;
  const bool one_step = !input || out <= kColumns;

  const Layout layout(a);
  unsigned char* shared = shared_memory();
  Element* g = reinterpret_cast<Element*>(shared);
  Element* coefficients = reinterpret_cast<Element*>(shared + layout.coefficients);
  Element* values = reinterpret_cast<Element*>(shared + layout.values);
  T* slopes = reinterpret_cast<T*>(shared + layout.slopes);
  T* tables = reinterpret_cast<T*>(shared + layout.tables);
  // Of a result that is not wanted no order of its own is made.
  const int orders[2] = {weight ? a.derivative : a.input_derivative, input ? a.input_derivative : a.derivative};
  fill_tables<Functions>(a, tables, orders);

  typename Product::template Down<kFullSupportTile> gradient;
  for (int64_t b0 = first; b0 < last; b0 += kRows) {
    typename Product::template Across<kRows> product;
    int64_t o0 = o_begin;
    do {
      sync_block();
      stage_g<Product, kRows>(a, g, Layout::kColumns, b0, last, o0);
      if (input && (b0 == first || !one_step)) {
        stage_coefficients<Product>(a, tile, coefficients, Layout::kColumns, o0, tile.depth());
      }
      commit_copies();
      if (o0 == o_begin) {
        make_values<Functions, kRows>(a, tile, tables, orders, b0, last,
                                      PairSink<Product>{weight ? values : nullptr, input ? slopes : nullptr});
      }
      wait_copies<0>();
      sync_block();
      if (weight) gradient.multiply(values, Layout::kValues, g, Layout::kColumns, kRows);
      if (input) product.multiply(g, Layout::kColumns, coefficients, Layout::kColumns, kColumns);
      o0 += kColumns;
    } while (!one_step && o0 < out);
    if (!input) continue;
    product.each([&](int row, int k, T sum) {
      if (k < tile.depth()) slopes[row * kSlopes + k] *= sum;
    });
    sync_block();
    KAN_ROLLED
    for (int e = thread_index(); e < kRows * tile.features; e += kTileThreads) {
      const int row = e % kRows, f = e / kRows;
      if (b0 + row >= last) continue;
      T sum = T(0);
      for (int r = 0; r < tile.functions; ++r) sum += slopes[row * kSlopes + f * tile.functions + r];
      store_as<T>(a.input, a.input_dtype, (tile_index * batch + b0 + row) * in + tile.i0 + f, sum);
    }
  }
  if (!weight) return;

  const bool split = a.parts != nullptr;
  const DType dtype = !split ? a.layer.weight_dtype : sizeof(T) == 8 ? DType::f64 : DType::f32;
  const int64_t spline_part = split ? block_index_z() * in * a.layer.functions * out : 0;
  const int64_t base_part = split ? block_index_z() * in * out : 0;
  gradient.each([&](int k, int column, T sum) {
    const int64_t o = o_begin + column;
    if (k >= tile.depth() || o >= out) return;
    const int64_t i = tile.i0 + k / tile.functions;
    const int r = tile.r0 + k % tile.functions;
    if (r == a.layer.functions) {
      store_as<T>(split ? a.base_parts : a.d_base, dtype, base_part + i * out + o, sum);
    } else {
      store_as<T>(split ? a.parts : a.d_spline, dtype, spline_part + a.coefficient(i, r, o), sum);
    }
  });
}

template <class Product, template <class, int> class Basis>
struct Backward {
  static void run(const FullSupportArgs& a, void* stream) {
    const Grid grid{ceil_div(a.layer.in_features, a.cut.features) * a.cut.tiles,
                    a.input ? 1 : ceil_div(a.layer.out_features, Product::kColumns), a.cut.splits};
    launch<FullSupportArgs>("full_support_backward", full_support_backward_kernel<Product, Basis>, grid, kTileThreads,
                            a.cut.shared_bytes, stream, a);
  }
};

template <class Product, template <class, int> class Basis>
struct BackwardRows {
  static int64_t run(const FullSupportArgs&) { return Product::kBackwardRows; }
};

template <class Product, template <class, int> class Basis>
struct BackwardBytes {
  static int run(const FullSupportArgs& a) { return BackwardLayout<Product, Basis>(a).all; }
};

}  // namespace

void full_support_backward(const FullSupportArgs& a, void* stream) { run_full_support<Backward>(a, stream); }
int64_t full_support_backward_rows(const FullSupportArgs& a) { return run_full_support<BackwardRows>(a); }
int full_support_backward_bytes(const FullSupportArgs& a) { return run_full_support<BackwardBytes>(a); }

}  // namespace cuda
}  // namespace kan
