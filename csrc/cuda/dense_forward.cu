// y = [B(x) | base(x)] [C; W] + bias with matrix instructions. A block makes 128 or 64 rows by 8 N outputs; each of its
// four warps makes rows of its own, so no basis value is made twice in a block.
#include "dense.h"

namespace kan {
namespace cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;

template <class Matrix>
constexpr int rows_of_block() {
  return kWarps * 16 * Matrix::kTiles;
}

template <class Matrix, int N>
struct Stage {
  static constexpr int kColumns = 8 * N;
  static constexpr int kRowStride = kColumns * int(sizeof(typename Matrix::Element)) + Matrix::kRowPadding;
  static constexpr int kGroupStride = kGroupRows * kRowStride + 32;  // the four groups start in different banks
  static constexpr int kBytes = kGroups * kGroupStride;
  static constexpr int kCount = sizeof(typename Matrix::Element) == 2 ? 4 : 3;
};

// The inputs of one part, and how many chunks they make. Splines first: of four inputs, block after block of 8 rows.
// Then the base: 32 inputs, 8 neighbours to a group.
struct Chunks {
  int64_t first, last;
  int blocks;  // of 8 rows, of one input
  int splines, all;

  KAN_DEVICE Chunks(const DenseArgs& a, int64_t part) {
    first = part * a.part;
    last = first + a.part < a.layer.in_features ? first + a.part : a.layer.in_features;
    const int inputs = int(last - first);
    blocks = (a.n_splines() + kGroupRows - 1) / kGroupRows;
    splines = (inputs + kGroups - 1) / kGroups * blocks;
    all = splines + (a.layer.base != kNoBase ? (inputs + kChunk - 1) / kChunk : 0);
  }
};

// A place in the order of the chunks, without divisions.
struct Cursor {
  int64_t input;  // the first of the chunk
  int chunk = 0, block = 0;
  KAN_DEVICE explicit Cursor(const Chunks& chunks) : input(chunks.first) {}
  KAN_DEVICE void advance(const Chunks& chunks) {
    if (++chunk < chunks.splines) {
      if (++block == chunks.blocks) block = 0, input += kGroups;
    } else {
      input = chunk == chunks.splines ? chunks.first : input + kChunk;
    }
  }
};

template <class Matrix, int N>
KAN_DEVICE void stage_chunk(const DenseArgs& a, const Chunks& chunks, const Cursor& at, unsigned char* to, int64_t o0) {
  using Element = typename Matrix::Element;
  using S = Stage<Matrix, N>;
  constexpr int kPieces = S::kColumns * int(sizeof(Element)) / 16;
  const int64_t out = a.layer.out_features;
  const bool spline = at.chunk < chunks.splines;
  const Element* from = static_cast<const Element*>(spline ? a.layer.spline_weight : a.layer.base_weight);
  from += (spline ? at.input * a.n_splines() + at.block * kGroupRows : at.input) * out;
  KAN_ROLLED
  for (int piece = thread_index(); piece < kChunk * kPieces; piece += kThreads) {
    const int row = piece / kPieces, group = row / kGroupRows, e = row % kGroupRows, column = piece % kPieces;
    const bool exists = spline ? at.input + group < chunks.last && at.block * kGroupRows + e < a.n_splines()
                               : at.input + row < chunks.last;
    const int64_t below = spline ? int64_t(group) * a.n_splines() + e : row;
    stage_piece<Element>(to + group * S::kGroupStride + e * S::kRowStride + column * 16,
                         exists ? from + below * out : nullptr, o0 + column * int(16 / sizeof(Element)), out,
                         a.aligned);
  }
}

// What a thread reads of x for its rows: lane/4, +8, ... of its warp's.
template <class Matrix>
struct Inputs {
  float x[2 * Matrix::kTiles], side[2 * Matrix::kTiles];
  KAN_DEVICE void load(const DenseArgs& a, int64_t b0, int64_t i, int64_t last) {
    KAN_UNROLL
    for (int n = 0; n < 2 * Matrix::kTiles; ++n) {
      const int64_t b = b0 + lane_index() / 4 + 8 * n;
      const bool exists = b < a.layer.batch && i < last;
      x[n] = exists ? Matrix::load(a.x, b, i) : 0.0f;
      side[n] = exists ? (a.side.data ? Matrix::load(a.side, b, i) : 1.0f) : 0.0f;
    }
  }
};

// One row's spline: the first of the k+1 coefficient rows, which may lie before 0 or behind the last, and the values.
template <int K>
struct Splines {
  int first;
  float value[K + 1];

  KAN_DEVICE void evaluate(const DenseArgs& a, const float* table, float x, float side) {
    const int cell = KnotTable<K>::locate(table, a.n_knots(), lane_index() % 4, x);
    first = 0;
    KAN_UNROLL
    for (int j = 0; j <= K; ++j) value[j] = x == x ? 0.0f : x;  // NaN reaches every output from any row
    if (cell < 0 || a.derivative > K) return;
    first = cell - K;
    scalar::bspline_values<K, float, float>(KnotTable<K>::around(table, a.n_knots(), lane_index() % 4, cell), x, side,
                                            a.derivative, value);
  }
};

template <class Matrix, int K, int N>
KAN_KERNEL(kThreads, Matrix::kTiles == 1 ? 3 : 2)
dense_forward_kernel(DenseArgs a) {
  using S = Stage<Matrix, N>;
  using Row = typename Matrix::Row;
  using Left = typename Matrix::Left;
  constexpr int kTiles = Matrix::kTiles;
  const int lane = lane_index();
  const int64_t b0 = (int64_t(block_index_x()) * kWarps + warp_index()) * 16 * kTiles;
  const int64_t o0 = int64_t(block_index_y()) * S::kColumns, out = a.layer.out_features;
  const Chunks chunks(a, block_index_z());
  unsigned char* stages = shared_memory();
  float* tables = reinterpret_cast<float*>(stages + S::kCount * S::kBytes);
  const int table_size = KnotTable<K>::size(a.n_knots());
  const float* grid = static_cast<const float*>(a.layer.grid);

  Cursor ahead(chunks);
  int staged = 0, used = 0;  // places in the ring of stages
  const auto stage_next = [&] {
    if (ahead.chunk < chunks.all) stage_chunk<Matrix, N>(a, chunks, ahead, stages + staged * S::kBytes, o0);
    commit_copies();
    ahead.advance(chunks);
    staged = staged + 1 < S::kCount ? staged + 1 : 0;
  };
  KAN_ROLLED
  for (int c = 0; c < S::kCount - 1; ++c) stage_next();
  KnotTable<K>::fill(tables, grid, a.n_knots(), chunks.first, a.layer.in_features, thread_index(), kThreads);
  Inputs<Matrix> inputs;
  inputs.load(a, b0, chunks.first + lane % 4, chunks.last);

  float sums[kTiles][N][4] = {};
  Row row[2 * kTiles];
  // Waits for the oldest stage and refills the one before it, which every thread has left.
  const auto wait_for_stage = [&] {
    wait_copies<S::kCount - 2>();
    sync_block();
    stage_next();
  };
  const auto multiply = [&] {
    Left left[kTiles];
    KAN_UNROLL
    for (int m = 0; m < kTiles; ++m) left[m].join(row[2 * m], row[2 * m + 1]);
    Matrix::template multiply_chunk<kTiles, N>(sums, left, stages + used * S::kBytes, S::kGroupStride, S::kRowStride);
    used = used + 1 < S::kCount ? used + 1 : 0;
  };

  Splines<K> splines[2 * kTiles];
  int block = 0, table = 0;
  int64_t input = chunks.first;  // of a group of four
  KAN_ROLLED
  for (int c = 0; c < chunks.splines; ++c) {
    wait_for_stage();
    if (block == 0) {
      KAN_UNROLL
      for (int n = 0; n < 2 * kTiles; ++n) {
        splines[n].evaluate(a, tables + table * table_size, inputs.x[n], inputs.side[n]);
        keep_order();
      }
      input += kGroups;
      table = 1 - table;
      inputs.load(a, b0, input + lane % 4, chunks.last);
      KnotTable<K>::fill(tables + table * table_size, grid, a.n_knots(), input, a.layer.in_features, thread_index(),
                         kThreads);
    }
    KAN_UNROLL
    for (int n = 0; n < 2 * kTiles; ++n) row[n].place(splines[n].value, splines[n].first - block * kGroupRows);
    block = block + 1 < chunks.blocks ? block + 1 : 0;
    multiply();
  }
  KAN_ROLLED
  for (int c = chunks.splines; c < chunks.all; ++c) {
    wait_for_stage();
    const int64_t i0 = chunks.first + int64_t(c - chunks.splines) * kChunk + lane % 4 * kGroupRows;
    KAN_UNROLL
    for (int n = 0; n < 2 * kTiles; ++n) {
      const int64_t b = b0 + lane / 4 + 8 * n;
      float value[kGroupRows];
      KAN_UNROLL
      for (int e = 0; e < kGroupRows; ++e) {
        value[e] = 0.0f;
        if (b < a.layer.batch && i0 + e < chunks.last) {
          const float side = a.side.data ? Matrix::load(a.side, b, i0 + e) : 1.0f;
          value[e] = side * low_base_value<Matrix::kQuick>(Matrix::load(a.x, b, i0 + e), a.layer.base, a.derivative);
        }
      }
      row[n].fill(value);
      keep_order();
    }
    multiply();
  }

  KAN_UNROLL
  for (int m = 0; m < kTiles; ++m) {
    KAN_UNROLL
    for (int n = 0; n < N; ++n) {
      KAN_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int64_t b = b0 + 16 * m + lane / 4 + (e & 2 ? 8 : 0), o = o0 + 8 * n + 2 * (lane % 4) + (e & 1);
        if (b >= a.layer.batch || o >= out) continue;
        const float bias = a.bias ? load_as<float>(a.bias, a.layer.weight_dtype, o) : 0.0f;
        store_as<float>(a.y, a.y_dtype, (block_index_z() * a.layer.batch + b) * out + o, sums[m][n][e] + bias);
      }
    }
  }
}

template <class Matrix, int K, int N>
void run(const DenseArgs& a, void* stream) {
  using S = Stage<Matrix, N>;
  const Grid grid{ceil_div(a.layer.batch, rows_of_block<Matrix>()), ceil_div(a.layer.out_features, S::kColumns),
                  a.splits};
  const int bytes = S::kCount * S::kBytes + 2 * 4 * KnotTable<K>::size(a.n_knots());
  launch<DenseArgs>("dense_forward", dense_forward_kernel<Matrix, K, N>, grid, kThreads, bytes, stream, a);
}

template <class Matrix, int N>
void run_order(const DenseArgs& a, void* stream) {
  if (a.layer.spline_order == 1) return run<Matrix, 1, N>(a, stream);
  if (a.layer.spline_order == 2) return run<Matrix, 2, N>(a, stream);
  run<Matrix, 3, N>(a, stream);
}

// Strict float32 keeps its tile small: its operands are split in registers.
template <class Matrix>
void run_columns(const DenseArgs& a, void* stream) {
  if (dense_forward_columns(a) == 64) return run_order<Matrix, 8>(a, stream);
  run_order<Matrix, 16>(a, stream);
}

}  // namespace

int64_t dense_forward_rows(const DenseArgs& a) {
  const bool strict = a.layer.weight_dtype == DType::f32 && !a.tf32;
  return strict ? rows_of_block<FloatMatrix<true>>() : rows_of_block<FloatMatrix<false>>();
}
int64_t dense_forward_columns(const DenseArgs& a) {
  const bool strict = a.layer.weight_dtype == DType::f32 && !a.tf32;
  return strict || a.layer.out_features <= 64 ? 64 : 128;
}

void dense_forward(const DenseArgs& a, void* stream) {
  switch (a.layer.weight_dtype) {
    case DType::bf16: return run_columns<HalfMatrix<true>>(a, stream);
    case DType::f16: return run_columns<HalfMatrix<false>>(a, stream);
    default:
      if (a.tf32) return run_columns<FloatMatrix<false>>(a, stream);
      return run_order<FloatMatrix<true>, 8>(a, stream);
  }
}

}  // namespace cuda
}  // namespace kan
