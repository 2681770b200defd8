// How a batch of activations is cut: tiles of rows and neighbouring features, whose columns a kernel sees.
#pragma once

#include <memory>

#include "cpu/linear/blocking.h"

namespace kan {
namespace KAN_ISA {

constexpr int kTileColumns = 64;                 // features of one tile: a few cache lines of each row
constexpr int64_t kTileRows = 256;               // its columns stay in the second-level cache
constexpr int64_t kTileStride = kTileRows + 16;  // no power of two: the columns must not share cache sets
constexpr int64_t kTaskRows = 1024;
constexpr int64_t kRangeBytes = int64_t(1) << 20;  // of the sums of a range: a second-level cache has room for them
constexpr int64_t kWantedTasks = 16;               // features alone make so many, or the rows of a sum are split too

// Past the caches, where the machine can; p is aligned to a whole vector. Needs finish_streams() at the end.
#if defined(__AVX512F__)
template <class T>
KAN_HD void stream(T* p, Vec<T> v) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
}
KAN_HD void finish_streams() { _mm_sfence(); }
#elif defined(__AVX2__)
template <class T>
KAN_HD void stream(T* p, Vec<T> v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
}
KAN_HD void finish_streams() { _mm_sfence(); }
#else
template <class T>
KAN_HD void stream(T* p, Vec<T> v) {
  store(p, v);
}
KAN_HD void finish_streams() {}
#endif

// Rows lie far apart, so that a store waits long for its line: those of matrices that no cache holds are streamed.
#if defined(KAN_STREAMED_BYTES)  // set from outside: tests stream small ones too
constexpr int64_t kStreamedBytes = KAN_STREAMED_BYTES;
#else
constexpr int64_t kStreamedBytes = int64_t(1) << 20;
#endif

// Whether a matrix of `total` numbers is too large for the caches, and vectors of its rows lie aligned.
template <class T>
bool is_streamed(const T* out, int64_t row_stride, int64_t total) {
  return total * int64_t(sizeof(T)) >= kStreamedBytes && row_stride % Simd<T>::lanes == 0 &&
         reinterpret_cast<uintptr_t>(out) % KAN_VECTOR_BYTES == 0;
}

// out[(row0 + b) * row_stride + column + c] = columns[c * ld + b], for n columns of a matrix of total_rows.
template <class T>
void write_columns(void* out, DType dtype, int64_t row_stride, int64_t total_rows, const T* columns, int64_t ld,
                   int64_t row0, int64_t rows, int64_t column, int64_t n) {
  constexpr int64_t L = Simd<T>::lanes;
  if (dtype != kDTypeOf<T>) {
    return write_rows<kTileColumns>(out, dtype, row_stride, columns, ld, row0, rows, column, n);
  }
  T* const to = static_cast<T*>(out) + row0 * row_stride + column;
  const int64_t squares = n / L * L;
  const bool streamed = is_streamed(to, row_stride, row_stride * total_rows);
  alignas(64) T lines[L * kTileColumns];  // whole lines reach memory together
  int64_t b = 0;
  for (; squares > 0 && b + L <= rows; b += L) {
    T* const corner = to + b * row_stride;
    for (int64_t c = 0; c < squares; c += L) {
      if (streamed) {
        transpose_square(lines + c, kTileColumns, columns + c * ld + b, ld);
      } else {
        transpose_square(corner + c, row_stride, columns + c * ld + b, ld);
      }
    }
    for (int64_t r = 0; streamed && r < L; ++r) {
      for (int64_t c = 0; c < squares; c += L) stream(corner + r * row_stride + c, load(lines + r * kTileColumns + c));
    }
  }
  if (streamed) finish_streams();
  for (int64_t r = 0; r < b; ++r) {
    for (int64_t c = squares; c < n; ++c) to[r * row_stride + c] = columns[c * ld + r];
  }
  for (; b < rows; ++b) {
    for (int64_t c = 0; c < n; ++c) to[b * row_stride + c] = columns[c * ld + b];
  }
}

// body(first, rows) for parts of some rows.
template <class Body>
void for_parts(int64_t row0, int64_t rows, int64_t part, const Body& body) {
  for (int64_t b = 0; b < rows; b += part) body(row0 + b, min64(part, rows - b));
}

// How the features and rows of a call become tasks; of a sum from the shape alone, so that its order is always the
// same.
struct Tasks {
  int64_t blocks, splits, rows_per_split;
  int64_t bytes = 1;  // of the sums of one block

  Tasks(const Shape& s, int64_t splits) : blocks(ceil_div(s.in, kTileColumns)), splits(max64(1, splits)) {
    rows_per_split = ceil_div(ceil_div(s.batch, this->splits), kTileRows) * kTileRows;
  }
  static Tasks of_rows(const Shape& s) { return {s, ceil_div(s.batch, kTaskRows)}; }
  static Tasks of_sums(const Shape& s, int64_t sums) {
    const int64_t wanted = ceil_div(kWantedTasks, max64(1, ceil_div(s.in, kTileColumns)));
    return {s, row_splits<double>(s, wanted, kTaskRows, sums)};
  }
  int64_t count() const { return blocks * splits; }
};

// Neighbouring features, at most kTileColumns.
struct Block {
  int64_t n, i, features;  // the n-th of all blocks, from feature i on

  Block(const Shape& s, int64_t n) : n(n), i(n * kTileColumns), features(min64(kTileColumns, s.in - i)) {}
};

// Tasks that a thread does together: those of neighbouring blocks on the rows of one split.
struct TaskRange {
  const Shape& s;
  int64_t split, first_block, blocks, first, last;

  // Of at most `count` tasks from one on.
  TaskRange(const Tasks& tasks, const Shape& s, int64_t task, int64_t count)
      : s(s),
        split(task / tasks.blocks),
        first_block(task % tasks.blocks),
        blocks(min64(min64(count, max64(1, kRangeBytes / tasks.bytes)), tasks.blocks - first_block)),
        first(min64(s.batch, split * tasks.rows_per_split)),
        last(min64(s.batch, first + tasks.rows_per_split)) {}

  // body(block) for every block.
  template <class Body>
  void for_blocks(const Body& body) const {
    for (int64_t n = first_block; n < first_block + blocks; ++n) body(Block(s, n));
  }
  // body(block, row0, rows) for every tile, all blocks of some rows before further rows: each row lies in a page of its
  // own, and a core stores where some two thousand pages are.
  template <class Body>
  void for_tiles(const Body& body) const {
    for_parts(first, last - first, kTileRows,
              [&](int64_t row0, int64_t rows) { for_blocks([&](const Block& block) { body(block, row0, rows); }); });
  }
};

// body(range) for all tasks.
template <class Body>
void run_tasks(const cpu::Executor& executor, bool parallel, const Shape& s, const Tasks& tasks, const Body& body) {
  struct Context {
    const Shape& s;
    const Tasks& tasks;
    const Body& body;
  } context{s, tasks, body};
  execute(
      executor, parallel, tasks.count(),
      [](int64_t begin, int64_t end, void* pointer) {
        const Context& c = *static_cast<const Context*>(pointer);
        while (begin < end) {
          const TaskRange range(c.tasks, c.s, begin, end - begin);
          c.body(range);
          begin += range.blocks;
        }
      },
      &context);
}

// Adds the splits' sums [split][in][coefficient_rows][out], the base row first, and writes them.
inline void write_sums(const cpu::ActivationBackwardArgs& a, const Shape& s, double* sums, int64_t splits) {
  const int64_t feature = int64_t(s.coefficient_rows()) * s.out, size = s.in * feature;
  for (int64_t split = 1; split < splits; ++split) add_row(sums, sums + split * size, size);
  for (int64_t i = 0; i < s.in; ++i) {
    const double* row = sums + i * feature;
    if (s.base != kNoBase) write_row(a.d_base, a.layer.weight_dtype, i * s.out, row, s.out), row += s.out;
    write_row(a.d_spline, a.layer.weight_dtype, i * s.functions * s.out, row, s.functions * s.out);
  }
}

// g of one head.
inline MatrixView head(const cpu::ActivationBackwardArgs& a, int64_t h) {
  MatrixView g = a.g;
  g.data = static_cast<const char*>(g.data) + h * a.head_stride * item_size(g.dtype);
  return g;
}

}  // namespace KAN_ISA
}  // namespace kan
