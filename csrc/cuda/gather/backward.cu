// Either or both of the input's and the weights' gradients in one pass over x and g, without atomics.
//
// A block owns `features` features, `warps` warps share one; a warp takes 32 rows at a time, evaluates one row a lane,
// and adds to weight sums of its own, whose 32 columns belong to one lane each. The warps' sums are added at the end in
// the order of the warps.
#include "gather.h"

namespace kan {
namespace cuda {
namespace {

// What a lane adds up for one row of the batch: the input's gradient, and its base's share apart, for the base may be
// infinite, and inf - inf would be NaN.
template <class T>
struct RowSums {
  T spline = T(0), base = T(0);
};

// One row and N outputs of this lane. sums: this lane's column of the weights' sums, whose rows are r0 .. r0 + rows -
// 1; panel: of the coefficients, both null where they are not asked for. `left` of the outputs exist, Lanes apart.
template <class T, int K, int Lanes, int N>
KAN_DEVICE void add_row(const GatherArgs& a, const T (&g)[N], int left, T* sums, int r0, int rows, const T* panel,
                        const T* values, const T* slopes, int window, RowSums<T>& row) {
  constexpr int kLine = N * 32;
  const int order = K >= 0 ? K : a.layer.order;
  const bool base = a.layer.base != kNoBase;
  if (sums) {
    const Values<T, K> value(values);
    // All of a row's sums are read before one is written: they are different numbers, which the compiler cannot know.
    constexpr int kBatch = K >= 0 ? K + 1 : 1;
    KAN_UNROLL
    for (int first = 0; first <= order; first += kBatch) {
      T* const column = sums + (window + first - r0) * kLine;
      T sum[kBatch][N];
      KAN_UNROLL
      for (int j = 0; j < kBatch; ++j) {
        const bool mine = uint32_t(window + first + j - r0) < uint32_t(rows);
        KAN_UNROLL
        for (int n = 0; n < N; ++n) sum[j][n] = mine ? column[j * kLine + n * 32] : T(0);
      }
      KAN_UNROLL
      for (int j = 0; j < kBatch; ++j) {
        const bool mine = uint32_t(window + first + j - r0) < uint32_t(rows);
        KAN_UNROLL
        for (int n = 0; n < N; ++n) {
          if (mine) column[j * kLine + n * 32] = sum[j][n] + value[first + j] * g[n];
        }
      }
    }
    if (base && uint32_t(a.layer.functions - r0) < uint32_t(rows)) {
      T* const column = sums + (a.layer.functions - r0) * kLine;
      KAN_UNROLL
      for (int n = 0; n < N; ++n) column[n * 32] += value[order + 1] * g[n];
    }
  }
  if (panel) {
    const Values<T, K> value(slopes);
    const T* const mine = panel + window * kLine;
    T slope[N] = {};
    KAN_UNROLL
    for (int j = 0; j <= order; ++j) {
      KAN_UNROLL
      for (int n = 0; n < N; ++n) slope[n] += value[j] * mine[j * kLine + n * 32];
    }
    KAN_UNROLL
    for (int n = 0; n < N; ++n) {
      if (n * Lanes >= left) continue;
      row.spline += g[n] * slope[n];
      if (base) row.base += g[n] * panel[a.layer.functions * kLine + n * 32];
    }
  }
}

// The input's gradient from coefficients where they lie: more outputs, or rows, than shared memory has room for.
template <class T, int Lanes, int N>
KAN_DEVICE void add_long_row(const GatherArgs& a, const T (&g)[N], int64_t i, int64_t o, const T* slopes, int window,
                             RowSums<T>& row) {
  const bool base = a.layer.base != kNoBase;
  KAN_UNROLL
  for (int n = 0; n < N; ++n) {
    if (o + n * Lanes >= a.layer.out_features) continue;
    T slope = T(0);
    KAN_ROLLED
    for (int j = 0; j <= a.layer.order; ++j) slope += slopes[j] * coefficient<T>(a, i, window + j, o + n * Lanes);
    row.spline += g[n] * slope;
    if (base) row.base += g[n] * coefficient<T>(a, i, a.layer.functions, o + n * Lanes);
  }
}

template <class T, int K, int Lanes>
KAN_KERNEL(256, 1)
gather_backward_kernel(GatherArgs a) {
  constexpr int kOut = outputs_per_lane(Lanes, sizeof(T) == 8, K), kPad = Lanes | 1;
  const bool weight = a.d_spline != nullptr, input = a.input != nullptr, base = a.layer.base != kNoBase;
  const int order = K >= 0 ? K : a.layer.order, per_lane = a.shape.per_lane, warps = a.shape.warps;
  const int n_rows = a.layer.coefficient_rows(), functions = a.layer.functions, n_knots = a.layer.knots();
  const int lane = lane_index(), f = warp_index() / warps, mine = warp_index() % warps;
  const int64_t batch = a.layer.batch, out = a.layer.out_features;
  const int64_t i = int64_t(block_index_x()) * a.shape.features + f;
  const bool exists = i < a.layer.in_features;
  const int tiles = int(ceil_div(n_rows, a.shape.coefficients)), tile = block_index_z() % tiles;
  const int64_t split = block_index_z() / tiles, first = split * a.shape.part;
  const int64_t last = first + a.shape.part < batch ? first + a.shape.part : batch;
  const int r0 = tile * a.shape.coefficients;  // this block's rows of the weights' gradient
  const int rows = n_rows - r0 < a.shape.coefficients ? n_rows - r0 : a.shape.coefficients;
  const int64_t o_tile = int64_t(Lanes) * per_lane, o_begin = block_index_y() * o_tile;
  const int64_t o_end = input ? out : (o_begin + o_tile < out ? o_begin + o_tile : out);

  T* shared = reinterpret_cast<T*>(shared_memory());
  const int line = per_lane * 32, panel_size = input && a.shape.staged ? n_rows * line : 0;
  const int sums_size = weight ? a.shape.coefficients * line : 0, all = a.shape.features * warps;
  const int stride = K >= 0 ? value_stride(K, sizeof(T) == 8) : order + 2;
  const int evaluated = (weight ? stride : 0) + (input ? stride : 0);
  T* panel = shared + f * panel_size;
  T* sums = shared + a.shape.features * panel_size + warp_index() * sums_size;
  T* values = shared + a.shape.features * panel_size + all * sums_size +
              warp_index() * (32 * evaluated + (input ? 2 * 32 * kPad : 0));
  T* slopes = values + (weight ? 32 * stride : 0);  // the input's; the base's value is each one's last row
  T* partial = values + 32 * evaluated;
  int* window = reinterpret_cast<int*>(shared + a.shape.features * panel_size + all * sums_size +
                                       all * (32 * evaluated + (input ? 2 * 32 * kPad : 0))) +
                warp_index() * 33;  // the 33rd: whether the warp saw NaN

  if (panel_size > 0 && exists) {
    with_count<kOut>(per_lane,
                     [&](auto n) { stage_features<T, Lanes, decltype(n)::count>(a, panel, 1, i, 1, 0, mine, warps); });
  }
  for (int n = lane; n < sums_size; n += 32) sums[n] = T(0);
  sync_block();

  bool poisoned = false;
  for (int64_t b0 = first + 32 * mine; exists && b0 < last; b0 += 32 * warps) {
    {
      const int64_t b = b0 + lane;
      const T* knots = static_cast<const T*>(a.layer.grid) + i * n_knots;
      const T x = b < last ? load_as<T>(a.x, b, i) : T(0);
      const T scale = a.row_scale.data && b < last ? load_as<T>(a.row_scale, b, i) : T(1);
      const Place<T> place = locate(knots, n_knots, x);
      poisoned = poisoned || any_in_warp(!(x == x));
      window[lane] = place.unit == T(1) ? scalar::window_of_cell(place.cell, order, a.layer.cells()) : 0;
      if (weight) {
        write_values_any<T, K>(order, knots, n_knots, x, place, scale, a.derivative, values + lane * stride, 1);
        if (base) values[lane * stride + order + 1] = scale * base_value<T>(x, a.layer.base, a.derivative);
      }
      if (input) {
        write_values_any<T, K>(order, knots, n_knots, x, place, T(1), a.input_derivative, slopes + lane * stride, 1);
        if (base) slopes[lane * stride + order + 1] = base_value<T>(x, a.layer.base, a.input_derivative);
      }
    }
    sync_warp();
    // Steps of 32 / Lanes rows; their cotangents are read a step ahead.
    with_count<kOut>(per_lane, [&](auto of_lane) {
      constexpr int kCount = decltype(of_lane)::count, kRows = 32 / Lanes, kTile = kCount * Lanes;
      const int have = last - b0 < 32 ? int(last - b0) : 32, left = int(o_end - o_begin) - lane % Lanes;
      const int64_t between = kRows * a.g.row_stride;
      int64_t at = (b0 + lane / Lanes) * a.g.row_stride + (o_begin + lane % Lanes) * a.g.col_stride;
      const auto load = [&](T(&g)[kCount], int64_t from, int row, int outputs) {
        const int exist = row < have ? outputs : 0;
        with_dtype<T>(a.g.dtype, [&](auto known) {
          KAN_UNROLL
          for (int n = 0; n < kCount; ++n) {
            const int64_t of = from + n * Lanes * a.g.col_stride;
            g[n] = n * Lanes < exist ? load_known<T, decltype(known)::dtype>(a.g.data, of) : T(0);
          }
        });
      };
      T next[kCount];
      load(next, at, lane / Lanes, left);
      KAN_ROLLED
      for (int row = lane / Lanes; row < 32; row += kRows, at += between) {
        RowSums<T> sum;
        const int place = window[row];
        for (int done = 0; done < left || done == 0; done += kTile) {
          T g[kCount];
          KAN_UNROLL
          for (int n = 0; n < kCount; ++n) g[n] = next[n];
          if (done + kTile < left) {
            load(next, at + (done + kTile) * a.g.col_stride, row, left - done - kTile);
          } else {
            load(next, at + between, row + kRows, left);
          }
          if (row >= have) continue;
          add_row<T, K, Lanes, kCount>(a, g, left - done, weight ? sums + lane : nullptr, r0, rows,
                                       panel_size > 0 ? panel + lane : nullptr, values + row * stride,
                                       slopes + row * stride, place, sum);
          if (input && panel_size == 0) {
            add_long_row<T, Lanes>(a, g, i, o_begin + lane % Lanes + done, slopes + row * stride, place, sum);
          }
        }
        if (input) {
          partial[row * kPad + lane % Lanes] = sum.spline;
          if (base) partial[32 * kPad + row * kPad + lane % Lanes] = sum.base;
        }
      }
    });
    sync_warp();
    if (input && b0 + lane < last) {
      T sum = T(0), base_sum = T(0);
      for (int n = 0; n < Lanes; ++n) sum += partial[lane * kPad + n];
      if (base) {
        for (int n = 0; n < Lanes; ++n) base_sum += partial[32 * kPad + lane * kPad + n];
        sum += slopes[lane * stride + order + 1] * base_sum;
      }
      store_as<T>(a.input, a.x.dtype, (b0 + lane) * a.layer.in_features + i, sum);
    }
    sync_warp();
  }
  if (!weight) return;

  if (lane == 0) window[32] = poisoned;
  sync_block();
  if (!exists) return;
  bool any = false;
  for (int w = 0; w < warps; ++w) any = any || window[32 + 33 * (w - mine)] != 0;
  const T poison = any ? T(NAN) : T(0);
  // Columns of this feature's sums, over all its warps; narrow layers add the copies of a line too.
  for (int e = lane + 32 * mine; e < rows * per_lane * Lanes; e += 32 * warps) {
    const int o_lane = e % Lanes, n = e / Lanes % per_lane, r = e / Lanes / per_lane;
    const int64_t o = o_begin + o_lane + n * Lanes;
    if (o >= out) continue;
    T sum = poison;
    for (int w = 0; w < warps; ++w) {
      const T* lines = sums + (w - mine) * sums_size + (r * per_lane + n) * 32;
      for (int copy = 0; copy < 32 / Lanes; ++copy) sum += lines[copy * Lanes + o_lane];
    }
    const int row = r0 + r;
    if (a.parts) {
      static_cast<T*>(a.parts)[((split * a.layer.in_features + i) * n_rows + row) * out + o] = sum;
    } else if (row == functions) {
      store_as<T>(a.d_base, a.layer.weight_dtype, i * out + o, sum);
    } else {
      store_as<T>(a.d_spline, a.layer.weight_dtype, (i * functions + row) * out + o, sum);
    }
  }
}

template <class T, int K, int Lanes>
struct Backward {
  static void run(const GatherArgs& a, void* stream) {
    const int64_t tiles = ceil_div(a.layer.coefficient_rows(), a.shape.coefficients);
    const int64_t columns = a.input ? 1 : ceil_div(a.layer.out_features, Lanes * a.shape.per_lane);
    const Grid grid{ceil_div(a.layer.in_features, a.shape.features), columns, tiles * a.shape.splits};
    launch<GatherArgs>("gather_backward", gather_backward_kernel<T, K, Lanes>, grid,
                       32 * a.shape.features * a.shape.warps, a.shape.shared_bytes, stream, a);
  }
};

}  // namespace

void gather_backward(const GatherArgs& a, void* stream) { run_gather<Backward>(a, stream); }

}  // namespace cuda
}  // namespace kan
