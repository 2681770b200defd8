// Either or both of the input's and the weights' gradients with matrix instructions, in one pass over x and g.
//
// A block owns 16 groups of 8 coefficient rows, 4 chunks of 4 groups: `row_blocks` groups to an input. For a tile of
// rows of the batch it
//   1. multiplies g with the coefficients, and with the columns' order chosen so that a thread holds all 8 rows of a
//      group, sums them with the basis' slopes in registers: the input's gradient;
//   2. leaves the basis values, made from the same evaluation, in shared memory;
//   3. multiplies those, transposed, with the same g: the weights' gradient, which stays in registers to the end.
#include "dense.h"

namespace kan {
namespace cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kChunks = 4, kOutputs = 64;
constexpr int kColumns = kChunks * kChunk;  // of the basis, in one block
constexpr int kBaseColumns = 16;            // of the base, behind them

// Shared memory of one block, in bytes. M: 16-row tiles of a warp; two warps share the rows of a tile.
template <class Matrix>
struct Layout {
  static constexpr int kSize = int(sizeof(typename Matrix::Element));
  static constexpr int M = kSize == 2 ? 2 : 1, kRows = 2 * 16 * M;
  static constexpr int kStride = kOutputs * kSize + (kSize == 2 ? 16 : 32);  // of g and of the coefficients
  static constexpr int kGroupStride = kGroupRows * kStride + (kSize == 2 ? 32 : 64);
  static constexpr int kBasisStride = (kColumns + kBaseColumns) * kSize + (kSize == 2 ? 16 : 96);
  static constexpr int kG = kRows * kStride;
  static constexpr int kCoefficients = kChunks * kGroups * kGroupStride + kBaseColumns * kStride;
  static constexpr int kBasis = kRows * kBasisStride;
  static constexpr int kSlopes = kChunks * kRows * kGroups * 4;

  int g, coefficients, basis, slopes, tables, all;  // offsets
  // stages of g and of the coefficients
  KAN_HD Layout(bool input, bool weight, int g_stages, int coefficient_stages, int table_bytes) {
    g = 0;
    coefficients = g + g_stages * kG;
    basis = coefficients + (input ? coefficient_stages * kCoefficients : 0);
    slopes = basis + (weight ? kBasis : 0);
    tables = slopes + (input ? kSlopes : 0);
    all = tables + table_bytes;
  }
};

template <int K>
KAN_HD int table_bytes(const DenseArgs& a) {
  return kChunks / a.row_blocks * KnotTable<K>::size(a.n_knots()) * 4;
}

// How many times over g and the coefficients lie in shared memory. The latter change only where there are several
// tiles of outputs.
template <class Matrix, int K>
KAN_HD int stages(const DenseArgs& a) {
  const bool tiles = a.input && a.layer.out_features > kOutputs;
  return Layout<Matrix>(a.input, a.d_spline, 2, tiles ? 2 : 1, table_bytes<K>(a)).all <= 96 * 1024 ? 2 : 1;
}

// Which inputs and coefficient rows a block owns.
struct Owned {
  int64_t i0;
  int row_blocks, block0;
  KAN_DEVICE explicit Owned(const DenseArgs& a) : row_blocks(a.row_blocks) {
    const int blocks = (a.n_splines() + kGroupRows - 1) / kGroupRows, parts = (blocks + row_blocks - 1) / row_blocks;
    i0 = int64_t(block_index_x() / parts) * (kChunks / row_blocks * kGroups);
    block0 = block_index_x() % parts * row_blocks;
  }
  KAN_DEVICE int64_t input(int chunk, int group) const { return i0 + chunk / row_blocks * kGroups + group; }
  KAN_DEVICE int block(int chunk) const { return block0 + chunk % row_blocks; }  // of 8 coefficient rows
};

template <class Matrix>
KAN_DEVICE void stage_g(const DenseArgs& a, unsigned char* to, int64_t b0, int64_t last, int64_t o0) {
  using Element = typename Matrix::Element;
  using L = Layout<Matrix>;
  constexpr int kPieces = kOutputs * L::kSize / 16;
  const Element* g = static_cast<const Element*>(a.g.data);
  KAN_ROLLED
  for (int piece = thread_index(); piece < L::kRows * kPieces; piece += kThreads) {
    const int row = piece / kPieces, column = piece % kPieces;
    const int64_t b = b0 + row, o = o0 + column * (16 / L::kSize);
    unsigned char* at = to + row * L::kStride + column * 16;
    const Element* from = b < last ? g + b * a.g.row_stride : nullptr;
    if (a.aligned || a.g.col_stride == 1) {
      stage_piece<Element>(at, from, o, a.layer.out_features, a.aligned);
    } else {
      for (int n = 0; n < 16 / L::kSize; ++n) {
        const bool exists = from && o + n < a.layer.out_features;
        reinterpret_cast<Element*>(at)[n] = exists ? from[(o + n) * a.g.col_stride] : Element(0);
      }
    }
  }
}

template <class Matrix>
KAN_DEVICE void stage_coefficients(const DenseArgs& a, const Owned& owned, unsigned char* to, int64_t o0) {
  using Element = typename Matrix::Element;
  using L = Layout<Matrix>;
  constexpr int kPieces = kOutputs * L::kSize / 16;
  const int64_t out = a.layer.out_features;
  KAN_ROLLED
  for (int piece = thread_index(); piece < (kColumns + kBaseColumns) * kPieces; piece += kThreads) {
    const int row = piece / kPieces, column = piece % kPieces;
    const Element* from = nullptr;
    unsigned char* at = to + column * 16;
    if (row < kColumns) {
      const int chunk = row / kChunk, group = row / kGroupRows % kGroups, e = row % kGroupRows;
      const int64_t i = owned.input(chunk, group);
      const int r = owned.block(chunk) * kGroupRows + e;
      if (i < a.layer.in_features && r < a.n_splines()) {
        from = static_cast<const Element*>(a.layer.spline_weight) + (i * a.n_splines() + r) * out;
      }
      at += (chunk * kGroups + group) * L::kGroupStride + e * L::kStride;
    } else {
      const int chunk = (row - kColumns) / kGroups;
      const int64_t i = owned.input(chunk, row % kGroups);
      if (a.layer.base != kNoBase && i < a.layer.in_features && owned.block(chunk) == 0) {
        from = static_cast<const Element*>(a.layer.base_weight) + i * out;
      }
      at += kChunks * kGroups * L::kGroupStride + (row - kColumns) * L::kStride;
    }
    stage_piece<Element>(at, from, o0 + column * (16 / L::kSize), out, a.aligned);
  }
}

// One row's k+1 values at its window; all 8 rows of the group are NaN where x is.
template <class Row, int K>
KAN_DEVICE void place(Row& row, const scalar::CellKnots<K, float>& knots, int cell, int block, float x, float scale,
                      int derivative) {
  float value[K + 1];
  const bool inside = cell >= 0 && derivative <= K;
  if (inside) scalar::bspline_values<K, float, float>(knots, x, scale, derivative, value);
  KAN_UNROLL
  for (int j = 0; j <= K; ++j) value[j] = inside ? value[j] : 0.0f;
  row.place(value, cell - K - block * kGroupRows);
  if (x == x) return;
  const float nothing[kGroupRows] = {x, x, x, x, x, x, x, x};
  row.fill(nothing);
}

template <class Matrix, int K>
KAN_KERNEL(kThreads, 1)
dense_backward_kernel(DenseArgs a) {
  using L = Layout<Matrix>;
  constexpr int M = L::M;
  const bool input = a.input != nullptr, weight = a.d_spline != nullptr, base = a.layer.base != kNoBase;
  const int lane = lane_index(), t = lane % 4, chunk = warp_index() % kChunks, half = warp_index() / kChunks;
  const int64_t out = a.layer.out_features, in = a.layer.in_features;
  const int64_t first = int64_t(block_index_z()) * a.part;
  const int64_t last = first + a.part < a.layer.batch ? first + a.part : a.layer.batch;
  const int64_t o_begin = int64_t(block_index_y()) * kOutputs;
  const int64_t tiles = input ? (out + kOutputs - 1) / kOutputs : 1;  // of outputs, in this block
  const int64_t steps = (last > first ? (last - first + L::kRows - 1) / L::kRows : 0) * tiles;
  const Owned owned(a);
  const bool has_base = base && owned.block(chunk) == 0;  // this warp's chunk counts its inputs' base
  const int depth = stages<Matrix, K>(a), c_depth = tiles > 1 ? depth : 1;
  const int table_size = KnotTable<K>::size(a.n_knots());
  const Layout<Matrix> layout(input, weight, depth, c_depth, table_bytes<K>(a));
  unsigned char* shared = shared_memory();
  unsigned char* basis = shared + layout.basis;
  float* slopes = reinterpret_cast<float*>(shared + layout.slopes);  // [chunk][row][group]
  float* tables = reinterpret_cast<float*>(shared + layout.tables);

  for (int q = 0; q < kChunks / a.row_blocks; ++q) {
    KnotTable<K>::fill(tables + q * table_size, static_cast<const float*>(a.layer.grid), a.n_knots(),
                       owned.i0 + q * kGroups, in, thread_index(), kThreads);
  }
  const float* table = tables + chunk / a.row_blocks * table_size;
  const int64_t i = owned.input(chunk, t);

  const auto stage = [&](int64_t step) {
    if (step < steps) {
      const int64_t o0 = o_begin + step % tiles * kOutputs;
      stage_g<Matrix>(a, shared + layout.g + step % depth * L::kG, first + step / tiles * L::kRows, last, o0);
      if (input && (tiles > 1 || step == 0)) {
        stage_coefficients<Matrix>(a, owned, shared + layout.coefficients + step % c_depth * L::kCoefficients, o0);
      }
    }
    commit_copies();
  };

  float product[M][4][4] = {}, base_product[M][1][4] = {};    // g C' and g W'
  float gradient[2][4][4] = {}, base_gradient[1][1][4] = {};  // of 32 coefficient rows and 32 outputs
  stage(0);
  for (int64_t step = 0; step < steps; ++step) {
    wait_copies<0>();
    sync_block();
    if (depth == 2) stage(step + 1);
    const unsigned char* g = shared + layout.g + step % depth * L::kG;
    if (input) {
      const unsigned char* c = shared + layout.coefficients + step % c_depth * L::kCoefficients;
      const unsigned char* rows = g + half * 16 * M * L::kStride;
      Matrix::template multiply_rows<M, 4>(product, rows, L::kStride, c + chunk * kGroups * L::kGroupStride,
                                           L::kGroupStride, L::kStride, kOutputs);
      if (has_base) {
        Matrix::template multiply_rows<M, 1>(base_product, rows, L::kStride,
                                             c + kChunks * kGroups * L::kGroupStride + chunk * kGroups * L::kStride,
                                             L::kStride, 0, kOutputs);
      }
    }
    if (step % tiles == tiles - 1) {
      const int64_t b0 = first + step / tiles * L::kRows;
      KAN_UNROLL
      for (int n = 0; n < 2 * M; ++n) {
        const int row = half * 16 * M + lane / 4 + 8 * n;
        const int64_t b = b0 + row;
        const bool exists = b < last && i < in;
        const float x = exists ? Matrix::load(a.x, b, i) : 0.0f;
        const int cell = KnotTable<K>::locate(table, a.n_knots(), t, x);
        const scalar::CellKnots<K, float> knots = KnotTable<K>::around(table, a.n_knots(), t, cell < 0 ? 0 : cell);
        if (input) {
          typename FloatMatrix<true>::Row slope;
          place<typename FloatMatrix<true>::Row, K>(slope, knots, cell, owned.block(chunk), x, 1.0f,
                                                    a.input_derivative);
          float sum = 0.0f;
          KAN_UNROLL
          for (int e = 0; e < kGroupRows; ++e) sum += slope.value[e] * product[n / 2][e / 2][2 * (n % 2) + e % 2];
          if (has_base)
            sum += low_base_value<false>(x, a.layer.base, a.input_derivative) * base_product[n / 2][0][2 * (n % 2)];
          slopes[(chunk * L::kRows + row) * kGroups + t] = sum;
        }
        if (weight) {
          const float side = !exists ? 0.0f : a.side.data ? Matrix::load(a.side, b, i) : 1.0f;
          typename Matrix::Row values;
          place<typename Matrix::Row, K>(values, knots, cell, owned.block(chunk), x, side, a.derivative);
          unsigned char* to = basis + row * L::kBasisStride;
          Matrix::store(to + (chunk * kChunk + t * kGroupRows) * L::kSize, values);
          const float value =
              has_base && exists ? side * low_base_value<Matrix::kQuick>(x, a.layer.base, a.derivative) : 0.0f;
          Matrix::store(to + (kColumns + chunk * kGroups + t) * L::kSize, value);
        }
      }
      KAN_UNROLL
      for (int m = 0; m < M; ++m) {
        KAN_UNROLL
        for (int e = 0; e < 16; ++e) product[m][e / 4][e % 4] = 0.0f;
        KAN_UNROLL
        for (int e = 0; e < 4; ++e) base_product[m][0][e] = 0.0f;
      }
      sync_block();
      if (input) {
        const int inputs = kChunks / a.row_blocks * kGroups;
        for (int e = thread_index(); e < L::kRows * inputs; e += kThreads) {
          const int row = e / inputs, n = e % inputs;
          const int64_t at = owned.i0 + n, b = b0 + row;
          if (b >= last || at >= in) continue;
          float sum = 0.0f;
          for (int q = 0; q < a.row_blocks; ++q) {
            sum += slopes[((n / kGroups * a.row_blocks + q) * L::kRows + row) * kGroups + n % kGroups];
          }
          const int64_t part = owned.block0 / a.row_blocks;  // rows of one input beyond this block's are other parts
          store_as<float>(a.input, a.input_dtype, (part * a.layer.batch + b) * in + at, sum);
        }
      }
      if (weight) {
        Matrix::template multiply_columns<2, 4>(gradient, basis + chunk * kChunk * L::kSize, L::kBasisStride,
                                                g + half * 32 * L::kSize, L::kStride, L::kRows);
        if (base) {
          Matrix::template multiply_columns<1, 1>(base_gradient, basis + kColumns * L::kSize, L::kBasisStride,
                                                  g + warp_index() * 8 * L::kSize, L::kStride, L::kRows);
        }
      }
    }
    if (depth == 1) {
      sync_block();
      stage(step + 1);
    }
  }
  if (!weight) return;

  const int n_splines = a.n_splines(), n_rows = n_splines + (base ? 1 : 0);
  float* parts = static_cast<float*>(a.parts);
  KAN_UNROLL
  for (int m = 0; m < 2; ++m) {
    KAN_UNROLL
    for (int n = 0; n < 4; ++n) {
      KAN_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int column = 16 * m + lane / 4 + (e & 2 ? 8 : 0);
        const int64_t at = owned.input(chunk, column / kGroupRows);
        const int64_t o = o_begin + half * 32 + 8 * n + 2 * t + (e & 1);
        const int r = owned.block(chunk) * kGroupRows + column % kGroupRows;
        if (at >= in || r >= n_splines || o >= out) continue;
        if (parts) {
          parts[((block_index_z() * in + at) * n_rows + r) * out + o] = gradient[m][n][e];
        } else {
          store_as<float>(a.d_spline, a.layer.weight_dtype, (at * n_splines + r) * out + o, gradient[m][n][e]);
        }
      }
    }
  }
  if (!base) return;
  KAN_UNROLL
  for (int e = 0; e < 4; ++e) {
    const int column = lane / 4 + (e & 2 ? 8 : 0);
    const int64_t at = owned.input(column / kGroups, column % kGroups);
    const int64_t o = o_begin + warp_index() * 8 + 2 * t + (e & 1);
    if (at >= in || o >= out || owned.block(column / kGroups) != 0) continue;
    if (parts) {
      parts[((block_index_z() * in + at) * n_rows + n_splines) * out + o] = base_gradient[0][0][e];
    } else {
      store_as<float>(a.d_base, a.layer.weight_dtype, at * out + o, base_gradient[0][0][e]);
    }
  }
}

template <class Matrix, int K>
void run(const DenseArgs& a, void* stream) {
  const Grid grid{ceil_div(a.layer.in_features, dense_backward_inputs(a)) * dense_backward_parts(a),
                  a.input ? 1 : ceil_div(a.layer.out_features, kOutputs), a.splits};
  const bool tiles = a.input && a.layer.out_features > kOutputs;
  const int depth = stages<Matrix, K>(a);
  const int bytes = Layout<Matrix>(a.input, a.d_spline, depth, tiles ? depth : 1, table_bytes<K>(a)).all;
  launch<DenseArgs>("dense_backward", dense_backward_kernel<Matrix, K>, grid, kThreads, bytes, stream, a);
}

template <class Matrix>
void run_order(const DenseArgs& a, void* stream) {
  if (a.layer.spline_order == 1) return run<Matrix, 1>(a, stream);
  if (a.layer.spline_order == 2) return run<Matrix, 2>(a, stream);
  run<Matrix, 3>(a, stream);
}

}  // namespace

int64_t dense_backward_outputs() { return kOutputs; }
int64_t dense_backward_inputs(const DenseArgs& a) { return kChunks / a.row_blocks * kGroups; }
int64_t dense_backward_parts(const DenseArgs& a) { return ceil_div(ceil_div(a.n_splines(), kGroupRows), a.row_blocks); }

void dense_backward(const DenseArgs& a, void* stream) {
  switch (a.layer.weight_dtype) {
    case DType::bf16: return run_order<HalfMatrix<true>>(a, stream);
    case DType::f16: return run_order<HalfMatrix<false>>(a, stream);
    default: return a.tf32 ? run_order<FloatMatrix<false>>(a, stream) : run_order<FloatMatrix<true>>(a, stream);
  }
}

}  // namespace cuda
}  // namespace kan
