// y = [B(x) | base(x)] [C; W] + bias with matrix instructions. A block makes 128 or 64 rows by 8 N outputs; each of its
// four warps makes rows of its own, so no basis value is made twice in a block.
#include <type_traits>

#include "stages.h"

namespace kan {
namespace cuda {
namespace {

template <class Matrix>
constexpr int rows_of_block() {
  return kWarps * 16 * Matrix::kTiles;
}

// What a thread reads of x for its rows: lane/4, +8, ... of its warp's. Rows and inputs that do not exist repeat the
// last one, so that all reads are of memory that does: such a row is not stored, and such an input's coefficients are
// 0.
template <class Matrix>
struct Inputs {
  static constexpr int kRows = 2 * Matrix::kTiles;
  uint32_t raw[kRows];  // as bits: what is not looked at need not have arrived
  const unsigned char* at[kRows];
  int64_t step;  // bytes from one group of inputs to the next
  int left;      // inputs of the part from this thread's on

  static KAN_DEVICE int64_t row(const DenseArgs& a, int64_t b0, int n) {
    const int64_t b = b0 + lane_index() / 4 + 8 * n;
    return b < a.layer.batch ? b : a.layer.batch - 1;
  }
  KAN_DEVICE Inputs(const DenseArgs& a, int64_t b0, const Chunks& chunks) {
    const int64_t size = size_of(a.x.dtype);
    step = kGroups * a.x.col_stride * size;
    left = int(chunks.last - chunks.first) - lane_index() % 4;
    const int64_t i = left > 0 ? chunks.first + lane_index() % 4 : chunks.last - 1;
    KAN_UNROLL
    for (int n = 0; n < kRows; ++n) {
      at[n] =
          static_cast<const unsigned char*>(a.x.data) + (row(a, b0, n) * a.x.row_stride + i * a.x.col_stride) * size;
    }
    load(a);
  }
  KAN_DEVICE void load(const DenseArgs& a) {
    if (a.x.dtype == DType::f32) {
      KAN_UNROLL
      for (int n = 0; n < kRows; ++n) raw[n] = *reinterpret_cast<const uint32_t*>(at[n]);
    } else {
      KAN_UNROLL
      for (int n = 0; n < kRows; ++n) raw[n] = *reinterpret_cast<const uint16_t*>(at[n]);
    }
  }
  KAN_DEVICE void numbers(const DenseArgs& a, float (&x)[kRows]) const {
    KAN_UNROLL
    for (int n = 0; n < kRows; ++n) x[n] = Matrix::number(raw[n], a.x.dtype);
  }
  KAN_DEVICE void load_row_scale(const DenseArgs& a, int64_t b0, const Chunks& chunks,
                                 float (&row_scale)[kRows]) const {
    KAN_ROLLED
    for (int n = 0; n < kRows; ++n) {
      KAN_UNROLL
      for (int up = 0; up < kRows - 1; ++up) row_scale[up] = row_scale[up + 1];
      row_scale[kRows - 1] = left > 0 ? Matrix::load(a.row_scale, row(a, b0, n), chunks.last - left) : 0.0f;
    }
  }
  KAN_DEVICE void next(const DenseArgs& a) {
    left -= kGroups;
    if (left > 0) {
      KAN_UNROLL
      for (int n = 0; n < kRows; ++n) at[n] += step;
    }
    load(a);
  }
};

// What a block knows of the knots of four inputs at a time, in shared memory: of two panels of inputs whether they are
// uniform, and two tables of those that are not: one is used, the next is prepared.
template <class Matrix, int K>
struct Knots {
  static constexpr bool kPlain = Matrix::kPlain && K >= KAN_PLAIN_ORDER;  // a loop of its own for uniform knots
  static constexpr int kLines = 2 * kPanel, kRows = Inputs<Matrix>::kRows;
  static KAN_HD int bytes(int n_knots) {
    return (Matrix::kQuick ? kLines : 0) * int(sizeof(Line)) + 2 * 4 * KnotTable<K>::size(n_knots);
  }

  const DenseArgs& a;
  const Chunks& chunks;
  Line* lines;
  float* tables;
  int table_size, inputs;  // of the part
  int at = 0;              // of the group's first input, counted from the part's first
  Line line = {};          // of this thread's input
  SharedAddress my_lines;

  KAN_DEVICE Knots(const DenseArgs& args, const Chunks& of, unsigned char* memory)
      : a(args),
        chunks(of),
        lines(reinterpret_cast<Line*>(memory)),
        tables(reinterpret_cast<float*>(lines + (Matrix::kQuick ? kLines : 0))),
        table_size(KnotTable<K>::size(args.layer.knots())),
        inputs(int(of.last - of.first)),
        my_lines(keep(memory + lane_index() % 4 * sizeof(Line))) {}

  // Before the first panel.
  KAN_DEVICE void start() {
    fill_panel(0);
    sync_block();
    load_line();
  }
  // Before the first group of a panel, whose lines all threads have seen: what it and the next panel need. Whether its
  // inputs may take the plain way, which knows no tables.
  KAN_DEVICE bool open_panel() {
    fill_panel(at + kPanel);
    bool plain = a.plain && kPlain;
    KAN_ROLLED
    for (int n = 0; plain && n < kPanel; n += kGroups) plain = lines[at % kLines + n].uniform || at + n >= inputs;
    if (plain) return true;
    fill_table();
    sync_block();
    return false;
  }
  // After the values of a group, before the next barrier: what the next group needs.
  template <bool Plain>
  KAN_DEVICE void next() {
    at += kGroups;
    load_line();
    if (!Plain && at % kPanel != 0) fill_table();
  }

  // row_scale: used if there are row scales; their signs are put on the placed rows.
  KAN_DEVICE void evaluate(Spline<Matrix, K> (&spline)[kRows], float (&x)[kRows], float (&row_scale)[kRows]) const {
    if (Matrix::kQuick && !kPlain && line.uniform) {
      float unit[kRows];
      KAN_UNROLL
      for (int n = 0; n < kRows; ++n) unit[n] = a.row_scale.data ? std::fabs(row_scale[n]) : 1.0f;
      evaluate_uniform(spline, a.polynomials, line, a.layer.knots(), x, a.row_scale.data || a.derivative > 0, unit,
                       a.derivative);
      return;
    }
    // A real loop, whose numbers go around: this code is long.
    KAN_ROLLED
    for (int n = 0; n < kRows; ++n) {
      const float now[1] = {x[0]}, unit[1] = {a.row_scale.data ? std::fabs(row_scale[0]) : 1.0f};
      KAN_UNROLL
      for (int up = 0; up < kRows - 1; ++up)
        spline[up] = spline[up + 1], x[up] = x[up + 1], row_scale[up] = row_scale[up + 1];
      if (Matrix::kQuick && line.uniform) {
        Spline<Matrix, K> one[1];
        evaluate_uniform(one, a.polynomials, line, a.layer.knots(), now, true, unit, a.derivative);
        spline[kRows - 1] = one[0];
      } else {
        spline[kRows - 1].evaluate(table(), a.layer.knots(), lane_index() % 4, now[0], unit[0], a.derivative);
      }
    }
  }

 private:
  KAN_DEVICE const float* grid() const { return static_cast<const float*>(a.layer.grid); }
  KAN_DEVICE float* table() const { return tables + at / kGroups % 2 * table_size; }
  KAN_DEVICE void fill_panel(int first) const {
    if (!Matrix::kQuick || first >= inputs) return;
    fill_lines<kThreads>(lines + first % kLines, grid(), a.layer.knots(), chunks.first + first, a.layer.in_features,
                         a.uniform);
  }
  KAN_DEVICE void load_line() {
    if (!Matrix::kQuick) return;
    uint32_t word[4];
    load_shared(word, my_lines + at % kLines * int(sizeof(Line)));
    line = {bits_as_float(word[0]), bits_as_float(word[1]), int(word[2])};
  }
  KAN_DEVICE void fill_table() {
    if (line.uniform) return;
    KnotTable<K>::fill(table(), grid(), a.layer.knots(), chunks.first + at, a.layer.in_features, thread_index(),
                       kThreads);
  }
};

// 8 neighbouring base values of each of a thread's rows.
template <class Matrix>
KAN_DEVICE void fill_base(const DenseArgs& a, const Chunks& chunks, int64_t b0, int64_t i0, typename Matrix::Row* row) {
  const int64_t mine = i0 + lane_index() % 4 * kGroupRows;
  const bool wide = a.wide && i0 + kChunk <= chunks.last;
  KAN_UNROLL
  for (int n = 0; n < Inputs<Matrix>::kRows; ++n) {
    const int64_t b = Inputs<Matrix>::row(a, b0, n);
    float value[kGroupRows] = {};
    if (wide) {
      const int64_t at = (b * a.x.row_stride + mine) * size_of(a.x.dtype);
      Matrix::load_8(value, static_cast<const unsigned char*>(a.x.data) + at, a.x.dtype);
      KAN_UNROLL
      for (int e = 0; e < kGroupRows; ++e) value[e] = silu<Matrix::kQuick>(value[e]);
    } else {
      // A real loop, whose values move up.
      KAN_ROLLED
      for (int e = 0; e < kGroupRows; ++e) {
        KAN_UNROLL
        for (int up = 0; up < kGroupRows - 1; ++up) value[up] = value[up + 1];
        value[kGroupRows - 1] = 0.0f;
        if (mine + e >= chunks.last) continue;
        const float row_scale = a.row_scale.data ? Matrix::load(a.row_scale, b, mine + e) : 1.0f;
        value[kGroupRows - 1] =
            row_scale * low_base_value<Matrix::kQuick>(Matrix::load(a.x, b, mine + e), a.layer.base, a.derivative);
      }
    }
    row[n].fill(value);
    keep_order();
  }
}

template <class Matrix, int K, int N>
KAN_KERNEL(kThreads, Matrix::kTiles == 1 ? 3 : 2)
dense_forward_kernel(DenseArgs a) {
  using S = Stage<Matrix, N>;
  using Row = typename Matrix::Row;
  using Left = typename Matrix::Left;
  constexpr int kTiles = Matrix::kTiles, kRows = 2 * kTiles;
  const int lane = lane_index();
  const int64_t b0 = (int64_t(block_index_x()) * kWarps + warp_index()) * 16 * kTiles;
  const int64_t o0 = int64_t(block_index_y()) * S::kColumns, out = a.layer.out_features;
  const Chunks chunks(a, block_index_z());
  unsigned char* stages = shared_memory();
  unsigned char* placement = stages + S::kCount * S::kBytes;
  Knots<Matrix, K> knots(a, chunks, placement + S::kPlacement);

  Stager<Matrix, N> stager(a, chunks, stages);
  KAN_ROLLED
  for (int c = 0; c < S::kCount - 1; ++c) stager.next(a, chunks, a.aligned);
  Matrix::fill_placement(placement);

  float sums[kTiles][N][4] = {};
  Row row[kRows];
  const SharedAddress mine = keep(stages + Matrix::offset(S::kGroupStride, S::kRowStride));
  const SharedAddress kept_placement = keep(placement);
  int used = 0;  // bytes, in the ring of stages
  // Waits for the oldest stage and refills the one before it, which every thread has left.
  const auto wait_for_stage = [&](bool aligned) {
    wait_copies<S::kCount - 2>();
    sync_block();
    stager.next(a, chunks, aligned);
  };
  const auto multiply = [&] {
    Left left[kTiles];
    KAN_UNROLL
    for (int m = 0; m < kTiles; ++m) left[m].join(row[2 * m], row[2 * m + 1]);
    Matrix::template multiply_chunk<kTiles, N>(sums, left, mine + used, S::kRowStride);
    used = used < (S::kCount - 1) * S::kBytes ? used + S::kBytes : 0;
  };

  if (chunks.splines > 0) {
    Inputs<Matrix> inputs(a, b0, chunks);
    Spline<Matrix, K> spline[kRows];
    uint32_t signs = 0;  // of the row scales, from the highest bit on
    int block = 0, chunk = 0;
    const auto step = [&](auto is_plain) {
      constexpr bool kPlain = decltype(is_plain)::value;
      wait_for_stage(kPlain || a.aligned);
      if (block == 0) {
        float x[kRows];
        inputs.numbers(a, x);
        if constexpr (kPlain) {
          evaluate_uniform(spline, a.polynomials, knots.line, a.layer.knots(), x, false, x, 0);
        } else {
          float row_scale[kRows] = {};
          if (a.row_scale.data) {
            inputs.load_row_scale(a, b0, chunks, row_scale);
            signs = 0;
            KAN_UNROLL
            for (int n = 0; n < kRows; ++n) signs |= (float_as_bits(row_scale[n]) & 0x80000000u) >> n;
          }
          knots.evaluate(spline, x, row_scale);
        }
        knots.template next<kPlain>();
      }
      KAN_UNROLL
      for (int n = 0; n < kRows; ++n) {
        row[n].place(spline[n].window, spline[n].first(block, kGroupRows), kept_placement);
      }
      if (!kPlain && a.row_scale.data) {
        KAN_UNROLL
        for (int n = 0; n < kRows; ++n) row[n].change_sign(signs << n & 0x80000000u);
      }
      if (++block == chunks.blocks) {
        block = 0;
        inputs.next(a);
      }
      multiply();
    };
    knots.start();
    KAN_ROLLED
    while (chunk < chunks.splines) {
      const int all = chunk + kPanel / kGroups * chunks.blocks, end = all < chunks.splines ? all : chunks.splines;
      const bool plain = knots.open_panel();
      if constexpr (Knots<Matrix, K>::kPlain) {
        if (plain) {
          KAN_ROLLED
          for (; chunk < end; ++chunk) step(std::true_type{});
        }
      }
      KAN_ROLLED
      for (; chunk < end; ++chunk) step(std::false_type{});
    }
  }
  KAN_ROLLED
  for (int c = chunks.splines; c < chunks.all; ++c) {
    wait_for_stage(a.aligned);
    fill_base<Matrix>(a, chunks, b0, chunks.first + int64_t(c - chunks.splines) * kChunk, row);
    multiply();
  }

  const int64_t o = o0 + 2 * (lane % 4);
  with_result<Matrix>(a.y_dtype == Matrix::kStored, [&](auto known) {
    constexpr DType kStored = decltype(known)::dtype;
    KAN_UNROLL
    for (int n = 0; n < N; ++n) {
      const int64_t left = out - o - 8 * n;
      if (left <= 0) break;
      float bias[2] = {};
      KAN_UNROLL
      for (int e = 0; e < 2; ++e) {
        if (a.bias && e < left) bias[e] = load_known<float, Matrix::kStored>(a.bias, o + 8 * n + e);
      }
      KAN_UNROLL
      for (int m = 0; m < kRows; ++m) {
        const int64_t b = b0 + 8 * m + lane / 4;
        if (b >= a.layer.batch) break;
        const float* const sum = &sums[m / 2][n][2 * (m % 2)];
        const int64_t at = (block_index_z() * a.layer.batch + b) * out + o + 8 * n;
        if (left > 1) {
          store_pair<kStored>(a.y, at, sum[0] + bias[0], sum[1] + bias[1], a.pairs);
        } else {
          store_known<kStored>(a.y, at, sum[0] + bias[0]);
        }
      }
    }
  });
}

template <class Matrix, int K, int N>
void run(DenseArgs a, void* stream) {
  using S = Stage<Matrix, N>;
  const Grid grid{ceil_div(a.layer.batch, rows_of_block<Matrix>()), ceil_div(a.layer.out_features, S::kColumns),
                  a.splits};
  const int bytes = S::kCount * S::kBytes + S::kPlacement + Knots<Matrix, K>::bytes(a.layer.knots());

  a.uniform = Matrix::kQuick && a.derivative < K;
  a.plain = a.uniform && a.aligned && !a.row_scale.data && a.derivative == 0;
  if (a.uniform) a.polynomials = uniform_polynomials(K, a.derivative);
  a.pairs = whole_pairs(a.y, a.layer.out_features, a.y_dtype);
  const int64_t size = size_of(a.x.dtype);
  a.wide = a.layer.base == kSilu && a.derivative == 0 && !a.row_scale.data && a.x.col_stride == 1 &&
           a.x.row_stride * size % 16 == 0 && reinterpret_cast<uintptr_t>(a.x.data) % 16 == 0;
  launch<DenseArgs>("dense_forward", dense_forward_kernel<Matrix, K, N>, grid, kThreads, bytes, stream, a);
}

template <class Matrix, int N>
void run_order(const DenseArgs& a, void* stream) {
  if (a.layer.order == 1) return run<Matrix, 1, N>(a, stream);
  if (a.layer.order == 2) return run<Matrix, 2, N>(a, stream);
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
