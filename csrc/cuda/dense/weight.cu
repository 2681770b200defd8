// The weights' gradients with matrix instructions: [B(x) | base(x)]' g, a product over the rows of the batch.
//
// A block owns 128 columns, 4 chunks of 4 groups of 8, and a base column for each group, by 64 to 256 outputs. Step by
// step it leaves the basis values of some rows in shared memory, each made once for all its outputs, and multiplies
// those of the step before. Warps: 2 of two chunks by 4 of the outputs; the base's columns are shared out.
#include "backward.h"

namespace kan {
namespace cuda {
namespace {

constexpr int kChunks = 4, kColumns = kChunks * kChunk, kSlots = kChunks * kGroups;

// N: 8-output tiles of a warp.
template <class Matrix, int K, int N>
struct Layout {
  static constexpr int kSize = int(sizeof(typename Matrix::Element)), kOutputs = 4 * 8 * N;
  static constexpr int kRows = (N > 4 ? 64 : 128) / kSize,
                       kEach = kRows * kSlots / kThreads;  // of a step; of a thread's numbers
  // Rows that are read together start in different banks.
  static constexpr int kStride = kOutputs * kSize + (kSize == 2 ? 16 : 32);
  static constexpr int kBasisStride = (kColumns + kSlots) * kSize + (kSize == 2 ? 16 : 32);
  static constexpr int kG = kRows * kStride, kBasis = kRows * kBasisStride;
  static constexpr int kPlacement = (Matrix::kPlacementBytes + 15) / 16 * 16;
  static constexpr int kLines = Matrix::kQuick ? kPanel * int(sizeof(Line)) : 0;
  static constexpr int kBasisAt = 2 * kG, kPlacementAt = kBasisAt + 2 * kBasis, kLinesAt = kPlacementAt + kPlacement,
                       kTablesAt = kLinesAt + kLines;
  static KAN_HD int bytes(const DenseArgs& a) {
    return kTablesAt + kChunks / a.row_blocks * KnotTable<K>::size(a.layer.knots()) * 4;
  }
};

// The cotangents of a step's rows on their way to shared memory.
template <class Matrix, int K, int N>
struct Stager {
  using Element = typename Matrix::Element;
  using L = Layout<Matrix, K, N>;
  static constexpr int kPieces = L::kOutputs * L::kSize / 16, kStep = kThreads / kPieces, kPasses = L::kRows / kStep;
  static_assert(L::kRows % kStep == 0, "all threads copy");

  const DenseArgs& a;
  int64_t row;          // bytes
  int rows_left, left;  // from this thread's first piece on: rows, and outputs
  const unsigned char* from;
  SharedAddress to;

  static KAN_DEVICE int offset() { return thread_index() / kPieces * L::kStride + thread_index() % kPieces * 16; }
  KAN_DEVICE Stager(const DenseArgs& args, int64_t first, int rows, int64_t o_begin)
      : a(args), row(a.g.row_stride * L::kSize), to(keep(shared_memory() + offset())) {
    const int above = thread_index() / kPieces;
    const int64_t o = o_begin + thread_index() % kPieces * (16 / L::kSize);
    rows_left = rows - above;
    left = int(a.layer.out_features - o);
    from = static_cast<const unsigned char*>(a.g.data) + (first + above) * row + o * a.g.col_stride * L::kSize;
  }
  KAN_DEVICE void next(int place) {
    if (a.aligned) {
      KAN_UNROLL
      for (int n = 0; n < kPasses; ++n) {
        const bool exists = left > 0 && n * kStep < rows_left;
        copy_async(to + place + n * kStep * L::kStride, exists ? from : static_cast<const unsigned char*>(a.g.data),
                   exists ? 16 : 0);
        from += kStep * row;
      }
    } else {
      KAN_ROLLED
      for (int n = 0; n < kPasses; ++n, from += kStep * row) {
        Element* here = reinterpret_cast<Element*>(shared_memory() + place + offset() + n * kStep * L::kStride);
        KAN_ROLLED
        for (int e = 0; e < 16 / L::kSize; ++e) {
          const bool exists = n * kStep < rows_left && e < left;
          here[e] = exists ? reinterpret_cast<const Element*>(from)[e * a.g.col_stride] : Element(0);
        }
      }
    }
    commit_copies();
    rows_left -= L::kRows;
  }
};

// The values of a thread's slot, for every 16th row of a step.
template <class Matrix, int K, int N>
struct Maker {
  using L = Layout<Matrix, K, N>;
  static constexpr int kEach = L::kEach;
  static constexpr int kStep = kThreads / kSlots;  // rows from one of a thread's numbers to the next

  const DenseArgs& a;
  int slot, block, t;
  int64_t i, b;               // b: the row of the next load
  int left;                   // rows from b on, 0 if the input does not exist
  const unsigned char* from;  // x of row b
  bool has_base;
  Line line = {};
  const float* table;
  SharedAddress placement;
  uint32_t raw[kEach];  // x of the step to be made, as bits: what is not looked at need not have arrived

  KAN_DEVICE Maker(const DenseArgs& args, const Owned& owned, int64_t first, int rows)
      : a(args),
        slot(thread_index() % kSlots),
        block(owned.block(slot)),
        t(owned.local(slot) % kGroups),
        i(owned.input(slot)),
        b(first + thread_index() / kSlots),
        left(i < a.layer.in_features ? rows - thread_index() / kSlots : 0),
        from(static_cast<const unsigned char*>(a.x.data) +
             (b * a.x.row_stride + i * a.x.col_stride) * size_of(a.x.dtype)),
        has_base(a.layer.base != kNoBase && block == 0),
        table(reinterpret_cast<const float*>(shared_memory() + L::kTablesAt) +
              owned.local(slot) / kGroups * KnotTable<K>::size(a.layer.knots())),
        placement(keep(shared_memory() + L::kPlacementAt)) {
    if (Matrix::kQuick) line = reinterpret_cast<const Line*>(shared_memory() + L::kLinesAt)[owned.local(slot)];
    load();
  }
  KAN_DEVICE void load() {
    const int64_t step = kStep * a.x.row_stride * size_of(a.x.dtype);
    KAN_UNROLL
    for (int n = 0; n < kEach; ++n) raw[n] = 0;
    if (a.x.dtype == DType::f32) {
      KAN_UNROLL
      for (int n = 0; n < kEach; ++n) {
        if (n * kStep < left) raw[n] = *reinterpret_cast<const uint32_t*>(from + n * step);
      }
    } else {
      KAN_UNROLL
      for (int n = 0; n < kEach; ++n) {
        if (n * kStep < left) raw[n] = *reinterpret_cast<const uint16_t*>(from + n * step);
      }
    }
    from += kEach * step;
  }
  KAN_DEVICE void make(unsigned char* basis) {
    float x[kEach], scale[kEach], size[kEach];
    const int have = left;
    KAN_UNROLL
    for (int n = 0; n < kEach; ++n) {
      x[n] = Matrix::number(raw[n], a.x.dtype);
      scale[n] = n * kStep < have ? 1.0f : 0.0f;
      if (a.row_scale.data && n * kStep < have) scale[n] = Matrix::load(a.row_scale, b + n * kStep, i);
      size[n] = std::fabs(scale[n]);
    }
    b += L::kRows, left -= L::kRows;
    load();
    Spline<Matrix, K> spline[kEach];
    make_splines<Matrix, K, Matrix::kQuick>(spline, a, a.polynomials, line, table, t, x,
                                            a.row_scale.data || a.derivative > 0, size, a.derivative);
    KAN_UNROLL
    for (int n = 0; n < kEach; ++n) {
      typename Matrix::Row row;
      row.place(spline[n].window, spline[n].first(block, kGroupRows), placement);
      if (a.row_scale.data) row.change_sign(float_as_bits(scale[n]) & 0x80000000u);
      if (x[n] != x[n]) {  // of all rows
        const float nothing[kGroupRows] = {x[n], x[n], x[n], x[n], x[n], x[n], x[n], x[n]};
        row.fill(nothing);
      }
      unsigned char* const to = basis + (thread_index() / kSlots + n * kStep) * L::kBasisStride;
      Matrix::store(to + slot * kGroupRows * L::kSize, row);
      const float value = has_base && n * kStep < have
                              ? scale[n] * low_base_value<Matrix::kQuick>(x[n], a.layer.base, a.derivative)
                              : 0.0f;
      Matrix::store(to + (kColumns + slot) * L::kSize, value);
    }
  }
};

// Adds the product of a step to the sums of a warp: left, base and right are where this lane reads.
template <class Matrix, int N>
KAN_DEVICE void multiply(float (&sums)[4][N][4], float (&base_sums)[N / 2][4], SharedAddress left, SharedAddress base,
                         int left_stride, SharedAddress right, int right_stride, bool second) {
  constexpr int kSize = int(sizeof(typename Matrix::Element));
  uint32_t raw[4];
  typename Matrix::template Ready<2> columns[N];
  KAN_UNROLL
  for (int n = 0; n < N; n += 2) {
    Matrix::load_right(raw, right + n * 8 * kSize, right_stride);
    columns[n].fill({raw[0], raw[1]}), columns[n + 1].fill({raw[2], raw[3]});
  }
  typename Matrix::template Ready<4> values;
  KAN_UNROLL
  for (int m = 0; m < 4; ++m) {
    Matrix::load_left(raw, left + m * 16 * kSize, left_stride);
    values.template fill_values<false>(raw);
    KAN_UNROLL
    for (int n = 0; n < N; ++n) Matrix::product(sums[m][n], values, columns[n]);
  }
  Matrix::load_left(raw, base, left_stride);
  values.template fill_values<true>(raw);
  KAN_UNROLL
  for (int n = 0; n < N / 2; ++n) {
    columns[n].choose(second, columns[n + N / 2]);
    Matrix::product(base_sums[n], values, columns[n]);
  }
}

template <class Matrix, int K, int N>
KAN_KERNEL(kThreads, 1)
dense_weight_kernel(DenseArgs a) {
  using L = Layout<Matrix, K, N>;
  const int lane = lane_index(), half = warp_index() / 4, quarter = warp_index() % 4;  // of the columns; of the outputs
  const int64_t out = a.layer.out_features, in = a.layer.in_features;
  const int64_t first = int64_t(block_index_z()) * a.part;
  const int64_t last = first + a.part < a.layer.batch ? first + a.part : a.layer.batch;
  const int64_t o_begin = int64_t(block_index_y()) * L::kOutputs;
  const Owned owned(a, kChunks, block_index_x());
  unsigned char* const shared = shared_memory();
  const float* const grid = static_cast<const float*>(a.layer.grid);

  Stager<Matrix, K, N> stager(a, first, int(last - first), o_begin);
  stager.next(0);
  Matrix::fill_placement(shared + L::kPlacementAt);
  Line* const lines = reinterpret_cast<Line*>(shared + L::kLinesAt);
  if (Matrix::kQuick) {
    fill_lines<kThreads>(lines, grid, a.layer.knots(), owned.i0, in, a.uniform);
    sync_block();
  }
  for (int n = 0; n < kChunks / a.row_blocks; ++n) {
    if (Matrix::kQuick && lines[n * kGroups].uniform) continue;
    const int size = KnotTable<K>::size(a.layer.knots());
    KnotTable<K>::fill(reinterpret_cast<float*>(shared + L::kTablesAt) + n * size, grid, a.layer.knots(),
                       owned.i0 + n * kGroups, in, thread_index(), kThreads);
  }
  sync_block();
  Maker<Matrix, K, N> maker(a, owned, first, int(last - first));
  maker.make(shared + L::kBasisAt);

  float sums[4][N][4] = {}, base_sums[N / 2][4] = {};
  const SharedAddress left = keep(shared + L::kBasisAt + Matrix::left_offset(L::kBasisStride));
  const SharedAddress right = keep(shared + Matrix::right_offset(L::kStride) + quarter * 8 * N * L::kSize);
  int now = 0;
  KAN_ROLLED
  for (int64_t b = first; b < last; b += L::kRows, now ^= 1) {
    wait_copies<0>();
    sync_block();
    if (b + L::kRows < last) {
      stager.next((now ^ 1) * L::kG);
      maker.make(shared + L::kBasisAt + (now ^ 1) * L::kBasis);
    }
    const SharedAddress values = left + now * L::kBasis, g = right + now * L::kG;
    const auto step = [&](int k) {
      multiply<Matrix, N>(sums, base_sums, values + half * 64 * L::kSize + k * L::kBasisStride,
                          values + kColumns * L::kSize + k * L::kBasisStride, L::kBasisStride, g + k * L::kStride,
                          L::kStride, half == 1);
    };
    if constexpr (L::kSize == 2) {
      KAN_UNROLL
      for (int k = 0; k < L::kRows; k += Matrix::kDepth) step(k);
    } else {
      KAN_ROLLED
      for (int k = 0; k < L::kRows; k += Matrix::kDepth) step(k);
    }
  }

  const int functions = a.layer.functions, n_rows = functions + (a.layer.base != kNoBase ? 1 : 0);
  const int64_t o_first = o_begin + quarter * 8 * N + 2 * (lane % 4);
  const auto store = [&](void* to, int64_t row, int n, const float* pair, auto known) {
    const int64_t o = o_first + 8 * n;
    if (o + 1 < out) {
      store_pair<decltype(known)::dtype>(to, row * out + o, pair[0], pair[1], a.pairs);
    } else if (o < out) {
      store_known<decltype(known)::dtype>(to, row * out + o, pair[0]);
    }
  };
  const bool parts = a.parts != nullptr;
  with_result<Matrix>(!parts, [&](auto known) {
    KAN_UNROLL
    for (int m = 0; m < 8; ++m) {  // groups of the warp's chunks
      const int slot = half * 8 + m, r = owned.block(slot) * kGroupRows + lane / 4;
      const int64_t i = owned.input(slot);
      if (i >= in || r >= functions) continue;
      KAN_UNROLL
      for (int n = 0; n < N; ++n) {
        if (parts) {
          store(a.parts, (block_index_z() * in + i) * n_rows + r, n, &sums[m / 2][n][2 * (m % 2)], known);
        } else {
          store(a.d_spline, i * functions + r, n, &sums[m / 2][n][2 * (m % 2)], known);
        }
      }
    }
    if (a.layer.base == kNoBase) return;
    KAN_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int slot = lane / 4 + 8 * h;
      const int64_t i = owned.input(slot);
      if (i >= in || owned.block(slot) != 0) continue;
      KAN_UNROLL
      for (int n = 0; n < N / 2; ++n) {
        if (parts) {
          store(a.parts, (block_index_z() * in + i) * n_rows + functions, n + half * (N / 2), &base_sums[n][2 * h],
                known);
        } else {
          store(a.d_base, i, n + half * (N / 2), &base_sums[n][2 * h], known);
        }
      }
    }
  });
}

template <class Matrix, int K, int N>
void run_tile(DenseArgs a, void* stream) {
  using L = Layout<Matrix, K, N>;
  a.uniform = Matrix::kQuick && a.derivative < K;
  if (a.uniform) a.polynomials = uniform_polynomials(K, a.derivative);
  const DType stored = a.parts ? DType::f32 : a.layer.weight_dtype;
  a.pairs = whole_pairs(a.parts ? a.parts : a.d_spline, a.layer.out_features, stored) &&
            (a.parts || !a.d_base || whole_pairs(a.d_base, a.layer.out_features, stored));
  const Grid grid{ceil_div(a.layer.in_features, dense_weight_inputs(a)) * dense_parts(a),
                  ceil_div(a.layer.out_features, L::kOutputs), a.splits};
  launch<DenseArgs>("dense_weight", dense_weight_kernel<Matrix, K, N>, grid, kThreads, L::bytes(a), stream, a);
}

template <class Matrix, int K>
void run(const DenseArgs& a, void* stream) {
  const int64_t outputs = dense_weight_outputs(a);
  if constexpr (K == kDenseOrder) {
    if constexpr (Matrix::kTiles > 1) {
      if (outputs == 256) return run_tile<Matrix, K, 8>(a, stream);
    }
    if (outputs == 64) return run_tile<Matrix, K, 2>(a, stream);
  }
  run_tile<Matrix, K, 4>(a, stream);
}

}  // namespace

int64_t dense_weight_rows(const DenseArgs& a) {
  return (dense_weight_outputs(a) == 256 ? 64 : 128) / size_of(a.layer.weight_dtype);
}
int64_t dense_weight_inputs(const DenseArgs& a) { return kSlots / a.row_blocks; }
// 256 where 128 would leave no less of them empty, and registers have room. Lower orders are rare: they have one tile.
int64_t dense_weight_outputs(const DenseArgs& a) {
  const int64_t out = a.layer.out_features;
  if (a.layer.order < kDenseOrder) return 128;
  if (out <= 64) return 64;
  const bool strict = a.layer.weight_dtype == DType::f32 && !a.tf32;
  return !strict && ceil_div(out, 128) % 2 == 0 ? 256 : 128;
}

void dense_weight(const DenseArgs& a, void* stream) {
  with_operands(a, [&](auto operands) {
    using Operands = decltype(operands);
    run<typename Operands::Matrix, Operands::kOrder>(a, stream);
  });
}

}  // namespace cuda
}  // namespace kan
