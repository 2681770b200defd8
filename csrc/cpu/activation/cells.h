// The tables of activations of B-splines with short grids, where lanes are features: each lane reads from memory a line
// with the coefficients of each head's polynomial in its own cell, and one with the cell's bounds, or these from
// registers where features share their knots.
//
// Entries are those of linear/cell_polynomials.h: entry e belongs to rows with e knots at or below x; the first entry
// and the last belong to no cell.
#pragma once

#include <memory>

#include "cpu/linear/cell_finder.h"
#include "tiles.h"

namespace kan {
namespace KAN_ISA {

constexpr int kCounted = 4;                          // knots that are counted at a time
constexpr int kShortEntries = (kMostKnots + 1) / 2;  // of the shorter tables

// call(entries of a table), as a constant.
template <class Call>
void with_entries(const Shape& s, const Call& call) {
  if (s.n_knots < kShortEntries) return call(std::integral_constant<int, kShortEntries>());
  call(std::integral_constant<int, kMostKnots + 1>());
}

template <int K, int N>
using ShortKnots = CellPolynomials<float, K, N>;

// Where the features of a row lie; lines: those of the first head's splines.
struct Places : CellPlaces<float, kTileColumns> {
  alignas(64) int32_t bounds[kTileColumns];  // used where knots are not shared
};

// What is known of the knots of a block.
struct BlockKnots {
  bool even = false;    // they lie so evenly that a cell can be computed from x
  bool shared = false;  // all features have the same: a finder knows them
  CellFinder<float, kShortEntries> shorter;
  CellFinder<float, kMostKnots + 1> longer;

  template <int N>
  auto& finder() {
    if constexpr (N == kShortEntries) {
      return shorter;
    } else {
      return longer;
    }
  }
};

// The features of one block. Bounds: [feature][entry][kLine], a cell's ends and the inverse of its width.
struct CellBlock {
  int64_t columns = 0;  // features that there is room for
  int n_knots = 0;
  int heads = 1;
  const BlockKnots* of_block = nullptr;
  // knots: [n_knots][columns], filled up with NaN to a whole number of kCounted; base_weights: [head][columns];
  // splines: [feature][entry][head][kLine]. Shared knots are not written here.
  const float *knots, *scale, *shift, *bounds, *splines, *base_weights;

  int entries() const { return n_knots + 1; }
  int64_t splines_size() const { return columns * entries() * heads * kLine; }

  // The places of n features, a whole number of vectors, in each of some rows, which lie a stride apart.
  void locate(const float* x, int64_t stride, int64_t rows, int64_t n, Places* places) const {
    const bool even = of_block->even;
    if (of_block->shared) {
      const int32_t entry = kLine * heads, feature = entries() * entry;
      const TableOfEach<float> tables{first_lines() * (kLine * heads), Simd<float>::lanes * feature, entry};
      for (int64_t r = 0; r < rows; ++r) {
        const float* const row = x + r * stride;
        n_knots < kShortEntries ? of_block->shorter.find(row, n, places[r], tables)
                                : of_block->longer.find(row, n, places[r], tables);
      }
      return;
    }
    for (int64_t r = 0; r < rows; ++r) {
      even ? find_lines<true>(x + r * stride, n, places[r]) : find_lines<false>(x + r * stride, n, places[r]);
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (even) {
        if (find_places<true>(x + r * stride, n, places[r])) continue;
        find_lines<false>(x + r * stride, n, places[r]);
      }
      find_places<false>(x + r * stride, n, places[r]);
    }
  }

 private:
  // The first lines of the lanes' tables of bounds, in lines; splines have one for each head where bounds have one.
  KAN_HD Simd<float>::IVec first_lines() const {
    Simd<float>::IVec first = {};
    KAN_UNROLL
    for (int l = 0; l < Simd<float>::lanes; ++l) first[l] = l * entries();
    return first;
  }
  // Writes the offsets. A loop of its own: they are read one by one, and a load waits where its store is still
  // underway.
  template <bool Even>
  KAN_HD void find_lines(const float* x, int64_t n, Places& places) const {
    using IVec = Simd<float>::IVec;
    constexpr int L = Simd<float>::lanes;
    const CellBlock self = *this;
    IVec first = first_lines();
    for (int64_t f = 0; f < n; f += L, first += L * self.entries()) {
      const Vec<float> v = load(x + f);
      IVec line = first;
      if constexpr (Even) {
        line += computed_entry<float>(v, load(self.scale + f), load(self.shift + f), self.n_knots);
      } else {  // how many knots are at or below x; 0 for NaN
        for (int t = 0; t < self.n_knots; t += kCounted) {
          KAN_UNROLL
          for (int c = 0; c < kCounted; ++c) line -= (IVec)(v >= load(self.knots + (t + c) * self.columns + f));
        }
      }
      *reinterpret_cast<IVec*>(places.bounds + f) = line * kLine;
      *reinterpret_cast<IVec*>(places.lines + f) = line * (kLine * self.heads);
    }
  }
  // Where features lie in the cells of their lines. False if Even and one lies elsewhere, at infinity or nowhere.
  template <bool Even>
  KAN_HD bool find_places(const float* x, int64_t n, Places& places) const {
    using IVec = Simd<float>::IVec;
    const float *const all = bounds, *const lowest = knots, *const highest = knots + (n_knots - 1) * columns;
    IVec elsewhere = {};
    for (int64_t f = 0; f < n; f += Simd<float>::lanes) {
      Vec<float> v = load(x + f), cell[3];
      read_lines<float, 3>(all, places.bounds + f, cell);
      if constexpr (Even) {
        elsewhere |= (IVec)(v < cell[0]) | ~(IVec)(v < cell[1]);
      } else {  // infinities stay out of the arithmetic
        v = v < load(lowest + f) ? load(lowest + f) : v;
        v = v > load(highest + f) ? load(highest + f) : v;
      }
      store(places.u + f, (v - cell[0]) * cell[2]);
      store(places.w + f, (cell[1] - v) * cell[2]);
    }
    return !Even || !any_lane(elsewhere);
  }
};

// The tables of all features, made once a call.
template <int K>
class CellTables {
 public:
  // derivative: of the splines, as polynomials of a degree; -1: none.
  CellTables(const Layer& layer, const Shape& s, int derivative, int degree, const cpu::Executor& executor,
             Arena& arena)
      : layer_(layer),
        s_(s),
        derivative_(derivative),
        degree_(degree),
        blocks_(new BlockKnots[size_t(ceil_div(s.in, kTileColumns))]),
        bounds_(bounds_size(s)),
        size_(block_size(s, derivative)),
        memory_(arena.take<float>(ceil_div(s.in, kTileColumns) * size_)) {
    run_tasks(executor, s.in * s.out * 200 > kSerialCycles, s, Tasks(s, 1), [&](const TaskRange& range) {
      range.for_blocks([&](const Block& block) {
        with_entries(s_, [&](auto entries) { load_block<entries()>(block.i, block.i + block.features); });
      });
    });
  }

  static size_t bytes(const Shape& s, int derivative) {
    return Arena::bytes_for<float>(ceil_div(s.in, kTileColumns) * block_size(s, derivative));
  }

  CellBlock block(int64_t i0) const {
    CellBlock b;
    const float* const start = memory_ + i0 / kTileColumns * size_;
    b.columns = columns(s_), b.n_knots = s_.n_knots, b.heads = int(s_.out);
    b.of_block = &blocks_[size_t(i0 / kTileColumns)];
    b.bounds = start, b.splines = start + bounds_;
    b.knots = start + size_ - (counted_knots(s_) + 2 + s_.out) * b.columns;
    b.scale = b.knots + counted_knots(s_) * b.columns, b.shift = b.scale + b.columns;
    b.base_weights = b.shift + b.columns;
    return b;
  }

  // Whether a feature of a block has the knots of the one before.
  bool repeats(int64_t i, int64_t first) const {
    const float* const own = grid(i);
    return i > first && std::equal(own, own + s_.n_knots, own - s_.n_knots);
  }
  const float* grid(int64_t i) const { return static_cast<const float*>(layer_.grid) + i * s_.n_knots; }

 private:
  static int64_t bounds_size(const Shape& s) { return columns(s) * (s.n_knots + 1) * kLine; }
  static int64_t columns(const Shape& s) {
    constexpr int64_t L = Simd<float>::lanes;
    return min64(kTileColumns, ceil_div(s.in, L) * L);
  }
  static int64_t counted_knots(const Shape& s) { return ceil_div(s.n_knots, kCounted) * kCounted; }
  static int64_t block_size(const Shape& s, int derivative) {
    return (counted_knots(s) + 2 + s.out) * columns(s) + (1 + (derivative < 0 ? 0 : s.out)) * bounds_size(s);
  }

  template <int N>
  void load_block(int64_t i0, int64_t i1) {
    const CellBlock block = this->block(i0);
    const auto to = [](const float* table) { return const_cast<float*>(table); };  // a block is written once, here
    std::memset(to(block.bounds), 0, size_t(size_) * sizeof(float));
    ShortKnots<K, N> knots;
    BasisLines<K, N> basis;
    const int64_t coefficients = s_.functions * s_.out, entries = block.entries();
    Arena arena(Arena::bytes_for<float>(coefficients) + Arena::bytes_for<float>(s_.out));
    float *const rows = arena.take<float>(coefficients), *const base = arena.take<float>(s_.out);
    std::fill(to(block.knots) + s_.n_knots * block.columns, to(block.scale), std::numeric_limits<float>::quiet_NaN());
    BlockKnots& of_block = blocks_[size_t(i0 / kTileColumns)];
    of_block.even = of_block.shared = true;
    for (int64_t i = i0 + 1; i < i1; ++i) of_block.shared = of_block.shared && repeats(i, i0);
    float scale = 0, shift = 0;
    for (int64_t f = 0; f < block.columns; ++f) {
      const int64_t i = i0 + f;
      float* const bounds = to(block.bounds) + f * entries * kLine;
      if (i >= i1) {  // padding
        for (int64_t e = 0; e < entries; ++e) open_bounds(bounds + e * kLine);
        continue;
      }
      if (!repeats(i, i0)) {
        knots.load(grid(i), s_.n_knots);
        if (derivative_ >= 0) basis.load(knots, derivative_, degree_);
        of_block.even = of_block.even && knots.find_scale(scale, shift);
        if (of_block.shared) of_block.finder<N>().load(grid(i), knots);
      }
      if (!of_block.shared) {
        to(block.scale)[f] = scale, to(block.shift)[f] = shift;
        for (int t = 0; t < s_.n_knots; ++t) to(block.knots)[t * block.columns + f] = grid(i)[t];
        for (int e = 0; e < int(entries); ++e) {
          bounds[e * kLine] = knots.left(e), bounds[e * kLine + 1] = knots.right(e);
          bounds[e * kLine + 2] = knots.inverse_width(e);
        }
        if (of_block.even) open_bounds(bounds), open_bounds(bounds + s_.n_knots * kLine);
      }
      if (layer_.base_weight) {
        read_row(base, layer_.base_weight, layer_.weight_dtype, i * s_.out, s_.out, 1);
        for (int64_t h = 0; h < s_.out; ++h) to(block.base_weights)[h * block.columns + f] = base[h];
      }
      if (derivative_ < 0) continue;
      read_row(rows, layer_.spline_weight, layer_.weight_dtype, i * coefficients, coefficients, 1);
      for (int64_t h = 0; h < s_.out; ++h) {
        basis.each_of_spline(rows + h, s_.out, s_.functions, [&](int e, Line<float> line) {
          *reinterpret_cast<Line<float>*>(to(block.splines) + ((f * entries + e) * s_.out + h) * kLine) = line;
        });
      }
    }
  }

  static void open_bounds(float* bounds) { bounds[0] = -kFar<float>, bounds[1] = kFar<float>; }

  const Layer& layer_;
  const Shape& s_;
  const int derivative_, degree_;
  const std::unique_ptr<BlockKnots[]> blocks_;
  const int64_t bounds_, size_;  // numbers: of the bounds of a block, of a block
  float* const memory_;
};

}  // namespace KAN_ISA
}  // namespace kan
