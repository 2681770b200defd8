// The contractions of one input feature with one panel of outputs, on rows sorted by cell.
//
// N values a row (the base activation first, then the k+1 splines) meet N coefficient rows of P vectors. For each
// run of rows the coefficients (or, for weights, their gradients) stay in registers: a row costs P loads of y or g,
// N broadcasts and N*P multiply-adds.
#pragma once

#include "rows.h"

namespace kan {
namespace KAN_ISA {

// N coefficient rows of one panel: row 0 at `first`, which moves with the window only where there is no base row;
// rows 1 .. N-1 at `rest`, consecutive from the window on.
template <class T>
struct Panel {
  T* first;
  T* rest;
  int64_t ld;        // elements between consecutive rows
  int64_t first_ld;  // ld, or 0 where row 0 is the base row

  // The rows from j > 0 on, for runs whose window is 0.
  Panel after(int j) const { return {row(0, j), row(0, j + 1), ld, ld}; }
  // Coefficient row j of those that a run in this window reads.
  KAN_HD T* row(int window, int j) const { return j == 0 ? first + window * first_ld : rest + (window + j - 1) * ld; }
};

template <class T>
struct MicroArgs {
  const T* values;  // [N][kRowStride]
  const int32_t* row;
  const Run* runs;
  int n_runs;
  Panel<T> panel;
  T* tile;             // forward: y += ; input, weight: g. [rows][pitch], by original row
  T* partial;          // input: [rows][lanes], by sorted row: lane sums, added to
  bool start = false;  // forward, input: what is added to is taken for 0
  T* total = nullptr;  // forward: as tile; where given, gets the sum added and tile is only read
  int64_t pitch = 0;   // elements between the tile's rows; 0: P * lanes
};

template <bool Start, bool Total, class T, int N, int P>
void forward_runs(const MicroArgs<T>& args) {
  constexpr int L = Simd<T>::lanes;
  const MicroArgs<T> a = args;  // a local copy: no store below can be taken for a change of it
  const int64_t pitch = a.pitch ? a.pitch : P * L;
  for (int u = 0; u < a.n_runs; ++u) {
    const Run run = a.runs[u];
    Vec<T> coef[N][P];
    KAN_UNROLL
    for (int j = 0; j < N; ++j) {
      KAN_UNROLL
      for (int p = 0; p < P; ++p) coef[j][p] = load(a.panel.row(run.window, j) + p * L);
    }
    for (int q = run.begin; q < run.end; ++q) {
      const int64_t at = a.row[q] * pitch;
      T* y = a.tile + at;
      Vec<T> sum[P];
      KAN_UNROLL
      for (int p = 0; p < P; ++p) sum[p] = Start ? Vec<T>{} : load(y + p * L);
      KAN_UNROLL
      for (int j = 0; j < N; ++j) {
        const Vec<T> value = broadcast(a.values[j * kRowStride + q]);
        KAN_UNROLL
        for (int p = 0; p < P; ++p) sum[p] += value * coef[j][p];
      }
      if constexpr (Total) {
        y = a.total + at;
        KAN_UNROLL
        for (int p = 0; p < P; ++p) sum[p] += load(y + p * L);
      }
      KAN_UNROLL
      for (int p = 0; p < P; ++p) store(y + p * L, sum[p]);
    }
  }
}

template <class T, int N, int P>
void micro_forward(const MicroArgs<T>& a) {
  if (a.start) return a.total ? forward_runs<true, true, T, N, P>(a) : forward_runs<true, false, T, N, P>(a);
  return a.total ? forward_runs<false, true, T, N, P>(a) : forward_runs<false, false, T, N, P>(a);
}

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// Of N values and P vectors of a panel as many as have their sums in registers at once, beside g and a value: sums in
// memory would be loaded and stored for every row.
template <int N, int P>
struct Held {
  static constexpr bool all = (N + 1) * P < kRegisters;
  static constexpr int vectors = all || P < 2 ? P : 2;
  static constexpr bool values = all || (N + 1) * vectors < kRegisters;  // else half of them
};

// Coefficient rows First .. First+N-1, S vectors from a column on: += sum_q value g over the rows of a run.
template <int First, int N, int S, class T>
KAN_HD void add_gradients(const MicroArgs<T>& a, const Run& run, int64_t pitch, int column) {
  constexpr int L = Simd<T>::lanes;
  const T* tile = a.tile + column;
  Vec<T> sum[N][S];
  KAN_UNROLL
  for (int j = 0; j < N; ++j) {
    KAN_UNROLL
    for (int p = 0; p < S; ++p) sum[j][p] = Vec<T>{};
  }
  for (int q = run.begin; q < run.end; ++q) {
    const T* row = tile + a.row[q] * pitch;
    Vec<T> g[S];
    KAN_UNROLL
    for (int p = 0; p < S; ++p) g[p] = load(row + p * L);
    KAN_UNROLL
    for (int j = 0; j < N; ++j) {
      const Vec<T> value = broadcast(a.values[(First + j) * kRowStride + q]);
      KAN_UNROLL
      for (int p = 0; p < S; ++p) sum[j][p] += value * g[p];
    }
  }
  KAN_UNROLL
  for (int j = 0; j < N; ++j) {
    T* out = a.panel.row(run.window, First + j) + column;
    KAN_UNROLL
    for (int p = 0; p < S; ++p) store(out + p * L, load(out + p * L) + sum[j][p]);
  }
}

template <class T, int N, int P>
void micro_weight(const MicroArgs<T>& args) {
  constexpr int L = Simd<T>::lanes, S = Held<N, P>::vectors;
  const MicroArgs<T> a = args;  // a local copy: no store below can be taken for a change of it
  const int64_t pitch = a.pitch ? a.pitch : P * L;
  for (int u = 0; u < a.n_runs; ++u) {
    for (int column = 0; column < P * L; column += S * L) {
      if constexpr (Held<N, P>::values) {
        add_gradients<0, N, S>(a, a.runs[u], pitch, column);
      } else {
        add_gradients<0, N / 2, S>(a, a.runs[u], pitch, column);
        add_gradients<N / 2, N - N / 2, S>(a, a.runs[u], pitch, column);
      }
    }
  }
}

// partial[q] += g . sum_j value_j coef_j, lane by lane, for the rows of a run.
template <class T, int N, int P>
KAN_HD void dot_rows(const MicroArgs<T>& a, const Run& run, const Vec<T> (&coef)[N][P]) {
  constexpr int L = Simd<T>::lanes;
  const int64_t pitch = a.pitch ? a.pitch : P * L;
  for (int q = run.begin; q < run.end; ++q) {
    const T* g = a.tile + a.row[q] * pitch;
    Vec<T> slope[P];  // sum_j value_j coef_j: the edge functions' values for this row
    const Vec<T> base = broadcast(a.values[q]);
    KAN_UNROLL
    for (int p = 0; p < P; ++p) slope[p] = base * coef[0][p];
    KAN_UNROLL
    for (int j = 1; j < N; ++j) {
      const Vec<T> value = broadcast(a.values[j * kRowStride + q]);
      KAN_UNROLL
      for (int p = 0; p < P; ++p) slope[p] += value * coef[j][p];
    }
    T* partial = a.partial + int64_t(q) * L;
    Vec<T> sum = a.start ? Vec<T>{} : load(partial);
    KAN_UNROLL
    for (int p = 0; p < P; ++p) sum += slope[p] * load(g + p * L);
    store(partial, sum);
  }
}

template <class T, int N, int P>
void micro_input(const MicroArgs<T>& args) {
  constexpr int L = Simd<T>::lanes;
  const MicroArgs<T> a = args;  // a local copy: no store below can be taken for a change of it
  for (int u = 0; u < a.n_runs; ++u) {
    const Run run = a.runs[u];
    Vec<T> coef[N][P];
    KAN_UNROLL
    for (int j = 0; j < N; ++j) {
      KAN_UNROLL
      for (int p = 0; p < P; ++p) coef[j][p] = load(a.panel.row(run.window, j) + p * L);
    }
    dot_rows<T, N, P>(a, run, coef);
  }
}

// The same on sums of derivatives, for runs in the middle of the knots. There the splines add up to one, hence their
// m-th derivatives B_0 .. B_K to zero, and sum_j B_j c_j = sum_{j>0} (B_j + .. + B_K) (c_j - c_{j-1}): a value less.
// N - 1 values, the sums in their order behind that of the base, meet the differences of N coefficient rows.
template <class T, int N, int P>
void micro_slopes(const MicroArgs<T>& args) {
  constexpr int L = Simd<T>::lanes;
  const MicroArgs<T> a = args;
  const bool based = a.panel.first_ld == 0;
  for (int u = 0; u < a.n_runs; ++u) {
    const Run run = a.runs[u];
    Vec<T> coef[N - 1][P];
    KAN_UNROLL
    for (int j = 0; j < N - 1; ++j) {
      const T *row = a.panel.row(run.window, j), *next = a.panel.row(run.window, j + 1);
      KAN_UNROLL
      for (int p = 0; p < P; ++p) {
        coef[j][p] = j == 0 && based ? load(row + p * L) : load(next + p * L) - load(row + p * L);
      }
    }
    dot_rows<T, N - 1, P>(a, run, coef);
  }
}

template <class T>
using Micro = void (*)(const MicroArgs<T>&);

// The kernels for N values a row; panels of 1, 2 and 4 vectors (4 only while N * 4 fits the register file).
constexpr int kWidestSplit = 5;  // N up to which panels of four vectors are compiled

template <class T>
struct MicroKernels {
  Micro<T> forward[3], input[3], weight[3], slopes[3];  // by log2 P
  int widest;                                           // vectors of the widest panel
};

template <class T, int N>
constexpr MicroKernels<T> micro_kernels() {
  constexpr int W = N <= kWidestSplit ? 4 : 2;
  MicroKernels<T> kernels = {{micro_forward<T, N, 1>, micro_forward<T, N, 2>, micro_forward<T, N, W>},
                             {micro_input<T, N, 1>, micro_input<T, N, 2>, micro_input<T, N, W>},
                             {micro_weight<T, N, 1>, micro_weight<T, N, 2>, micro_weight<T, N, W>},
                             {},
                             W};
  if constexpr (N > 1) {
    kernels.slopes[0] = micro_slopes<T, N, 1>;
    kernels.slopes[1] = micro_slopes<T, N, 2>;
    kernels.slopes[2] = micro_slopes<T, N, W>;
  }
  return kernels;
}

template <class T>
const MicroKernels<T>& micro_kernels_for(int n_values) {
  static constexpr MicroKernels<T> table[kMaxValues] = {
      micro_kernels<T, 1>(), micro_kernels<T, 2>(),  micro_kernels<T, 3>(),  micro_kernels<T, 4>(),
      micro_kernels<T, 5>(), micro_kernels<T, 6>(),  micro_kernels<T, 7>(),  micro_kernels<T, 8>(),
      micro_kernels<T, 9>(), micro_kernels<T, 10>(), micro_kernels<T, 11>(), micro_kernels<T, 12>()};
  return table[n_values - 1];
}

// The values of a row, cut into blocks that a micro-kernel takes. Those of a spline and its base are one block.
template <class T>
class ValueBlocks {
 public:
  ValueBlocks(int n_values, bool local)
      : n_(n_values),
        count_(local ? 1 : int(ceil_div(n_values, kBlock))),
        widest_(micro_kernels_for<T>(size(0)).widest) {
    for (int b = 1; b < count_; ++b) widest_ = int(min64(widest_, micro_kernels_for<T>(size(b)).widest));
  }
  int widest() const { return widest_; }  // vectors of the widest panel that all blocks have a kernel for

  int count() const { return count_; }

  // body(kernels, values, panel) for each block; values and panel are those of the whole row.
  template <class Body>
  void each(const T* values, const Panel<T>& panel, const Body& body) const {
    for (int b = 0; b < count_; ++b) {
      const int first = begin(b);
      body(micro_kernels_for<T>(size(b)), values + first * kRowStride, first == 0 ? panel : panel.after(first));
    }
  }

 private:
  static constexpr int kBlock = KAN_VECTOR_BYTES >= 64 ? kMaxValues : kMaxValues / 2;  // by the number of registers
  int begin(int b) const { return b * n_ / count_; }
  int size(int b) const { return begin(b + 1) - begin(b); }

  int n_, count_, widest_;
};

// How out_features are cut into panels: `full` of the widest kind, then at most one of 2 and one of 1 vectors.
template <class T>
struct Panels {
  int64_t out, width;  // width: elements of a widest panel
  int64_t padded;      // out rounded up to whole vectors
  int widest;

  Panels(int64_t out_features, int widest_vectors) : out(out_features), widest(widest_vectors) {
    constexpr int L = Simd<T>::lanes;
    width = int64_t(widest) * L;
    padded = ceil_div(out, L) * L;
  }
  // Vectors of the panel that starts at column `begin`, begin < padded.
  int vectors_at(int64_t begin) const {
    const int64_t left = (padded - begin) / Simd<T>::lanes;
    if (left >= widest) return widest;
    return left >= 2 ? 2 : 1;
  }
  static int index(int vectors) { return vectors == 4 ? 2 : vectors - 1; }
};

}  // namespace KAN_ISA
}  // namespace kan
