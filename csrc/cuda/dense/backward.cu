// Either or both of the input's and the weights' gradients with matrix instructions, in one pass over x and g.
//
// A block owns 16 groups of 8 coefficient rows, 4 chunks of 4 groups: `row_blocks` groups to an input. For a tile of
// rows of the batch it
//   1. multiplies g with the coefficients, and with the columns' order chosen so that a thread holds all 8 rows of a
//      group, sums them with the basis' slopes in registers: the input's gradient;
//   2. leaves the basis values, made from the same evaluation, in shared memory;
//   3. multiplies those, transposed, with the same g: the weights' gradient, which stays in registers to the end.
#include "backward_stages.h"

namespace kan {
namespace cuda {
namespace {

// What a thread makes of x for its rows: lane/4, +8, ... of its warp's. The slopes are summed in float32.
template <class Matrix, int K>
struct Evaluation {
  static constexpr int kRows = 2 * Layout<Matrix>::M;
  using Slope = FloatMatrix<true>;
  float x[kRows], row_scale[kRows];
  Spline<Slope, K> slope[kRows];
  Spline<Matrix, K> value[kRows];

  KAN_DEVICE void make(const DenseArgs& a, const Line& line, const float* table) {
    if (Matrix::kQuick && line.uniform) {
      if (a.input) {
        float one[kRows];
        KAN_UNROLL
        for (int n = 0; n < kRows; ++n) one[n] = 1.0f;
        evaluate_uniform(slope, a.slope, line, a.layer.knots(), x, a.input_derivative > 0, one, a.input_derivative);
      }
      if (a.d_spline) {
        float scale[kRows];
        KAN_UNROLL
        for (int n = 0; n < kRows; ++n) scale[n] = std::fabs(row_scale[n]);
        evaluate_uniform(value, a.polynomials, line, a.layer.knots(), x, a.row_scale.data || a.derivative > 0, scale,
                         a.derivative);
      }
      return;
    }
    // A real loop, whose numbers go around: this code is long.
    KAN_ROLLED
    for (int n = 0; n < kRows; ++n) {
      const float now = x[0], now_scale = row_scale[0];
      KAN_UNROLL
      for (int up = 0; up < kRows - 1; ++up) {
        x[up] = x[up + 1], row_scale[up] = row_scale[up + 1];
        slope[up] = slope[up + 1], value[up] = value[up + 1];
      }
      x[kRows - 1] = now, row_scale[kRows - 1] = now_scale;
      const int t = lane_index() % 4;
      if (a.input) slope[kRows - 1].evaluate(table, a.layer.knots(), t, now, 1.0f, a.input_derivative);
      if (a.d_spline) value[kRows - 1].evaluate(table, a.layer.knots(), t, now, std::fabs(now_scale), a.derivative);
    }
  }
};

// A step of a block: a tile of rows and one of outputs, and the place in shared memory of what changes with it.
template <class Matrix>
struct Step {
  int64_t b0;
  int tiles, depth, tile = 0, stage = 0;

  KAN_DEVICE void next() {
    stage = stage + 1 < depth ? stage + 1 : 0;
    if (++tile == tiles) tile = 0, b0 += Layout<Matrix>::kRows;
  }
  KAN_DEVICE int c_stage() const { return tiles > 1 ? stage : 0; }
};

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
  const int tiles = input ? int((out + kOutputs - 1) / kOutputs) : 1;  // of outputs, in this block
  const Owned owned(a);
  const bool has_base = base && owned.block(chunk) == 0;  // this warp's chunk counts its inputs' base
  const int depth = stages<Matrix, K>(a), c_depth = tiles > 1 ? depth : 1;
  const int table_size = KnotTable<K>::size(a.layer.knots());
  const Layout<Matrix> layout(input, weight, depth, c_depth, table_bytes<K>(a));
  unsigned char* shared = shared_memory();
  unsigned char* basis = shared + layout.basis;
  float* slopes = reinterpret_cast<float*>(shared + layout.slopes);  // [chunk][row][group]
  float* tables = reinterpret_cast<float*>(shared + layout.tables);

  for (int q = 0; q < kChunks / a.row_blocks; ++q) {
    KnotTable<K>::fill(tables + q * table_size, static_cast<const float*>(a.layer.grid), a.layer.knots(),
                       owned.i0 + q * kGroups, in, thread_index(), kThreads);
  }
  Line line = {};
  Matrix::fill_placement(shared + layout.placement);
  const SharedAddress placement = shared_address(shared + layout.placement);
  if (Matrix::kQuick) {
    Line* lines = reinterpret_cast<Line*>(shared + layout.lines);
    fill_lines<kThreads>(lines, static_cast<const float*>(a.layer.grid), a.layer.knots(), owned.i0, in, a.uniform);
    sync_block();
    line = lines[chunk / a.row_blocks * kGroups + t];
  }
  const float* table = tables + chunk / a.row_blocks * table_size;
  const int64_t i = owned.input(chunk, t);

  Step<Matrix> at{first, tiles, depth}, ahead = at;
  const auto stage_next = [&] {
    if (ahead.b0 < last) {
      const int64_t o0 = o_begin + ahead.tile * kOutputs;
      stage_g<Matrix>(a, shared + layout.g + ahead.stage * L::kG, ahead.b0, last, o0);
      if (input && (tiles > 1 || ahead.b0 == first)) {
        stage_coefficients<Matrix>(a, owned, shared + layout.coefficients + ahead.c_stage() * L::kCoefficients, o0);
      }
    }
    commit_copies();
    ahead.next();
  };

  float product[M][4][4] = {}, base_product[M][1][4] = {};    // g C' and g W'
  float gradient[2][4][4] = {}, base_gradient[1][1][4] = {};  // of 32 coefficient rows and 32 outputs
  stage_next();
  for (; at.b0 < last; at.next()) {
    wait_copies<0>();
    sync_block();
    if (depth == 2) stage_next();
    const unsigned char* g = shared + layout.g + at.stage * L::kG;
    if (input) {
      const unsigned char* c = shared + layout.coefficients + at.c_stage() * L::kCoefficients;
      const unsigned char* rows = g + half * 16 * M * L::kStride;
      Matrix::template multiply_rows<M, 4>(product, rows, L::kStride, c + chunk * kGroups * L::kGroupStride,
                                           L::kGroupStride, L::kStride, kOutputs);
      if (has_base) {
        Matrix::template multiply_rows<M, 1>(base_product, rows, L::kStride,
                                             c + kChunks * kGroups * L::kGroupStride + chunk * kGroups * L::kStride,
                                             L::kStride, 0, kOutputs);
      }
    }
    if (at.tile == tiles - 1) {
      const int64_t b0 = at.b0;
      Evaluation<Matrix, K> made;
      KAN_UNROLL
      for (int n = 0; n < 2 * M; ++n) {
        const int64_t b = b0 + half * 16 * M + lane / 4 + 8 * n;
        const bool exists = b < last && i < in;
        made.x[n] = exists ? Matrix::load(a.x, b, i) : 0.0f;
        made.row_scale[n] = !exists ? 0.0f : a.row_scale.data ? Matrix::load(a.row_scale, b, i) : 1.0f;
      }
      made.make(a, line, table);
      KAN_UNROLL
      for (int n = 0; n < 2 * M; ++n) {
        const int row = half * 16 * M + lane / 4 + 8 * n;
        const float x = made.x[n];
        if (input) {
          typename FloatMatrix<true>::Row slope;
          slope.place(made.slope[n].window, made.slope[n].first(owned.block(chunk), kGroupRows), placement);
          float sum = 0.0f;
          KAN_UNROLL
          for (int e = 0; e < kGroupRows; ++e) sum += slope.value[e] * product[n / 2][e / 2][2 * (n % 2) + e % 2];
          if (has_base)
            sum += low_base_value<Matrix::kQuick>(x, a.layer.base, a.input_derivative) *
                   base_product[n / 2][0][2 * (n % 2)];
          slopes[(chunk * L::kRows + row) * kGroups + t] = sum;
        }
        if (weight) {
          typename Matrix::Row values;
          values.place(made.value[n].window, made.value[n].first(owned.block(chunk), kGroupRows), placement);
          if (a.row_scale.data) values.change_sign(float_as_bits(made.row_scale[n]) & 0x80000000u);
          if (x != x) {  // of all rows
            const float nothing[kGroupRows] = {x, x, x, x, x, x, x, x};
            values.fill(nothing);
          }
          unsigned char* to = basis + row * L::kBasisStride;
          Matrix::store(to + (chunk * kChunk + t * kGroupRows) * L::kSize, values);
          const bool exists = b0 + row < last && i < in;
          const float value = has_base && exists
                                  ? made.row_scale[n] * low_base_value<Matrix::kQuick>(x, a.layer.base, a.derivative)
                                  : 0.0f;
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
          const int64_t owner = owned.i0 + n, b = b0 + row;
          if (b >= last || owner >= in) continue;
          float sum = 0.0f;
          for (int q = 0; q < a.row_blocks; ++q) {
            sum += slopes[((n / kGroups * a.row_blocks + q) * L::kRows + row) * kGroups + n % kGroups];
          }
          const int64_t part = owned.block0 / a.row_blocks;  // rows of one input beyond this block's are other parts
          store_as<float>(a.input, a.input_dtype, (part * a.layer.batch + b) * in + owner, sum);
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
      stage_next();
    }
  }
  if (!weight) return;

  const int functions = a.layer.functions, n_rows = functions + (base ? 1 : 0);
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
        if (at >= in || r >= functions || o >= out) continue;
        if (parts) {
          parts[((block_index_z() * in + at) * n_rows + r) * out + o] = gradient[m][n][e];
        } else {
          store_as<float>(a.d_spline, a.layer.weight_dtype, (at * functions + r) * out + o, gradient[m][n][e]);
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
      parts[((block_index_z() * in + at) * n_rows + functions) * out + o] = base_gradient[0][0][e];
    } else {
      store_as<float>(a.d_base, a.layer.weight_dtype, at * out + o, base_gradient[0][0][e]);
    }
  }
}

template <class Matrix, int K>
void run(DenseArgs a, void* stream) {
  a.uniform = Matrix::kQuick && (a.input ? a.input_derivative : a.derivative) < K;
  if (a.uniform)
    a.polynomials = uniform_polynomials(K, a.derivative), a.slope = uniform_polynomials(K, a.input_derivative);
  const Grid grid{ceil_div(a.layer.in_features, dense_backward_inputs(a)) * dense_backward_parts(a),
                  a.input ? 1 : ceil_div(a.layer.out_features, kOutputs), a.splits};
  const bool tiles = a.input && a.layer.out_features > kOutputs;
  const int depth = stages<Matrix, K>(a);
  const int bytes = Layout<Matrix>(a.input, a.d_spline, depth, tiles ? depth : 1, table_bytes<K>(a)).all;
  launch<DenseArgs>("dense_backward", dense_backward_kernel<Matrix, K>, grid, kThreads, bytes, stream, a);
}

template <class Matrix>
void run_order(const DenseArgs& a, void* stream) {
  if (a.layer.order == 1) return run<Matrix, 1>(a, stream);
  if (a.layer.order == 2) return run<Matrix, 2>(a, stream);
  run<Matrix, 3>(a, stream);
}

}  // namespace

int64_t dense_backward_outputs() { return kOutputs; }
int64_t dense_backward_inputs(const DenseArgs& a) { return kChunks / a.row_blocks * kGroups; }
int64_t dense_backward_parts(const DenseArgs& a) {
  return ceil_div(ceil_div(a.layer.functions, kGroupRows), a.row_blocks);
}

void dense_backward(const DenseArgs& a, void* stream) {
  switch (a.layer.weight_dtype) {
    case DType::bf16: return run_order<HalfMatrix<true>>(a, stream);
    case DType::f16: return run_order<HalfMatrix<false>>(a, stream);
    default: return a.tf32 ? run_order<FloatMatrix<false>>(a, stream) : run_order<FloatMatrix<true>>(a, stream);
  }
}

}  // namespace cuda
}  // namespace kan
