// y[b,o] = sum_i row_scale[b,i] phi_{i,o}^{(m)}(x[b,i]) + bias[o], or the sum over one part of the features.
#include "gather.h"

namespace kan {
namespace cuda {
namespace {

template <int Lanes>
constexpr int rows_of_warp() {
  return Lanes == 32 ? 8 : 32;
}

template <class T, int K, int Lanes>
KAN_KERNEL(32 * kGatherWarps, 1)
gather_forward_kernel(GatherArgs a) {
  constexpr int kRows = rows_of_warp<Lanes>(), kSteps = kRows * Lanes / 32,
                kOut = outputs_per_lane(Lanes, sizeof(T) == 8, K);
  const int order = K >= 0 ? K : a.layer.order, per_lane = a.shape.per_lane, features = a.shape.features;
  const int n_rows = a.layer.coefficient_rows(), functions = a.layer.functions, n_knots = a.layer.knots();
  const int lane = lane_index(), warp = warp_index();
  const int64_t batch = a.layer.batch, out = a.layer.out_features;
  const int64_t b0 = (int64_t(block_index_x()) * kGatherWarps + warp) * kRows;
  const int64_t o0 = int64_t(block_index_y()) * Lanes * per_lane;
  const int64_t first = int64_t(block_index_z()) * a.shape.part;
  const int64_t past = first + a.shape.part, last = past < a.layer.in_features ? past : a.layer.in_features;

  // Shared memory: the panel of coefficients; then for each warp the values, base and window of its (feature, row)s.
  T* panel = reinterpret_cast<T*>(shared_memory());
  const int panel_size = a.shape.staged ? features * n_rows * per_lane * 32 : 0, pairs = features * kRows;
  T* values = panel + panel_size + warp * (order + 2) * pairs;  // [order + 2][features][rows], the base last
  int* window = reinterpret_cast<int*>(panel + panel_size + kGatherWarps * (order + 2) * pairs) + warp * pairs;

  T sum[kSteps][kOut] = {};
  for (int64_t i0 = first; i0 < last; i0 += features) {
    const int count = int(last - i0 < features ? last - i0 : features);
    if (a.shape.staged) {
      sync_block();
      for (int f = 0; f < count; ++f) {
        stage_feature<T, Lanes>(a, panel + f * n_rows * per_lane * 32, i0 + f, o0, warp, kGatherWarps);
      }
    }
    sync_warp();
    for (int pair = lane; pair < count * kRows; pair += 32) {
      const int f = pair / kRows, row = pair % kRows;
      const int64_t i = i0 + f, b = b0 + row;
      const T* knots = static_cast<const T*>(a.layer.grid) + i * n_knots;
      const T x = b < batch ? load_as<T>(a.x, b, i) : T(0);
      T scale = a.row_scale.data && b < batch ? load_as<T>(a.row_scale, b, i) : T(1);
      const Place<T> place = locate(knots, n_knots, x);
      window[pair] = place.unit == T(1) ? scalar::window_of_cell(place.cell, order, a.layer.cells()) : 0;
      write_values_any<T, K>(order, knots, n_knots, x, place, scale, a.derivative, values + pair, pairs);
      if (a.layer.base != kNoBase) {
        values[(order + 1) * pairs + pair] = scale * base_value<T>(x, a.layer.base, a.derivative);
      }
    }
    if (a.shape.staged) sync_block();
    sync_warp();
    for (int f = 0; f < count; ++f) {
      const T* lines = panel + f * n_rows * per_lane * 32 + lane;
      KAN_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        const int pair = f * kRows + step * (32 / Lanes) + lane / Lanes;
        const int row = window[pair];
        KAN_UNROLL
        for (int j = 0; j <= order; ++j) {
          const T value = values[j * pairs + pair];
          KAN_UNROLL
          for (int n = 0; n < kOut; ++n) {
            if (n >= per_lane) break;
            const int64_t o = o0 + lane % Lanes + n * Lanes;
            if (a.shape.staged) {
              sum[step][n] += value * lines[((row + j) * per_lane + n) * 32];
            } else if (o < out) {
              sum[step][n] += value * coefficient<T>(a, i0 + f, row + j, o);
            }
          }
        }
        if (a.layer.base == kNoBase) continue;
        const T value = values[(order + 1) * pairs + pair];
        KAN_UNROLL
        for (int n = 0; n < kOut; ++n) {
          if (n >= per_lane) break;
          const int64_t o = o0 + lane % Lanes + n * Lanes;
          if (a.shape.staged) {
            sum[step][n] += value * lines[(functions * per_lane + n) * 32];
          } else if (o < out) {
            sum[step][n] += value * coefficient<T>(a, i0 + f, functions, o);
          }
        }
      }
    }
  }

  KAN_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    const int64_t b = b0 + step * (32 / Lanes) + lane / Lanes;
    KAN_UNROLL
    for (int n = 0; n < kOut; ++n) {
      const int64_t o = o0 + lane % Lanes + n * Lanes;
      if (n >= per_lane || b >= batch || o >= out) continue;
      const T bias = a.bias ? load_as<T>(a.bias, a.layer.weight_dtype, o) : T(0);
      store_as<T>(a.y, a.y_dtype, (block_index_z() * batch + b) * out + o, sum[step][n] + bias);
    }
  }
}

template <class T, int K, int Lanes>
struct Forward {
  static void run(const GatherArgs& a, void* stream) {
    const Grid grid{ceil_div(a.layer.batch, kGatherWarps * rows_of_warp<Lanes>()),
                    ceil_div(a.layer.out_features, Lanes * a.shape.per_lane), a.shape.splits};
    launch<GatherArgs>("gather_forward", gather_forward_kernel<T, K, Lanes>, grid, 32 * kGatherWarps,
                       a.shape.shared_bytes, stream, a);
  }
};

}  // namespace

void gather_forward(const GatherArgs& a, void* stream) { run_gather<Forward>(a, stream); }

}  // namespace cuda
}  // namespace kan
