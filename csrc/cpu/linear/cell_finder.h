// Finds the cells of numbers that share their knots: each lane reads the bounds of its own cell.
#pragma once

#include <type_traits>

#include "cell_polynomials.h"
#include "lookup.h"

namespace kan {
namespace KAN_ISA {

// Where numbers lie among knots: the offsets of their entries' lines, and where in cells.
template <class T, int Size>
struct CellPlaces {
  alignas(64) int32_t lines[Size];
  alignas(64) T u[Size], w[Size];

  KAN_HD Place<T> at(int64_t b) const { return {load(u + b), load(w + b)}; }
};

// Where the tables lie in which lanes look their entries up: one for all lanes, or one for each, whose first line is at
// `first`, that of the same lane of the next vector `next` further, and that of the next entry `entry` further.
struct OneTable {};
template <class T>
struct TableOfEach {
  Offsets<T> first;
  int32_t next, entry;
};

// Of fewer than N knots.
template <class T, int N>
class CellFinder {
 public:
  template <int K>
  void load(const T* knots, const CellPolynomials<T, K, N>& tables) {
    n_knots_ = tables.n_knots();
    for (int t = 0; t < N; ++t) knots_[t] = t < n_knots_ ? knots[t] : std::numeric_limits<T>::quiet_NaN();
    even_ = tables.find_scale(scale_, shift_);
    for (int e = 0; e <= n_knots_; ++e) {
      bounds_.put(e, 0, tables.left(e)), bounds_.put(e, 1, tables.right(e)), bounds_.put(e, 2, tables.inverse_width(e));
    }
    for (int e : {0, n_knots_}) {
      if (even_) bounds_.put(e, 0, -kFar<T>), bounds_.put(e, 1, kFar<T>);
    }
  }

  // Of n numbers, a whole number of vectors.
  template <int Size, class Tables = OneTable>
  void find(const T* x, int64_t n, CellPlaces<T, Size>& places, const Tables& tables = {}) const {
    const bool found = even_ && find<true>(x, n, places.lines, places.u, places.w, tables);
    if (!found) find<false>(x, n, places.lines, places.u, places.w, tables);
  }

 private:
  using IVec = typename Simd<T>::IVec;
  static constexpr int L = Simd<T>::lanes;
  static constexpr bool kInRegisters = LineTable<T, N>::kInRegisters;

  // False if Even and a number lies elsewhere than in the cell that was computed, or at infinity.
  template <bool Even, class Tables>
  bool find(const T* x, int64_t n, int32_t* lines, T* u, T* w, const Tables& tables) const {
    if constexpr (kInRegisters) return find_places<Even>(x, n, lines, u, w, tables);
    for (int64_t b = 0; b < n; b += L) store_offsets<T>(lines + b, entries<Even>(KAN_ISA::load(x + b)) * kLine);
    const bool found = find_places<Even>(x, n, lines, u, w, OneTable());
    if constexpr (!std::is_same_v<Tables, OneTable>) {
      Tables at = tables;
      for (int64_t b = 0; b < n; b += L) store_offsets<T>(lines + b, next_lines(load_offsets<T>(lines + b) >> 2, at));
    }
    return found;
  }

  static KAN_HD Offsets<T> next_lines(Offsets<T> entry, OneTable) { return entry * kLine; }
  static KAN_HD Offsets<T> next_lines(Offsets<T> entry, TableOfEach<T>& tables) {
    const Offsets<T> lines = tables.first + entry * tables.entry;
    tables.first += tables.next;
    return lines;
  }

  // 0 for NaN.
  template <bool Even>
  KAN_HD Offsets<T> entries(Vec<T> v) const {
    if constexpr (Even) {
      return computed_entry<T>(v, broadcast(scale_), broadcast(shift_), n_knots_);
    } else {
      IVec count = IVec{};
      if constexpr (kInRegisters) {
        count = count_at_or_below<T, N == L>(knots_, v);
      } else {
        for (int t = 0; t < n_knots_; ++t) count -= (IVec)(v >= broadcast(knots_[t]));
      }
      return __builtin_convertvector(count, Offsets<T>);
    }
  }

  // Where offsets are read one by one they have a loop of their own: a load waits where its store is still underway.
  template <bool Even, class Tables>
  KAN_HD bool find_places(const T* x, int64_t n, int32_t* lines, T* u, T* w, Tables tables) const {
    const Vec<T> first = broadcast(knots_[0]), last = broadcast(knots_[n_knots_ - 1]);
    Vec<T> nearest_left = broadcast(T(1)), nearest_right = nearest_left;
    for (int64_t b = 0; b < n; b += L) {
      Vec<T> v = KAN_ISA::load(x + b), cell[3];
      if constexpr (kInRegisters) {
        const Offsets<T> entry = entries<Even>(v);
        store_offsets<T>(lines + b, next_lines(entry, tables));
        bounds_.template read<3>(entry, cell);
      } else {
        bounds_.template read<3>(lines + b, cell);
      }
      if constexpr (!Even) {  // infinities stay out of the arithmetic
        v = v < first ? first : v;
        v = v > last ? last : v;
      }
      const Vec<T> left = v - cell[0], right = cell[1] - v;
      nearest_left = left < nearest_left ? left : nearest_left;
      nearest_right = right < nearest_right ? right : nearest_right;
      store(u + b, left * cell[2]);
      store(w + b, right * cell[2]);
    }
    return !Even || !any_lane((IVec)(nearest_left < T(0)) | (IVec)(nearest_right <= T(0)));
  }

  int n_knots_ = 0;
  bool even_ = false;
  T scale_ = 0, shift_ = 0;
  alignas(64) T knots_[N];  // filled up with NaN
  LineTable<T, N> bounds_;
};

}  // namespace KAN_ISA
}  // namespace kan
