// y[b,o] = sum_i row_scale[b,i] phi_{i,o}^{(m)}(x[b,i]) + bias[o], or the sum over one part of the features.
#include "gather.h"

namespace kan {
namespace cuda {
namespace {

template <int Lanes>
constexpr int rows_of_warp() {
  return Lanes == 32 ? 8 : 32;
}

// Adds one feature's share to the sums of a warp's rows, from coefficients in shared memory. values, window: of this
// lane's first row; lines, base: of this lane, base null without one.
template <class T, int K, int Lanes, int N, int Steps, int Out>
KAN_DEVICE void add_feature(const GatherArgs& a, T (&sum)[Steps][Out], const T* lines, const T* base, const T* values,
                            int stride, const int* window) {
  const int order = K >= 0 ? K : a.layer.order;
  KAN_UNROLL
  for (int step = 0; step < Steps; ++step) {
    const int pair = step * (32 / Lanes);
    const T* const mine = lines + window[pair] * (N * 32);
    const Values<T, K> value(values + pair * stride);
    KAN_UNROLL
    for (int j = 0; j <= order; ++j) {
      KAN_UNROLL
      for (int n = 0; n < N; ++n) sum[step][n] += value[j] * mine[(j * N + n) * 32];
    }
    if (!base) continue;
    KAN_UNROLL
    for (int n = 0; n < N; ++n) sum[step][n] += value[order + 1] * base[n * 32];
  }
}

// The same from coefficients where they lie, for grids too long for shared memory.
template <class T, int Lanes, int Steps, int Out>
KAN_DEVICE void add_long_feature(const GatherArgs& a, T (&sum)[Steps][Out], int64_t i, int64_t o0, const T* values,
                                 int stride, const int* window) {
  KAN_UNROLL
  for (int step = 0; step < Steps; ++step) {
    const int pair = step * (32 / Lanes);
    KAN_ROLLED
    for (int j = 0; j <= a.layer.order + (a.layer.base != kNoBase); ++j) {
      const int row = j <= a.layer.order ? window[pair] + j : a.layer.functions;
      const T value = values[pair * stride + j];
      KAN_UNROLL
      for (int n = 0; n < Out; ++n) {
        const int64_t o = o0 + lane_index() % Lanes + n * Lanes;
        if (n < a.shape.per_lane && o < a.layer.out_features) sum[step][n] += value * coefficient<T>(a, i, row, o);
      }
    }
  }
}

template <class T, int K, int Lanes>
KAN_KERNEL(32 * kGatherWarps, 1)
gather_forward_kernel(GatherArgs a) {
  constexpr int kRows = rows_of_warp<Lanes>(), kSteps = kRows * Lanes / 32,
                kOut = outputs_per_lane(Lanes, sizeof(T) == 8, K);
  const int order = K >= 0 ? K : a.layer.order, per_lane = a.shape.per_lane, features = a.shape.features;
  const int n_rows = a.layer.coefficient_rows(), n_knots = a.layer.knots();
  const int lane = lane_index(), warp = warp_index();
  const int64_t batch = a.layer.batch, out = a.layer.out_features;
  const int64_t b0 = (int64_t(block_index_x()) * kGatherWarps + warp) * kRows;
  const int64_t o0 = int64_t(block_index_y()) * Lanes * per_lane;
  const int64_t first = int64_t(block_index_z()) * a.shape.part;
  const int64_t past = first + a.shape.part, last = past < a.layer.in_features ? past : a.layer.in_features;

  // Shared memory: the panel of coefficients; then for each warp the values, base and window of its (feature, row)s.
  constexpr bool kWide = sizeof(T) == 8;
  const int stride = K >= 0 ? value_stride(K, kWide) : order + 2;
  T* panel = reinterpret_cast<T*>(shared_memory());
  const int pairs = features * kRows, feature_size = a.layer.functions * per_lane * 32;
  const int panel_size = a.shape.staged ? features * n_rows * per_lane * 32 : 0;
  T* values = panel + panel_size + warp * stride * pairs;  // [features][rows][order + 2], the base last
  int* window = reinterpret_cast<int*>(panel + panel_size + kGatherWarps * stride * pairs) + warp * pairs;

  T sum[kSteps][kOut] = {};
  for (int64_t i0 = first; i0 < last; i0 += features) {
    const int count = int(last - i0 < features ? last - i0 : features);
    if (a.shape.staged) {
      sync_block();
      with_count<kOut>(per_lane, [&](auto n) {
        stage_features<T, Lanes, decltype(n)::count>(a, panel, features, i0, count, o0, warp, kGatherWarps);
      });
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
      write_values_any<T, K>(order, knots, n_knots, x, place, scale, a.derivative, values + pair * stride, 1);
      if (a.layer.base != kNoBase) {
        values[pair * stride + order + 1] = scale * base_value<T>(x, a.layer.base, a.derivative);
      }
    }
    if (a.shape.staged) sync_block();
    sync_warp();
    const T* const first_value = values + lane / Lanes * stride;
    const int* const first_window = window + lane / Lanes;
    if (!a.shape.staged) {
      for (int f = 0; f < count; ++f) {
        add_long_feature<T, Lanes>(a, sum, i0 + f, o0, first_value + f * kRows * stride, stride,
                                   first_window + f * kRows);
      }
      continue;
    }
    with_count<kOut>(per_lane, [&](auto n) {
      constexpr int kCount = decltype(n)::count;
      const T* const bases = panel + features * feature_size + lane;
      KAN_ROLLED
      for (int f = 0; f < count; ++f) {
        add_feature<T, K, Lanes, kCount>(a, sum, panel + f * feature_size + lane,
                                         a.layer.base != kNoBase ? bases + f * (kCount * 32) : nullptr,
                                         first_value + f * kRows * stride, stride, first_window + f * kRows);
      }
    });
  }

  const int64_t o = o0 + lane % Lanes;
  T bias[kOut] = {};
  KAN_UNROLL
  for (int n = 0; n < kOut; ++n) {
    if (a.bias && n < per_lane && o + n * Lanes < out) {
      bias[n] = load_as<T>(a.bias, a.layer.weight_dtype, o + n * Lanes);
    }
  }
  with_dtype<T>(a.y_dtype, [&](auto known) {
    KAN_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const int64_t b = b0 + step * (32 / Lanes) + lane / Lanes;
      if (b >= batch) break;
      const int64_t at = (block_index_z() * batch + b) * out + o;
      KAN_UNROLL
      for (int n = 0; n < kOut; ++n) {
        if (n >= per_lane || o + n * Lanes >= out) continue;
        store_known<decltype(known)::dtype>(a.y, at + n * Lanes, sum[step][n] + bias[n]);
      }
    }
  });
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
