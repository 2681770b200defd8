// Either or both of the input's and the weights' gradients in one pass over x and g, without atomics.
//
// A block owns `features` features, `warps` warps share one; a warp takes 32 rows at a time, evaluates one row a lane,
// and adds to weight sums of its own, whose 32 columns belong to one lane each. The warps' sums are added at the end in
// the order of the warps.
#include "gather.h"

namespace kan {
namespace cuda {
namespace {

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
  const int evaluated = (weight ? order + 2 : 0) + (input ? order + 2 : 0);
  T* panel = shared + f * panel_size;
  T* sums = shared + a.shape.features * panel_size + warp_index() * sums_size;
  T* values = shared + a.shape.features * panel_size + all * sums_size +
              warp_index() * (32 * evaluated + (input ? 2 * 32 * kPad : 0));
  T* slopes = values + (weight ? 32 * (order + 2) : 0);  // the input's; the base's value is each one's last row
  T* partial = values + 32 * evaluated;
  int* window = reinterpret_cast<int*>(shared + a.shape.features * panel_size + all * sums_size +
                                       all * (32 * evaluated + (input ? 2 * 32 * kPad : 0))) +
                warp_index() * 33;  // the 33rd: whether the warp saw NaN

  if (panel_size > 0 && exists) stage_feature<T, Lanes>(a, panel, i, 0, mine, warps);
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
        write_values_any<T, K>(order, knots, n_knots, x, place, scale, a.derivative, values + lane, 32);
        if (base) values[(order + 1) * 32 + lane] = scale * base_value<T>(x, a.layer.base, a.derivative);
      }
      if (input) {
        write_values_any<T, K>(order, knots, n_knots, x, place, T(1), a.input_derivative, slopes + lane, 32);
        if (base) slopes[(order + 1) * 32 + lane] = base_value<T>(x, a.layer.base, a.input_derivative);
      }
    }
    sync_warp();
    for (int step = 0; step < Lanes; ++step) {
      const int row = step * (32 / Lanes) + lane / Lanes;
      const int64_t b = b0 + row;
      const int at = window[row];
      T sum = T(0), base_sum = T(0);  // apart: the base may be infinite, and inf - inf would be NaN
      for (int64_t o0 = o_begin; o0 < o_end; o0 += o_tile) {
        KAN_UNROLL
        for (int n = 0; n < kOut; ++n) {
          const int64_t o = o0 + lane % Lanes + n * Lanes;
          if (n >= per_lane || o >= o_end || b >= last) continue;
          const T g = load_as<T>(a.g, b, o);
          if (weight) {
            KAN_UNROLL
            for (int j = 0; j <= order; ++j) {
              const int r = at + j - r0;
              if (r >= 0 && r < rows) sums[(r * per_lane + n) * 32 + lane] += values[j * 32 + row] * g;
            }
            const int r = functions - r0;
            if (base && r >= 0 && r < rows) {
              sums[(r * per_lane + n) * 32 + lane] += values[(order + 1) * 32 + row] * g;
            }
          }
          if (input) {
            T slope = T(0);
            KAN_UNROLL
            for (int j = 0; j <= order; ++j) {
              const T c =
                  panel_size > 0 ? panel[((at + j) * per_lane + n) * 32 + lane] : coefficient<T>(a, i, at + j, o);
              slope += slopes[j * 32 + row] * c;
            }
            sum += g * slope;
            if (base) {
              base_sum += g * (panel_size > 0 ? panel[(functions * per_lane + n) * 32 + lane]
                                              : coefficient<T>(a, i, functions, o));
            }
          }
        }
      }
      if (input) {
        partial[row * kPad + lane % Lanes] = sum;
        if (base) partial[32 * kPad + row * kPad + lane % Lanes] = base_sum;
      }
    }
    sync_warp();
    if (input && b0 + lane < last) {
      T sum = T(0), base_sum = T(0);
      for (int n = 0; n < Lanes; ++n) sum += partial[lane * kPad + n];
      if (base) {
        for (int n = 0; n < Lanes; ++n) base_sum += partial[32 * kPad + lane * kPad + n];
        sum += slopes[(order + 1) * 32 + lane] * base_sum;
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
