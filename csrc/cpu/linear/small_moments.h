// What the weights' gradients of layers with few outputs are made of: sums over the rows of each cell.
#pragma once

#include "small_block.h"

namespace kan {
namespace KAN_ISA {

constexpr int64_t kMomentBlocks = 4;  // blocks of rows that are summed in the precision of the weights

// The moments of neighbouring features, as `BasisLines` takes them, and the sums of g base(x).
template <class T, int K>
class SmallMoments {
 public:
  // n: features that there is room for.
  SmallMoments(const Shape& s, int64_t n, Arena& arena)
      : out_(s.out),
        entries_(s.n_knots + 1),
        size_(n * out_ * entries_),
        base_size_(n * out_),
        lines_(arena.take<Line<T>>(kSets * size_)),
        base_(arena.take<Vec<T>>(base_size_)),
        sums_(arena.take<Line<double>>(size_)),
        base_sums_(arena.take<double>(base_size_)) {}
  static size_t bytes(const Shape& s, int64_t n) {
    const int64_t size = n * s.out * (s.n_knots + 1);
    return Arena::bytes_for<Line<T>>(kSets * size) + Arena::bytes_for<Line<double>>(size) +
           Arena::bytes_for<Vec<T>>(n * s.out) + Arena::bytes_for<double>(n * s.out);
  }
  void clear() {
    blocks_ = 0, flushed_ = false;
    std::fill(lines_, lines_ + kSets * size_, Line<T>{}), std::fill(base_, base_ + base_size_, Vec<T>{});
  }

  // Adds the rows of a block, of feature f. base, row_scale: may be null.
  void add(int64_t f, const SmallPlaces<T>& places, int64_t rows, const T* base, const T* row_scale, const T* g) {
    constexpr int L = Simd<T>::lanes;
    const int64_t out = out_, entries = entries_, size = size_;
    Line<T>* const own = lines_ + f * out * entries;
    Vec<T>* const own_base = base_ + f * out;
    for (int64_t b = 0; b < rows; b += L) {
      Vec<T> terms[kLine] = {};
      monomials<T, K>(places.at(b), terms);
      if (row_scale) {
        for (int i = 0; i <= K; ++i) terms[i] *= load(row_scale + b);
      }
      Line<T> term_lines[L];
      lines_of<T>(terms, term_lines);
      const int32_t* const at = places.lines + b;
      for (int64_t o = 0; o < out; ++o) {
        const T* const cotangent = g + o * kSmallRows + b;
        T* const to = reinterpret_cast<T*>(own + o * entries);
        KAN_UNROLL
        for (int l = 0; l < L; ++l) {
          *reinterpret_cast<Line<T>*>(to + l % kSets * size * kLine + at[l]) += term_lines[l] * cotangent[l];
        }
      }
      if (!base) continue;
      Vec<T> activation = load(base + b);
      if (row_scale) activation *= load(row_scale + b);
      for (int64_t o = 0; o < out; ++o) own_base[o] += activation * load(g + o * kSmallRows + b);
    }
  }

  // Ends a block: few of them are summed in float.
  void end_block() {
    if (sizeof(T) == sizeof(double) || ++blocks_ % kMomentBlocks != 0) return;
    if (!flushed_) {
      std::fill(sums_, sums_ + size_, Line<double>{}), std::fill(base_sums_, base_sums_ + base_size_, 0.0);
    }
    flushed_ = true;
    for (int64_t n = 0; n < size_; ++n) sums_[n] += of_sets(n);
    for (int64_t n = 0; n < base_size_; ++n) base_sums_[n] += double(sum_lanes<T>(base_[n]));
    std::fill(lines_, lines_ + kSets * size_, Line<T>{}), std::fill(base_, base_ + base_size_, Vec<T>{});
  }
  // out[e]: of feature f and output o.
  void of(int64_t f, int64_t o, Line<double>* out) const {
    const int64_t first = (f * out_ + o) * entries_;
    for (int64_t e = 0; e < entries_; ++e) out[e] = of_sets(first + e);
    for (int64_t e = 0; flushed_ && e < entries_; ++e) out[e] += sums_[first + e];
  }
  double base_of(int64_t f, int64_t o) const {
    const int64_t n = f * out_ + o;
    return double(sum_lanes<T>(base_[n])) + (flushed_ ? base_sums_[n] : 0.0);
  }

 private:
  static constexpr int kSets = 2;  // rows take turns: where neighbours lie in one cell, a sum waits for the one before

  Line<double> of_sets(int64_t n) const {
    Line<double> sum = __builtin_convertvector(lines_[n], Line<double>);
    KAN_UNROLL
    for (int set = 1; set < kSets; ++set) sum += __builtin_convertvector(lines_[set * size_ + n], Line<double>);
    return sum;
  }

  const int64_t out_, entries_, size_, base_size_;
  Line<T>* const lines_;
  Vec<T>* const base_;
  Line<double>* const sums_;
  double* const base_sums_;
  int64_t blocks_ = 0;
  bool flushed_ = false;
};

}  // namespace KAN_ISA
}  // namespace kan
