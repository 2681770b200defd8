// Tiles of values, coefficients and rows of g on their way to shared memory, for kernels of bases that reach
// everywhere.
#pragma once

#include "full_support.h"
#include "functions.h"
#include "tile_products.h"

namespace kan {
namespace cuda {

struct FunctionTile {
  int64_t i0 = 0;     // first input
  int features = 0;   // that exist
  int r0 = 0;         // first function
  int functions = 0;  // of each input

  KAN_DEVICE FunctionTile(const FullSupportArgs& a, int64_t i0, int64_t last, int r0)
      : i0(i0),
        features(int(last - i0 < a.cut.features ? last - i0 : a.cut.features)),
        r0(r0),
        functions(a.layer.coefficient_rows() - r0 < a.cut.functions ? a.layer.coefficient_rows() - r0
                                                                    : a.cut.functions) {}
  KAN_DEVICE int depth() const { return features * functions; }
};

// The tables of `orders`, one behind the other, by all threads of a block.
template <class Functions, class T, int Orders>
KAN_DEVICE void fill_tables(const FullSupportArgs& a, T* tables, const int (&orders)[Orders]) {
  if (Functions::kTable == 0) return;
  const int n = a.layer.functions;
  KAN_UNROLL
  for (int order = 0; order < Orders; ++order) {
    for (int r = thread_index(); r < n; r += kTileThreads) {
      Functions::fill(tables + order * n * Functions::kTable, r, orders[order]);
    }
  }
}

// Gives the values of a tile for rows b0 .. b0+Rows-1 of x to a sink, by all threads of a block; 0 for rows from `last`
// on. sink.open(k, row) says where the next values belong, sink.put(values, row_scale) takes those of one function and
// goes on to the next. Where a tile has few (row, input)s, several threads share one.
template <class Functions, int Rows, class T, int Orders, class Sink>
KAN_DEVICE void make_values(const FullSupportArgs& a, const FunctionTile& tile, const T* tables,
                            const int (&orders)[Orders], int64_t b0, int64_t last, Sink sink) {
  const int sharing = kTileThreads / (Rows * tile.features);
  const int runs = sharing < 1 ? 1 : sharing < tile.functions ? sharing : tile.functions;
  const int length = (tile.functions + runs - 1) / runs, n = a.layer.functions;
  KAN_ROLLED
  for (int unit = thread_index(); unit < Rows * tile.features * runs; unit += kTileThreads) {
    const int row = unit % Rows, f = unit / Rows % tile.features, begin = unit / Rows / tile.features * length;
    const int end = begin + length < tile.functions ? begin + length : tile.functions;
    const int64_t b = b0 + row, i = tile.i0 + f;
    if (begin >= end) continue;
    T value[Orders] = {};
    sink.open(f * tile.functions + begin, row);
    if (b >= last) {
      KAN_ROLLED
      for (int r = begin; r < end; ++r) sink.put(value, T(1));
      continue;
    }
    const T x = load_as<T>(a.x, b, i), row_scale = a.row_scale.data ? load_as<T>(a.row_scale, b, i) : T(1);
    const bool base = tile.r0 + end > n;
    const int count = end - begin - (base ? 1 : 0);
    if (count > 0) {
      const T* grid = static_cast<const T*>(a.layer.grid) + i * a.grid_columns;
      Functions functions(grid, tables, n, orders, x, tile.r0 + begin);
      KAN_ROLLED
      for (int r = 0; r < count; ++r) {
        functions.next(value);
        sink.put(value, row_scale);
      }
    }
    if (base) {
      KAN_UNROLL
      for (int order = 0; order < Orders; ++order) value[order] = base_value<T>(x, a.layer.base, orders[order]);
      sink.put(value, row_scale);
    }
  }
}

// to[k * stride + o] = coefficient k of a tile and output o0 + o; 0 beyond the last output and for k up to `depth`.
// Pieces arrive in the background: wait_copies comes before the barrier.
template <class Product>
KAN_DEVICE void stage_coefficients(const FullSupportArgs& a, const FunctionTile& tile, typename Product::Element* to,
                                   int stride, int64_t o0, int depth) {
  using Element = typename Product::Element;
  constexpr int kColumns = Product::kColumns, kStep = kTileThreads / kColumns, kPiece = 16 / int(sizeof(Element));
  const int exist = tile.depth(), base = a.layer.functions - tile.r0;  // the base's place among an input's functions
  const int64_t out = a.layer.out_features;
  const DType dtype = a.layer.weight_dtype;
  if (a.pieces) {
    KAN_ROLLED
    for (int e = thread_index(); e < depth * (kColumns / kPiece); e += kTileThreads) {
      const int k = e / (kColumns / kPiece), column = e % (kColumns / kPiece) * kPiece, r = k % tile.functions;
      const int64_t i = tile.i0 + k / tile.functions, o = o0 + column;
      const Element* from = static_cast<const Element*>(a.layer.spline_weight);
      const bool exists = k < exist && o < out;
      if (exists) {
        from = r == base ? static_cast<const Element*>(a.layer.base_weight) + i * out + o
                         : from + a.coefficient(i, tile.r0 + r, o);
      }
      copy_async(to + k * stride + column, from, exists ? 16 : 0);
    }
    return;
  }
  if (a.out_stride == 1) {  // neighbouring threads read neighbouring outputs
    const int column = thread_index() % kColumns;
    const int64_t o = o0 + column, next_feature = a.feature_stride - tile.functions * a.function_stride;
    int k = thread_index() / kColumns, f = k / tile.functions, r = k % tile.functions;
    int64_t at = a.coefficient(tile.i0 + f, tile.r0 + r, o);
    for (; k < depth; k += kStep) {
      Element value = Element(0);
      if (k < exist && o < out) {
        value = r == base ? Product::load(a.layer.base_weight, dtype, (tile.i0 + f) * out + o)
                          : Product::load(a.layer.spline_weight, dtype, at);
      }
      to[k * stride + column] = value;
      r += kStep, at += kStep * a.function_stride;
      while (r >= tile.functions) r -= tile.functions, ++f, at += next_feature;
    }
    return;
  }
  KAN_ROLLED
  for (int k = lane_index(); k < depth; k += 32) {  // neighbouring functions
    const int64_t i = tile.i0 + k / tile.functions;
    const int r = k % tile.functions;
    for (int column = warp_index(); column < kColumns; column += kTileThreads / 32) {
      const int64_t o = o0 + column;
      Element value = Element(0);
      if (k < exist && o < out) {
        value = r == base ? Product::load(a.layer.base_weight, dtype, i * out + o)
                          : Product::load(a.layer.spline_weight, dtype, a.coefficient(i, tile.r0 + r, o));
      }
      to[k * stride + column] = value;
    }
  }
}

// to[row * stride + o] = g[b0 + row, o0 + o], 0 where that does not exist; in the background as above.
template <class Product, int Rows>
KAN_DEVICE void stage_g(const FullSupportArgs& a, typename Product::Element* to, int stride, int64_t b0, int64_t last,
                        int64_t o0) {
  using Element = typename Product::Element;
  constexpr int kColumns = Product::kColumns, kPiece = 16 / int(sizeof(Element));
  if (a.g_pieces) {
    KAN_ROLLED
    for (int e = thread_index(); e < Rows * (kColumns / kPiece); e += kTileThreads) {
      const int row = e / (kColumns / kPiece), column = e % (kColumns / kPiece) * kPiece;
      const bool exists = b0 + row < last && o0 + column < a.layer.out_features;
      const int64_t at = exists ? (b0 + row) * a.g.row_stride + o0 + column : 0;
      copy_async(to + row * stride + column, static_cast<const Element*>(a.g.data) + at, exists ? 16 : 0);
    }
    return;
  }
  const int column = thread_index() % kColumns;
  const int64_t o = o0 + column;
  for (int row = thread_index() / kColumns; row < Rows; row += kTileThreads / kColumns) {
    const bool exists = b0 + row < last && o < a.layer.out_features;
    to[row * stride + column] =
        exists ? Product::load(a.g.data, a.g.dtype, (b0 + row) * a.g.row_stride + o * a.g.col_stride) : Element(0);
  }
}

// Runs Kernel<Product, Functions>::run(arguments...) for a call's dtype, width and basis.
template <template <class, template <class, int> class> class Kernel, bool Brain, class... Arguments>
auto run_half(const FullSupportArgs& a, Arguments... arguments) {
  switch (full_support_columns(a.layer.out_features, true)) {
    case kNarrow: return run_basis<Kernel, HalfProduct<Brain, kNarrow>>(a, arguments...);
    case kWide: return run_basis<Kernel, HalfProduct<Brain, kWide>>(a, arguments...);
    default: return run_basis<Kernel, HalfProduct<Brain, kWidest>>(a, arguments...);
  }
}
template <template <class, template <class, int> class> class Kernel, class T, class... Arguments>
auto run_scalar(const FullSupportArgs& a, Arguments... arguments) {
  if (full_support_columns(a.layer.out_features, false) == kNarrow)
    return run_basis<Kernel, ScalarProduct<T, kNarrow>>(a, arguments...);
  return run_basis<Kernel, ScalarProduct<T, kWide>>(a, arguments...);
}
template <template <class, template <class, int> class> class Kernel, class... Arguments>
auto run_full_support(const FullSupportArgs& a, Arguments... arguments) {
  if (a.layer.weight_dtype == DType::f64) return run_scalar<Kernel, double>(a, arguments...);
  if (!a.matrix) return run_scalar<Kernel, float>(a, arguments...);
  if (a.layer.weight_dtype == DType::bf16) return run_half<Kernel, true>(a, arguments...);
  return run_half<Kernel, false>(a, arguments...);
}

}  // namespace cuda
}  // namespace kan
