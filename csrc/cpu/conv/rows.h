// What the kernels of convolution share: rows of positions, coefficients of a tap, reading and writing images.
#pragma once

#include "blocking.h"

namespace kan {
namespace KAN_ISA {

// Of one part of a tile: a smaller window has shorter runs, a larger one more misses of the cache.
constexpr int64_t kWindowBytes = int64_t(128) << 10;
constexpr int64_t kLeastWindow = 64;  // rows

// Windows: boxes of q. What one touches of a part of a tile comes back for every channel and tap. bytes: of a place.
inline void window_sizes(int64_t* window, const ConvolutionBlocking& blocking, const Range4& q, int64_t bytes) {
  int64_t touched = 1, rows = 1;
  for (int a = 0; a < kAxes; ++a) window[a] = 1, touched *= 1 + blocking.axis[a].spread;
  for (int a = kAxes - 1; a >= 0; --a) {
    const int64_t spread = blocking.axis[a].spread, length = q.length(a);
    touched /= 1 + spread;
    const int64_t fitting = kWindowBytes / (bytes * touched) - spread;
    int64_t n = min64(kMaxRows / rows, max64(ceil_div(kLeastWindow, rows), fitting));
    n = n < length ? ceil_div(length, ceil_div(length, n)) : length;
    window[a] = n, rows *= n, touched *= n + spread;
    if (n < length) return;
  }
}

template <class Body>
void for_windows(const Range4& q, const int64_t* window, const Body& body) {
  Range4 w;
  for (w.begin[0] = q.begin[0]; w.begin[0] < q.end[0]; w.begin[0] += window[0]) {
    w.end[0] = min64(q.end[0], w.begin[0] + window[0]);
    for (w.begin[1] = q.begin[1]; w.begin[1] < q.end[1]; w.begin[1] += window[1]) {
      w.end[1] = min64(q.end[1], w.begin[1] + window[1]);
      for (w.begin[2] = q.begin[2]; w.begin[2] < q.end[2]; w.begin[2] += window[2]) {
        w.end[2] = min64(q.end[2], w.begin[2] + window[2]);
        for (w.begin[3] = q.begin[3]; w.begin[3] < q.end[3]; w.begin[3] += window[3]) {
          w.end[3] = min64(q.end[3], w.begin[3] + window[3]);
          body(w);
        }
      }
    }
  }
}

// body(at) for every line along the last axis of a box; at: its first place.
template <class Body>
void for_lines(const Range4& box, const Body& body) {
  int64_t at[kAxes];
  at[3] = box.begin[3];
  for (at[0] = box.begin[0]; at[0] < box.end[0]; ++at[0]) {
    for (at[1] = box.begin[1]; at[1] < box.end[1]; ++at[1]) {
      for (at[2] = box.begin[2]; at[2] < box.end[2]; ++at[2]) body(at);
    }
  }
}

inline int64_t image_offset(const cpu::ImageStrides& s, const int64_t* position) {
  return position[0] * s.image + position[1] * s.axis[0] + position[2] * s.axis[1] + position[3] * s.axis[2];
}

inline const void* at_element(const void* data, DType dtype, int64_t n) {
  return static_cast<const char*>(data) + n * item_size(dtype);
}

// The rows of one window of one class: their values of x for some channels, sorted and evaluated one by one.
template <class T>
struct WindowRows {
  T* x;            // [kInputBlock][kRowStride]
  int32_t* place;  // of each row in the tile
  int32_t* home;   // of each row in a box of x
  int64_t rows = 0;

  static size_t bytes() {
    return Arena::bytes_for<T>(kInputBlock * kRowStride) + 2 * Arena::bytes_for<int32_t>(kRowStride);
  }
  void take(Arena& arena) {
    x = arena.take<T>(kInputBlock * kRowStride);
    place = arena.take<int32_t>(kRowStride);
    home = arena.take<int32_t>(kRowStride);
  }

  // Places in the tile count from q_begin; homes are those in a box of x, if there is one.
  void locate(const ConvolutionBlocking& blocking, const PositionClass& part, const Range4& window,
              const int64_t* q_begin, const Tile& tile, const Tile* box) {
    rows = 0;
    for_lines(window, [&](const int64_t* q) {
      int64_t position[kAxes], start = 0;
      position_of(position, blocking, part, q);
      for (int a = 0; a < kAxes; ++a) start += (q[a] - q_begin[a]) * tile.pitch[a];
      const int64_t n = window.length(3), at = box ? box->place(position) : 0, step = blocking.axis[3].stride;
      for (int64_t j = 0; j < n; ++j) {
        place[rows + j] = int32_t(start + j * tile.pitch[3]), home[rows + j] = int32_t(at + j * step);
      }
      rows += n;
    });
  }

  void read(const cpu::ConvolutionLayer& l, const ConvolutionBlocking& blocking, const PositionClass& part,
            const Range4& window, int64_t channel, int64_t channels) {
    const MatrixView line{l.x, l.x_dtype, blocking.axis[3].stride * l.x_strides.axis[2], l.x_strides.channel};
    int64_t row = 0;
    for_lines(window, [&](const int64_t* q) {
      int64_t position[kAxes];
      position_of(position, blocking, part, q);
      MatrixView here = line;
      here.data = at_element(l.x, l.x_dtype, image_offset(l.x_strides, position));
      read_transposed(x + row, kRowStride, here, 0, window.length(3), channel, channels);
      row += window.length(3);
    });
  }

 private:
  static void position_of(int64_t* position, const ConvolutionBlocking& blocking, const PositionClass& part,
                          const int64_t* q) {
    for (int a = 0; a < kAxes; ++a) position[a] = q[a] * blocking.axis[a].stride + part.on[a]->residue;
  }
};

// One channel's rows of a window, sorted by cell, with the values of its functions.
template <class T>
struct EvaluatedRows {
  SortedRows<T> sorted;
  int32_t* place;  // of each sorted row in the tile

  static size_t bytes(int n_knots) { return SortedRows<T>::bytes(n_knots) + Arena::bytes_for<int32_t>(kRowStride); }
  void take(Arena& arena, int n_knots) {
    sorted.take(arena, n_knots);
    place = arena.take<int32_t>(kRowStride);
  }
  void sort(const Shape& s, const WindowRows<T>& window, int64_t column, const T* grid) {
    sort_feature<T>(sorted, s, window.x + column * kRowStride, nullptr, window.rows, grid);
    for (int q = 0; q < sorted.rows; ++q) place[q] = window.place[sorted.row[q]];
  }
};

// How the outputs lie in a tile: where there are few, one row of all for each place, so that a run of taps is one row
// of coefficients and of the tile too; else one panel after the other, [places][panel width] each.
template <class T>
struct Columns {
  int64_t padded, widest;  // outputs rounded up to whole vectors; elements of a widest panel
  bool joined;

  Columns(int64_t out, int widest_vectors)
      : padded(ceil_div(out, Simd<T>::lanes) * Simd<T>::lanes),
        widest(int64_t(widest_vectors) * Simd<T>::lanes),
        joined(padded <= widest) {}

  int64_t part_bytes() const { return min64(padded, widest) * int64_t(sizeof(T)); }  // of a place in one part

  static int vectors(int64_t width) {  // of one panel
    const int64_t n = width / Simd<T>::lanes;
    return n >= 4 ? 4 : n >= 2 ? 2 : 1;
  }
  // body(first column, width) for each part of a tile.
  template <class Body>
  void each(const Body& body) const {
    for (int64_t o = 0, width; o < padded; o += width) {
      width = joined ? padded : vectors(min64(widest, padded - o)) * Simd<T>::lanes;
      body(o, width);
    }
  }
  // body(column, log2 of the vectors) for each panel of a run of taps in a part of this width.
  template <class Body>
  void panels(int64_t width, const Body& body) const {
    for (int64_t c = 0; c < width;) {
      const int n = vectors(min64(widest, width - c));
      body(c, Panels<T>::index(n));
      c += n * Simd<T>::lanes;
    }
  }
};

// The coefficients of (channel, tap, panel): where they lie if they can be used in place, else converted and padded.
template <class T>
class TapCoefficients {
 public:
  TapCoefficients(const cpu::ConvolutionLayer& layer, const Shape& shape, int64_t taps, int64_t padded)
      : l_(layer), s_(shape), taps_(taps), padded_(padded) {
    in_place_ = item_size(l_.weight_dtype) == int(sizeof(T)) && s_.out == padded_;
  }

  void prepare(const cpu::Executor& executor, bool parallel) {
    if (in_place_) return;
    packed_.reset(new T[size_t(s_.in * s_.coefficient_rows() * taps_ * padded_)]);
    execute(
        executor, parallel, s_.in,
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t c = begin; c < end; ++c) static_cast<TapCoefficients*>(self)->pack(c);
        },
        this);
  }

  Panel<T> panel(int64_t channel, int64_t tap, int64_t column) const {
    const bool has_base = l_.base_weight != nullptr;
    const int64_t ld = taps_ * padded_, at = tap * padded_ + column;
    if (!in_place_) {
      T* rows = packed_.get() + channel * s_.coefficient_rows() * ld + at;
      return {rows, rows + ld, ld, has_base ? 0 : ld};
    }
    T* rows = const_cast<T*>(static_cast<const T*>(l_.spline_weight)) + channel * s_.functions * ld + at;
    if (!has_base) return {rows, rows + ld, ld, ld};
    return {const_cast<T*>(static_cast<const T*>(l_.base_weight)) + channel * ld + at, rows, ld, 0};
  }

 private:
  void pack(int64_t channel) {
    T* row = packed_.get() + channel * s_.coefficient_rows() * taps_ * padded_;
    for (int64_t r = l_.base_weight ? -1 : 0; r < s_.functions; ++r) {
      const int64_t at = r < 0 ? channel : channel * s_.functions + r;
      for (int64_t tap = 0; tap < taps_; ++tap, row += padded_) {
        read_row(row, r < 0 ? l_.base_weight : l_.spline_weight, l_.weight_dtype, (at * taps_ + tap) * s_.out, s_.out,
                 1);
        for (int64_t o = s_.out; o < padded_; ++o) row[o] = T(0);
      }
    }
  }

  const cpu::ConvolutionLayer& l_;
  const Shape& s_;
  int64_t taps_, padded_;
  bool in_place_;
  std::unique_ptr<T[]> packed_;
};

// out[r * rows_ld + c * cols_ld] = in[r * in_row + c * in_col], rounded to the storage type; one of the ld is 1.
template <class T>
inline void write_matrix(void* out, DType dtype, int64_t rows_ld, int64_t cols_ld, const T* in, int64_t in_row,
                         int64_t in_col, int64_t rows, int64_t cols) {
  if (cols_ld == 1 && rows_ld != 1) return write_matrix(out, dtype, 1, rows_ld, in, in_col, in_row, cols, rows);
  if (item_size(dtype) == int(sizeof(T))) {
    read_transposed(static_cast<T*>(out), cols_ld, MatrixView{in, dtype, in_row, in_col}, 0, rows, 0, cols);
    return;
  }
  constexpr int64_t kPart = 64;
  T line[kPart];
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t r = 0; r < rows; r += kPart) {
      const int64_t n = min64(kPart, rows - r);
      for (int64_t j = 0; j < n; ++j) line[j] = in[(r + j) * in_row + c * in_col];
      write_row(out, dtype, c * cols_ld + r, line, n);
    }
  }
}

}  // namespace KAN_ISA
}  // namespace kan
