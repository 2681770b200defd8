// The input's gradient with matrix instructions: g C', a plain product over the outputs, whose columns are ordered so
// that a thread holds all 8 coefficient rows of an input. Behind the loop it sums them with the basis' slopes.
//
// A block owns 256 columns, 8 chunks of 4 groups of 8, and a base column for each group. Warps: 2 of rows by 4 of two
// chunks. The numbers of both operands go through a ring of stages, 64 bytes of every row to a stage.
#include "backward.h"

namespace kan {
namespace cuda {
namespace {

constexpr int kChunks = 8, kColumns = kChunks * kChunk, kSlots = kChunks * kGroups;
constexpr int kStages = 3, kRowBytes = 64, kPieces = kRowBytes / 16, kPad = kSlots + 1;

// M: 16-row tiles of a warp.
template <class Matrix, int K, int M>
struct Layout {
  static constexpr int kRows = 2 * 16 * M;
  static constexpr int kStageRows = kRows + kColumns + kSlots, kStage = kStageRows * kRowBytes;
  static constexpr int kElements = kRowBytes / int(sizeof(typename Matrix::Element));  // of a row, in a stage
  // Behind the loop, in the place of the stages: x and the slopes' sums, the lines, the tables.
  static constexpr int kNumbers = kRows * kPad * 4, kLines = Matrix::kQuick ? kPanel * int(sizeof(Line)) : 0;
  static_assert(2 * kNumbers % 16 == 0, "lines are aligned");
  static KAN_HD int bytes(const DenseArgs& a) {
    const int tables = kChunks / a.row_blocks * KnotTable<K>::size(a.layer.knots()) * 4;
    const int behind = 2 * kNumbers + kLines + tables;
    return kStages * kStage > behind ? kStages * kStage : behind;
  }
};

// The coefficients, or base weights, of a row of a stage behind those of g: chunk after chunk in the order of the
// product's columns, where column 2 t + e of 8-column tile n is row 2 n + e of group t, then for each two chunks the
// base's, whose column 2 t + e is group t of chunk e. Null where there are none.
template <class Element>
KAN_DEVICE const Element* column(const DenseArgs& a, const Owned& owned, int row) {
  const int64_t out = a.layer.out_features;
  const int t = row % 8 / 2, e = row % 2;
  const bool base = row >= kColumns;
  const int slot = base ? ((row - kColumns) / 8 * 2 + e) * kGroups + t : row / kChunk * kGroups + t;
  const int64_t i = owned.input(slot);
  if (i >= a.layer.in_features) return nullptr;
  if (base) {
    const bool has = a.layer.base != kNoBase && owned.block(slot) == 0;
    return has ? static_cast<const Element*>(a.layer.base_weight) + i * out : nullptr;
  }
  const int r = owned.block(slot) * kGroupRows + row / 8 % 4 * 2 + e;
  if (r >= a.layer.functions) return nullptr;
  return static_cast<const Element*>(a.layer.spline_weight) + (i * a.layer.functions + r) * out;
}

// What a thread copies to a stage: one 16-byte piece of every 64th row.
template <class Matrix, int K, int M>
struct Stager {
  using Element = typename Matrix::Element;
  using L = Layout<Matrix, K, M>;
  static constexpr int kStep = kThreads / kPieces, kPasses = (L::kStageRows + kStep - 1) / kStep;
  static constexpr int kSize = int(sizeof(Element));

  const DenseArgs& a;
  const Owned& owned;
  int64_t b0;
  const unsigned char* from[kPasses];
  uint32_t exists = 0;  // a bit for each pass
  SharedAddress to;
  int left;  // outputs, from this thread's piece on

  static KAN_DEVICE int first_row() { return thread_index() / kPieces; }
  // Pieces of neighbouring rows lie in different banks.
  static KAN_DEVICE int offset() {
    return first_row() * kRowBytes + (thread_index() % kPieces ^ (first_row() / 2 & 3)) * 16;
  }
  KAN_DEVICE Stager(const DenseArgs& args, const Owned& of, int64_t first)
      : a(args), owned(of), b0(first), to(keep(shared_memory() + offset())) {
    const int64_t out = a.layer.out_features, o = thread_index() % kPieces * (16 / kSize);
    left = int(out - o);
    KAN_UNROLL
    for (int n = 0; n < kPasses; ++n) {
      const Element* at = row(first_row() + n * kStep);
      if (at) exists |= 1u << n;
      from[n] = reinterpret_cast<const unsigned char*>(at ? at + o : static_cast<const Element*>(a.g.data));
    }
  }
  KAN_DEVICE const Element* row(int n) const {
    if (n >= L::kStageRows) return nullptr;
    if (n >= L::kRows) return column<Element>(a, owned, n - L::kRows);
    return b0 + n < a.layer.batch ? static_cast<const Element*>(a.g.data) + (b0 + n) * a.g.row_stride : nullptr;
  }
  // The next 64 bytes of every row, into the stage that begins at `place`.
  KAN_DEVICE void next(int place) {
    if (a.aligned) {
      KAN_UNROLL
      for (int n = 0; n < kPasses; ++n) {
        if (n * kStep + kStep > L::kStageRows && first_row() + n * kStep >= L::kStageRows) break;
        const bool has = left > 0 && (exists >> n & 1);
        copy_async(to + place + n * kStep * kRowBytes, from[n], has ? 16 : 0);
        if (has) from[n] += kRowBytes;
      }
    } else {
      copy_numbers(place);
    }
    commit_copies();
    left -= L::kElements;
  }

 private:
  KAN_DEVICE void copy_numbers(int place) const {
    const int64_t o = a.layer.out_features - left;
    KAN_ROLLED
    for (int n = first_row(); n < L::kStageRows; n += kStep) {
      const int64_t stride = n < L::kRows ? a.g.col_stride : 1;
      const Element* at = row(n);
      Element* here = reinterpret_cast<Element*>(shared_memory() + place + offset() + (n - first_row()) * kRowBytes);
      KAN_ROLLED
      for (int e = 0; e < 16 / kSize; ++e) here[e] = at && e < left ? at[(o + e) * stride] : Element(0);
    }
  }
};

template <class Matrix, int K, int M>
KAN_KERNEL(kThreads, 1)
dense_input_kernel(DenseArgs a) {
  using L = Layout<Matrix, K, M>;
  using Slope = FloatMatrix<true>;
  constexpr int kTiles = 8;  // of 8 columns, of one warp
  const int lane = lane_index(), t = lane % 4, q = lane / 8, j = lane % 8;
  const int half = warp_index() / 4, pair = warp_index() % 4;  // of the rows; of the chunks
  const bool base = a.layer.base != kNoBase;
  const int64_t in = a.layer.in_features, b0 = int64_t(block_index_x()) * L::kRows;
  const Owned owned(a, kChunks, block_index_y());
  const int steps = int((a.layer.out_features + L::kElements - 1) / L::kElements);

  Stager<Matrix, K, M> stager(a, owned, b0);
  KAN_UNROLL
  for (int n = 0; n < kStages - 1; ++n) stager.next(n * L::kStage);

  // Where this lane reads: rows of g, pieces q/2 and 2 + q/2; columns, of the base or of two tiles, pieces q%2 and 2 +
  // q%2. What lies 64 bytes apart or more keeps its place among the banks.
  const int turn = j / 2 & 3;
  const SharedAddress of_g =
      keep(shared_memory() + (half * 16 * M + j + 8 * (q & 1)) * kRowBytes + (q / 2 ^ turn) * 16);
  const SharedAddress of_columns =
      keep(shared_memory() + (L::kRows + pair * 2 * kChunk + q / 2 * 8 + j) * kRowBytes + ((q & 1) ^ turn) * 16);
  const SharedAddress of_base =
      keep(shared_memory() + (L::kRows + kColumns + pair * 8 + j) * kRowBytes + ((q & 1) ^ turn) * 16);
  const int second_g = 32 - (q / 2 ^ turn) / 2 * 64, second_column = 32 - ((q & 1) ^ turn) / 2 * 64;

  float product[M][kTiles][4] = {}, base_product[M][4] = {};  // g C' and g W'
  int used = 0, filled = (kStages - 1) * L::kStage;
  KAN_ROLLED
  for (int step = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    sync_block();
    stager.next(filled);
    const auto multiply = [&](int s) {
      uint32_t raw[4];
      typename Matrix::template Ready<4> rows[M];
      typename Matrix::template Ready<2> columns[2];
      KAN_UNROLL
      for (int m = 0; m < M; ++m) {
        load_matrices(raw, of_g + used + s * second_g + m * (16 * kRowBytes));
        rows[m].fill(raw);
      }
      KAN_UNROLL
      for (int n = 0; n < kTiles; n += 2) {
        load_matrices(raw, of_columns + used + s * second_column + n * (8 * kRowBytes));
        columns[0].fill({raw[0], raw[1]}), columns[1].fill({raw[2], raw[3]});
        KAN_UNROLL
        for (int m = 0; m < M; ++m) {
          Matrix::product(product[m][n], rows[m], columns[0]);
          Matrix::product(product[m][n + 1], rows[m], columns[1]);
        }
      }
      load_matrices(raw, of_base + used + s * second_column);
      columns[0].fill({raw[0], raw[1]});
      KAN_UNROLL
      for (int m = 0; m < M; ++m) Matrix::product(base_product[m], rows[m], columns[0]);
    };
    if constexpr (Matrix::kTiles > 1) {
      multiply(0), multiply(1);
    } else {  // a real loop, or all operands would be made at once
      KAN_ROLLED
      for (int s = 0; s < 2; ++s) multiply(s);
    }
    used = used < (kStages - 1) * L::kStage ? used + L::kStage : 0;
    filled = filled < (kStages - 1) * L::kStage ? filled + L::kStage : 0;
  }
  wait_copies<0>();
  sync_block();

  float* const numbers = reinterpret_cast<float*>(shared_memory());
  float* const sums = numbers + L::kRows * kPad;
  Line* const lines = reinterpret_cast<Line*>(shared_memory() + 2 * L::kNumbers);
  float* const tables = reinterpret_cast<float*>(shared_memory() + 2 * L::kNumbers + L::kLines);
  const float* const grid = static_cast<const float*>(a.layer.grid);
  const int inputs = kSlots >> owned.log, log_inputs = 5 - owned.log;
  if (Matrix::kQuick) fill_lines<kThreads>(lines, grid, a.layer.knots(), owned.i0, in, a.uniform);
  KAN_UNROLL
  for (int n = 0; n < L::kRows * kSlots / kThreads; ++n) {
    const int e = thread_index() + n * kThreads, row = e >> log_inputs, i = e & (inputs - 1);
    if (row >= L::kRows) break;
    const bool exists = b0 + row < a.layer.batch && owned.i0 + i < in;
    numbers[row * kPad + i] = exists ? Matrix::load(a.x, b0 + row, owned.i0 + i) : 0.0f;
  }
  sync_block();
  const int table_size = KnotTable<K>::size(a.layer.knots());
  for (int n = 0; n < inputs / kGroups; ++n) {
    if (Matrix::kQuick && lines[n * kGroups].uniform) continue;
    KnotTable<K>::fill(tables + n * table_size, grid, a.layer.knots(), owned.i0 + n * kGroups, in, thread_index(),
                       kThreads);
  }
  sync_block();

  // A real loop, whose sums move up.
  KAN_ROLLED
  for (int m = 0; m < M; ++m) {
    const int row = half * 16 * M + 16 * m + lane / 4;
    KAN_UNROLL
    for (int c = 0; c < 2; ++c) {
      const int slot = (2 * pair + c) * kGroups + t, i = owned.local(slot);
      Line line = {};
      if (Matrix::kQuick) line = lines[i];
      const float x[2] = {numbers[row * kPad + i], numbers[(row + 8) * kPad + i]}, one[2] = {1.0f, 1.0f};
      Spline<Slope, K> slope[2];
      make_splines<Slope, K, Matrix::kQuick>(slope, a, a.slope, line, tables + i / kGroups * table_size, t, x,
                                             a.input_derivative > 0, one, a.input_derivative);
      KAN_UNROLL
      for (int h = 0; h < 2; ++h) {
        typename Slope::Row placed;
        placed.place(slope[h].window, slope[h].first(owned.block(slot), kGroupRows), SharedAddress());
        float sum = 0.0f;
        KAN_UNROLL
        for (int e = 0; e < kGroupRows; ++e) sum += placed.value[e] * product[0][4 * c + e / 2][2 * h + e % 2];
        if (base && owned.block(slot) == 0)
          sum += low_base_value<Matrix::kQuick>(x[h], a.layer.base, a.input_derivative) * base_product[0][2 * h + c];
        sums[(row + 8 * h) * kPad + slot] = sum;
      }
    }
    KAN_UNROLL
    for (int up = 0; up < M - 1; ++up) {
      KAN_UNROLL
      for (int e = 0; e < 4 * kTiles; ++e) product[up][e / 4][e % 4] = product[up + 1][e / 4][e % 4];
      KAN_UNROLL
      for (int e = 0; e < 4; ++e) base_product[up][e] = base_product[up + 1][e];
    }
  }
  sync_block();
  const int64_t part = owned.block0 / a.row_blocks;  // rows of one input beyond this block's are other parts
  for (int e = thread_index(); e < L::kRows << log_inputs; e += kThreads) {
    const int row = e >> log_inputs, i = e & (inputs - 1);
    const int64_t owner = owned.i0 + i, b = b0 + row;
    if (b >= a.layer.batch || owner >= in) continue;
    float sum = 0.0f;
    for (int n = 0; n < a.row_blocks; ++n) {
      sum += sums[row * kPad + ((i / kGroups << owned.log) + n) * kGroups + i % kGroups];
    }
    store_as<float>(a.input, a.input_dtype, (part * a.layer.batch + b) * in + owner, sum);
  }
}

template <class Matrix, int K, int M>
void run_tile(DenseArgs a, void* stream) {
  using L = Layout<Matrix, K, M>;
  a.uniform = Matrix::kQuick && a.input_derivative < K;
  if (a.uniform) a.slope = uniform_polynomials(K, a.input_derivative);
  const Grid grid{ceil_div(a.layer.batch, L::kRows),
                  ceil_div(a.layer.in_features, dense_input_inputs(a)) * dense_parts(a), 1};
  launch<DenseArgs>("dense_input", dense_input_kernel<Matrix, K, M>, grid, kThreads, L::bytes(a), stream, a);
}

template <class Matrix, int K>
void run(const DenseArgs& a, void* stream) {
  if constexpr (K == kDenseOrder) {
    if (!a.wide) return run_tile<Matrix, K, 1>(a, stream);
  }
  run_tile<Matrix, K, 2 * Matrix::kTiles>(a, stream);
}

}  // namespace

int64_t dense_input_rows(bool strict) { return 2 * 16 * 2 * (strict ? 1 : 2); }
int64_t dense_input_inputs(const DenseArgs& a) { return kSlots / a.row_blocks; }

void dense_input(const DenseArgs& a, void* stream) {
  with_operands(a, [&](auto operands) {
    using Operands = decltype(operands);
    run<typename Operands::Matrix, Operands::kOrder>(a, stream);
  });
}

}  // namespace cuda
}  // namespace kan
