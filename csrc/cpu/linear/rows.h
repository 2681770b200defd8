// One input feature's rows, sorted by knot cell, with the values of its non-zero basis functions.
//
// Rows of one cell read the same k+1 coefficient rows, so every contraction becomes a product with the
// coefficients held in registers; and the basis is evaluated across rows with the cell's knots as constants.
#pragma once

#include <limits>

#include "basis/bspline.h"
#include "cpu/base_rows.h"
#include "cpu/storage.h"
#include "lookup.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace kan {
namespace KAN_ISA {

constexpr int kMaxRows = 1024;             // rows of one block
constexpr int kRowStride = kMaxRows + 32;  // no power of two: the value rows must not share cache sets
constexpr int kMaxValues = kMaxOrder + 2;  // k + 1 basis values and the base activation
constexpr int kLinearSearch = 64;          // up to so many knots, counting beats a binary search
constexpr int kStreams = 4;                // quarters of the rows that are sorted side by side

struct Run {  // rows [begin, end) of the sorted order lie in one cell
  int begin, end, cell, window;
};

// Besides the cells 0 .. n_knots-2 there are two more places a row can be in; they sort last.
KAN_HD int outside_cell(int n_knots) { return n_knots - 1; }
KAN_HD int nan_cell(int n_knots) { return n_knots; }

template <class T>
struct SortedRows {
  T* x;          // [kRowStride], sorted
  T* row_scale;  // [kRowStride], sorted
  int32_t* row;  // original row of each sorted position
  int32_t* cell;
  int32_t* next;  // [n_knots + 1][kStreams], first free position of each cell and quarter
  Run* runs;      // [min(rows, n_knots + 1)]
  int n_runs = 0, rows = 0;

  // The run of the outside or the NaN rows, or null: they are the last two.
  const Run* find_special(int wanted) const {
    for (int u = n_runs - 1; u >= 0 && u >= n_runs - 2; --u) {
      if (runs[u].cell == wanted) return runs + u;
    }
    return nullptr;
  }

  // Buffers for other rows behind the first n of these.
  SortedRows from(int64_t n) const {
    SortedRows other = *this;
    other.x += n, other.row_scale += n, other.row += n, other.runs += n;
    return other;
  }

  static size_t bytes(int n_knots) {
    return 2 * Arena::bytes_for<T>(kRowStride) + 2 * Arena::bytes_for<int32_t>(kRowStride) +
           Arena::bytes_for<int32_t>((n_knots + 1) * kStreams) + Arena::bytes_for<Run>(kMaxRows);
  }
  void take(Arena& arena, int n_knots) {
    x = arena.take<T>(kRowStride);
    row_scale = arena.take<T>(kRowStride);
    row = arena.take<int32_t>(kRowStride);
    cell = arena.take<int32_t>(kRowStride);
    next = arena.take<int32_t>((n_knots + 1) * kStreams);
    runs = arena.take<Run>(kMaxRows);
  }
};

template <class T>
inline void locate_rows(int32_t* cell, const T* x, int rows, const T* knots, int n_knots) {
  const int outside = outside_cell(n_knots), nan = nan_cell(n_knots);
  if (n_knots > kLinearSearch) {
    // Where the knots are nearly uniform a division finds the cell; the knots themselves decide.
    const T first = knots[0], last = knots[n_knots - 1], scale = T(n_knots - 1) / (last - first);
    for (int b = 0; b < rows; ++b) {
      const T v = x[b];
      if (!(v >= first) || !(v < last)) {
        cell[b] = v == v ? outside : nan;
        continue;
      }
      const T guess = (v - first) * scale;
      int c = guess < T(n_knots - 2) ? int(guess) : n_knots - 2;
      if (v < knots[c] && c > 0) --c;
      if (v >= knots[c + 1] && c < n_knots - 2) ++c;
      cell[b] = knots[c] <= v && v < knots[c + 1] ? c : locate_cell(knots, n_knots, v);
    }
    return;
  }
  using IVec = typename Simd<T>::IVec;
  using Int = typename Simd<T>::Int;
  constexpr int L = Simd<T>::lanes, N = Lookup<T>::entries;
  // count: of knots at or below x
  const auto each = [&](const auto& count) {
    for (int b = 0; b < rows; b += L) {  // the buffers are padded: surplus lanes are never read
      const Vec<T> v = load(x + b);
      IVec c = count(v) - Int(1);
      c = ((c < Int(0)) | (c > Int(outside))) ? IVec{} + Int(outside) : c;
      c = v == v ? c : IVec{} + Int(nan);
      for (int l = 0; l < L; ++l) cell[b + l] = int32_t(c[l]);
    }
  };
  if constexpr (N > 0) {
    if (n_knots < N) {
      alignas(64) T table[N];
      for (int t = 0; t < N; ++t) table[t] = t < n_knots ? knots[t] : std::numeric_limits<T>::infinity();
      if (n_knots < L) return each([&](Vec<T> v) { return count_at_or_below<T, true>(table, v); });
      return each([&](Vec<T> v) { return count_at_or_below<T, false>(table, v); });
    }
  }
  each([&](Vec<T> v) {
    IVec count = IVec{};
    for (int t = 0; t < n_knots; ++t) count -= v >= knots[t];
    return count;
  });
}

// Where few cells are populated, gathering the rows of each by vector compression beats counting; false: not done.
template <class T>
inline bool sort_by_compression(SortedRows<T>&, const T*, int, int, int, int) {
  return false;
}

#if defined(__AVX512F__)
constexpr int kCompressedCells = 8;

template <>
inline bool sort_by_compression(SortedRows<float>& out, const float* x, int rows, int n_knots, int order, int cells) {
  if (n_knots >= 32) return false;
  constexpr int L = Simd<float>::lanes;
  for (int b = rows; b % L != 0; ++b) out.cell[b] = n_knots + 1;  // surplus lanes: a cell that is never asked for
  __m512i seen = _mm512_setzero_si512();
  for (int b = 0; b < rows; b += L) {
    seen = _mm512_or_si512(seen, _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_loadu_si512(out.cell + b)));
  }
  uint32_t populated = uint32_t(_mm512_reduce_or_epi32(seen)) & ((uint64_t(2) << n_knots) - 1);
  if (__builtin_popcount(populated) > kCompressedCells) return false;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int position = 0;
  out.n_runs = 0;
  for (; populated != 0; populated &= populated - 1) {
    const int c = __builtin_ctz(populated), begin = position;
    const __m512i wanted = _mm512_set1_epi32(c);
    for (int b = 0; b < rows; b += L) {  // stores whole vectors: what is surplus is overwritten, or padding
      const __mmask16 here = _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(out.cell + b), wanted);
      const __m512i row = _mm512_add_epi32(lane, _mm512_set1_epi32(b));
      _mm512_storeu_si512(out.row + position, _mm512_maskz_compress_epi32(here, row));
      _mm512_storeu_ps(out.x + position, _mm512_maskz_compress_ps(here, _mm512_loadu_ps(x + b)));
      position += __builtin_popcount(here);
    }
    const int window = c < n_knots - 1 ? window_of_cell(c, order, cells) : 0;
    out.runs[out.n_runs++] = {begin, position, c, window};
  }
  return true;
}
#endif

// Stable counting sort by cell. x, row_scale: contiguous rows of this feature (row_scale may be null).
//
// The rows are counted and placed in kStreams independent quarters: neighbouring rows often share a cell, and one
// counter for both would make each wait for the other's store.
template <class T>
inline void sort_rows(SortedRows<T>& out, const T* x, const T* row_scale, int rows, const T* knots, int n_knots,
                      int order, int cells) {
  out.rows = rows;
  locate_rows(out.cell, x, rows, knots, n_knots);
  if (sort_by_compression(out, x, rows, n_knots, order, cells)) {
    for (int q = 0; row_scale && q < rows; ++q) out.row_scale[q] = row_scale[out.row[q]];
    return;
  }
  const int n_cells = n_knots + 1, quarter = rows / kStreams;
  const int32_t* cell = out.cell;
  int32_t* next = out.next;  // [n_cells][kStreams]
  for (int c = 0; c < n_cells * kStreams; ++c) next[c] = 0;
  for (int b = 0; b < quarter; ++b) {
    KAN_UNROLL
    for (int s = 0; s < kStreams; ++s) ++next[cell[b + s * quarter] * kStreams + s];
  }
  for (int b = kStreams * quarter; b < rows; ++b) ++next[cell[b] * kStreams + kStreams - 1];
  int position = 0;
  out.n_runs = 0;
  for (int c = 0; c < n_cells; ++c) {
    const int begin = position;
    KAN_UNROLL
    for (int s = 0; s < kStreams; ++s) {
      const int count = next[c * kStreams + s];
      next[c * kStreams + s] = position;
      position += count;
    }
    if (position == begin) continue;
    const int window = c < n_knots - 1 ? window_of_cell(c, order, cells) : 0;
    out.runs[out.n_runs++] = {begin, position, c, window};
  }
  const auto place = [&](int b, int s) {
    const int q = next[cell[b] * kStreams + s]++;
    out.row[q] = b;
    out.x[q] = x[b];
  };
  for (int b = 0; b < quarter; ++b) {
    KAN_UNROLL
    for (int s = 0; s < kStreams; ++s) place(b + s * quarter, s);
  }
  for (int b = kStreams * quarter; b < rows; ++b) place(b, kStreams - 1);
  if (row_scale) {
    for (int q = 0; q < rows; ++q) out.row_scale[q] = row_scale[out.row[q]];
  }
}

// Whether the k+1 splines on the cell of a run all exist, and so add up to one.
KAN_HD bool is_whole(const Run& run, int order, int n_knots) {
  return run.cell < n_knots - 1 && run.window == run.cell - order;
}

// values[j * kRowStride + q] = B_{window+j}^{(m)}(x[q]), j = 0..K; or, if `sums`, in whole cells for j = 0..K-1 the sum
// of those behind the j-th.
template <class T, int K>
void spline_rows(T* values, const SortedRows<T>& in, const T* knots, int n_knots, int derivative, bool sums) {
  constexpr int L = Simd<T>::lanes;
  for (int u = 0; u < in.n_runs; ++u) {
    const Run run = in.runs[u];
    if (run.cell >= n_knots - 1 || derivative > K) {
      const T fill = run.cell == nan_cell(n_knots) ? T(__builtin_nan("")) : T(0);
      for (int j = 0; j <= K; ++j) fill_row(values + j * kRowStride + run.begin, fill, run.end - run.begin);
      continue;
    }
    CellKnots<K, T> cell;
    cell.load(knots, n_knots, run.cell);
    // In the extension cells only some of the k+1 functions exist: they move to the window's rows.
    const int shift = run.window - (run.cell - K);
    for (int q = run.begin; q < run.end; q += L) {  // surplus lanes are overwritten by the next run
      Vec<T> out[K + 1];
      bspline_values<K, Vec<T>, T>(cell, load(in.x + q), broadcast(T(1)), derivative, out);
      if (sums && shift == 0) {
        KAN_UNROLL
        for (int j = K - 1; j >= 0; --j) {
          store(values + j * kRowStride + q, out[j + 1]);
          out[j] += out[j + 1];
        }
      } else if (shift == 0) {
        KAN_UNROLL
        for (int j = 0; j <= K; ++j) store(values + j * kRowStride + q, out[j]);
      } else {
        for (int j = 0; j <= K; ++j) {
          const int source = j + shift;
          store(values + j * kRowStride + q, source >= 0 && source <= K ? out[source] : Vec<T>{});
        }
      }
    }
  }
}

template <class T>
void base_row(T* values, const SortedRows<T>& in, int base, int derivative) {
  base_rows(base, in.x, in.rows, &derivative, 1, values, 0);
}

template <class T>
void scale_rows(T* values, int n_values, const SortedRows<T>& in) {
  constexpr int L = Simd<T>::lanes;
  for (int j = 0; j < n_values; ++j) {
    for (int q = 0; q < in.rows; q += L) {
      store(values + j * kRowStride + q, load(values + j * kRowStride + q) * load(in.row_scale + q));
    }
  }
}

template <class T>
using SplineRows = void (*)(T*, const SortedRows<T>&, const T*, int, int, bool);

template <class T>
SplineRows<T> spline_rows_of(int order) {
  static constexpr SplineRows<T> table[] = {spline_rows<T, 0>, spline_rows<T, 1>, spline_rows<T, 2>, spline_rows<T, 3>,
                                            spline_rows<T, 4>, spline_rows<T, 5>, spline_rows<T, 6>, spline_rows<T, 7>,
                                            spline_rows<T, 8>, spline_rows<T, 9>, spline_rows<T, 10>};
  return table[order];
}

}  // namespace KAN_ISA
}  // namespace kan
