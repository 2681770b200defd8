// Activations of B-splines with short grids: lanes are features, rows are read and written as they lie (cells.h).
#pragma once

#include <new>

#include "activation.h"
#include "block_rows.h"
#include "cells.h"

namespace kan {
namespace KAN_ISA {

constexpr int64_t kAhead = 6;  // rows that are fetched before they are read: each lies in a page of its own
constexpr int64_t kStage = 4;  // rows of which each step is done before the next: vectors to work on at once

// The polynomials of one head at the lanes' places.
template <int Degree>
KAN_HD Vec<float> spline_values(const float* splines, const int32_t* offsets, const Place<float>& place) {
  Vec<float> c[kLine];
  read_lines<float, Degree + 1>(splines, offsets, c);
  return polynomial<float, Degree>(place, c);
}

// v: a row of each head; row_scale, activation: may be null. Heads: how many there are, 0: block.heads.
template <int K, int Heads>
KAN_HD void values_of_row(const CellBlock& block, const Places& places, int64_t n, const float* row_scale,
                          const float* activation, const RowTarget& v) {
  const RowTarget to = v;
  const float *const splines = block.splines, *const base_weights = block.base_weights;
  const int64_t heads = Heads ? Heads : block.heads, columns = block.columns;
  for (int64_t f = 0; f < n; f += Simd<float>::lanes) {
    const Place<float> place = places.at(f);
    for (int64_t h = 0; h < heads; ++h) {
      Vec<float> value = spline_values<K>(splines + h * kLine, places.lines + f, place);
      if (activation) value += load(activation + f) * load(base_weights + h * columns + f);
      if (row_scale) value *= load(row_scale + f);
      to.put(h, f, value);
    }
  }
}

template <int K, int Heads>
void feature_lanes_forward(const cpu::ActivationArgs& a, const Shape& s, const cpu::Executor& executor) {
  constexpr int L = Simd<float>::lanes;
  Arena memory(CellTables<K>::bytes(s, a.derivative), true);
  const CellTables<K> tables(a.layer, s, a.derivative, K, executor, memory);
  const bool base = s.base != kNoBase, scaled = a.row_scale.data != nullptr;
  const int64_t heads = s.out;
  run_tasks(executor, s.batch * s.in * (3 + s.out) > kSerialCycles, s, Tasks::of_rows(s), [&](const TaskRange& range) {
    const int64_t copy = BlockRows::floats(kTileRows);
    Arena arena(2 * Arena::bytes_for<float>(copy) + Arena::bytes_for<float>(heads * kTileColumns));
    float *const x_copy = arena.take<float>(copy), *const scale_copy = arena.take<float>(copy);
    float* const v_copies = arena.take<float>(heads * kTileColumns);
    alignas(64) float activation[kStage][2 * kTileColumns];
    Places places[kStage];
    range.for_tiles([&](const Block& features, int64_t row0, int64_t rows) {
      const int64_t i = features.i, n = features.features, padded = ceil_div(n, L) * L;
      const CellBlock block = tables.block(i);
      const RowWriter writer(a.v, a.layer.weight_dtype, s.in, s.batch * heads * s.in, n, heads, v_copies);
      BlockRows x(a.x, i, n, x_copy), row_scale(a.row_scale, i, n, scale_copy);
      x.read(row0, rows);
      if (scaled) row_scale.read(row0, rows);
      for_parts(0, rows, kStage, [&](int64_t b0, int64_t stage) {
        for (int64_t r = 0; r < stage; ++r) {
          x.fetch(b0 + r + kAhead, rows);
          if (base) base_rows(s.base, x.row(b0 + r), padded, &a.derivative, 1, activation[r], kTileColumns);
        }
        block.locate(x.row(b0), x.stride(), stage, padded, places);
        for (int64_t r = 0; r < stage; ++r) {
          const float* const scale = scaled ? row_scale.row(b0 + r) : nullptr;
          const int64_t offset = (row0 + b0 + r) * heads * s.in + i;
          values_of_row<K, Heads>(block, places[r], padded, scale, base ? activation[r] : nullptr,
                                  writer.target(offset));
          writer.finish_rows(offset);
        }
      });
      writer.finish();
    });
  });
}

// The sums over the rows of g u^j w^(K-j), cell by cell: as many numbers as a cell has, whatever the basis' size. Their
// products with the basis' polynomials are the weights' gradients.
class CellMoments {
 public:
  // size: of the lines of all heads in one of some blocks, 0 where there are none.
  CellMoments(int64_t size, int64_t blocks, int64_t heads, Arena& arena)
      : heads_(heads),
        size_(size),
        tile_(arena.take<float>(size)),
        base_(arena.take<float>(heads * kTileColumns)),
        sums_(arena.take<double>(blocks * size)) {
    std::memset(tile_, 0, size_t(size) * sizeof(float));
    std::memset(base_, 0, size_t(heads * kTileColumns) * sizeof(float));
    std::memset(sums_, 0, size_t(blocks * size) * sizeof(double));
  }
  static size_t bytes(int64_t size, int64_t blocks, int64_t heads) {
    return Arena::bytes_for<float>(size) + Arena::bytes_for<double>(blocks * size) +
           Arena::bytes_for<float>(heads * kTileColumns);
  }
  // Of one tile, whose rows are so few that they are summed in float; base: [heads][kTileColumns].
  float* tile() const { return tile_; }
  float* base() const { return base_; }

  // Ends a tile of the n-th block.
  void add_tile(int64_t n) {
    double* const sums = sums_ + n * size_;
    for (int64_t m = 0; m < size_; ++m) sums[m] += double(tile_[m]);
    std::memset(tile_, 0, size_t(size_) * sizeof(float));
  }
  // out[e]: the sums of feature f of the n-th block and of head h.
  void of(int64_t n, int64_t f, int64_t h, int entries, Line<double>* out) const {
    for (int e = 0; e < entries; ++e) {
      out[e] = *reinterpret_cast<const Line<double>*>(sums_ + n * size_ + ((f * entries + e) * heads_ + h) * kLine);
    }
  }

 private:
  const int64_t heads_, size_;
  float *const tile_, *const base_;
  double* const sums_;
};

// What the gradients of one row are made of, and where they go.
struct GradientRow {
  const float* const* g;                        // of each head
  const float *row_scale, *activation, *slope;  // or null; the base's value and derivative
  float *moments, *base_moments;
  RowTarget result;
};

// Degree: of the splines' derivatives.
template <int K, int Degree, int Heads, bool Input, bool Weight>
KAN_HD void gradients_of_row(const CellBlock& block, const Places& places, int64_t n, const GradientRow& to) {
  const GradientRow row = to;
  const float *const splines = block.splines, *const base_weights = block.base_weights;
  const int64_t heads = Heads ? Heads : block.heads, columns = block.columns;
  for (int64_t f = 0; f < n; f += Simd<float>::lanes) {
    const Place<float> place = places.at(f);
    Vec<float> sum = Vec<float>{}, base_sum = Vec<float>{};
    for (int64_t h = 0; h < heads; ++h) {
      Vec<float> cotangent = load(row.g[h] + f);
      // An infinite base multiplies the sum over the heads: inf - inf would be NaN.
      if constexpr (Input) {
        sum += cotangent * spline_values<Degree>(splines + h * kLine, places.lines + f, place);
        base_sum += cotangent * load(base_weights + h * columns + f);
      }
      if constexpr (Weight) {
        if (row.row_scale) cotangent *= load(row.row_scale + f);
        Vec<float> of_cell[kLine] = {};
        moments<float, K>(place, cotangent, of_cell);
        add_lines<float>(row.moments + h * kLine, places.lines + f, of_cell);
        float* const base_moment = row.base_moments + h * kTileColumns + f;
        if (row.activation) store(base_moment, load(base_moment) + cotangent * load(row.activation + f));
      }
    }
    if constexpr (Input) row.result.put(0, f, row.slope ? sum + load(row.slope + f) * base_sum : sum);
  }
}

template <int K, int Degree, int Heads>
void feature_lanes_backward(const cpu::ActivationBackwardArgs& a, const Shape& s, const cpu::Executor& executor) {
  constexpr int L = Simd<float>::lanes;
  const bool base = s.base != kNoBase, scaled = a.row_scale.data != nullptr;
  const bool weight = a.d_spline != nullptr, input = a.input != nullptr;
  const int64_t heads = s.out, of_feature = int64_t(s.coefficient_rows()) * heads,
                size = weight ? s.in * of_feature : 0;
  Tasks tasks = weight ? Tasks::of_sums(s, size) : Tasks::of_rows(s);
  const int derivative = input ? a.input_derivative : -1;  // of the splines' tables
  Arena memory(CellTables<K>::bytes(s, derivative) + Arena::bytes_for<double>(tasks.splits * size), true);
  const CellTables<K> tables(a.layer, s, derivative, Degree, executor, memory);
  if (weight) tasks.bytes = tables.block(0).splines_size() * int64_t(sizeof(double));
  double* const sums = memory.take<double>(tasks.splits * size);
  std::fill(sums, sums + tasks.splits * size, 0.0);
  const int orders[2] = {weight ? a.weight_derivative : a.input_derivative, a.input_derivative};
  const int n_orders = 1 + (weight && input);
  const int64_t part = rows_of_part(heads);
  run_tasks(executor, s.batch * s.in * (6 + 3 * s.out) > kSerialCycles, s, tasks, [&](const TaskRange& range) {
    const int64_t moments_size = weight ? tables.block(0).splines_size() : 0, copy = BlockRows::floats(part);
    Arena arena(2 * Arena::bytes_for<float>(copy) + Arena::bytes_for<float>(heads * copy) +
                Arena::bytes_for<BlockRows>(heads) + Arena::bytes_for<const float*>(heads) +
                CellMoments::bytes(moments_size, range.blocks, heads));
    float *const x_copy = arena.take<float>(copy), *const scale_copy = arena.take<float>(copy);
    float* const g_copies = arena.take<float>(heads * copy);
    BlockRows* const g = arena.take<BlockRows>(heads);  // of each head
    const float** const g_rows = arena.take<const float*>(heads);
    CellMoments moments(moments_size, range.blocks, heads, arena);
    alignas(64) float activation[kStage][2 * kTileColumns], result_copy[kTileColumns];
    GradientRow row{g_rows, nullptr, nullptr, nullptr, moments.tile(), moments.base(), {}};
    double* const d_all = sums + range.split * size;
    Places places[kStage];
    range.for_tiles([&](const Block& features, int64_t tile0, int64_t tile_rows) {
      const int64_t i = features.i, n = features.features, padded = ceil_div(n, L) * L;
      const CellBlock block = tables.block(i);
      const RowWriter writer(a.input, a.x.dtype, s.in, s.batch * s.in, n, 1, result_copy);
      BlockRows x(a.x, i, n, x_copy), row_scale(a.row_scale, i, n, scale_copy);
      for (int64_t h = 0; h < heads; ++h) new (g + h) BlockRows(head(a, h), i, n, g_copies + h * copy);
      for_parts(tile0, tile_rows, part, [&](int64_t row0, int64_t rows) {
        x.read(row0, rows);
        if (scaled) row_scale.read(row0, rows);
        for (int64_t h = 0; h < heads; ++h) g[h].read(row0, rows);
        for_parts(0, rows, kStage, [&](int64_t b0, int64_t stage) {
          for (int64_t r = 0; r < stage; ++r) {
            const int64_t ahead = b0 + r + kAhead, of_tile = tile0 + tile_rows - row0;
            x.fetch(ahead, of_tile);
            for (int64_t h = 0; h < heads; ++h) g[h].fetch(ahead, of_tile);
            if (base) base_rows(s.base, x.row(b0 + r), padded, orders, n_orders, activation[r], kTileColumns);
          }
          block.locate(x.row(b0), x.stride(), stage, padded, places);
          for (int64_t r = 0; r < stage; ++r) {
            for (int64_t h = 0; h < heads; ++h) g_rows[h] = g[h].row(b0 + r);
            if (scaled) row.row_scale = row_scale.row(b0 + r);
            const int64_t offset = (row0 + b0 + r) * s.in + i;
            if (input) row.result = writer.target(offset);
            if (base) row.activation = activation[r], row.slope = activation[r] + (n_orders - 1) * kTileColumns;
            if (!weight) {
              gradients_of_row<K, Degree, Heads, true, false>(block, places[r], padded, row);
            } else if (!input) {
              gradients_of_row<K, Degree, Heads, false, true>(block, places[r], padded, row);
            } else {
              gradients_of_row<K, Degree, Heads, true, true>(block, places[r], padded, row);
            }
            if (input) writer.finish_rows(offset);
          }
        });
      });
      if (input) writer.finish();
      if (!weight) return;
      moments.add_tile(features.n - range.first_block);
      for (int64_t h = 0; base && h < heads; ++h) {
        for (int64_t f = 0; f < n; ++f) {
          d_all[(i + f) * of_feature + h] += double(moments.base()[h * kTileColumns + f]);
          moments.base()[h * kTileColumns + f] = 0.0f;
        }
      }
    });
    if (!weight) return;
    with_entries(s, [&](auto N) {
      ShortKnots<K, N()> knots;
      BasisLines<K, N()> basis;
      Line<double> lines[N()];
      range.for_blocks([&](const Block& features) {
        const int64_t i = features.i;
        for (int64_t f = 0; f < features.features; ++f) {
          if (!tables.repeats(i + f, i)) {
            knots.load(tables.grid(i + f), s.n_knots);
            basis.load(knots, a.weight_derivative, K);
          }
          for (int64_t h = 0; h < heads; ++h) {
            moments.of(features.n - range.first_block, f, h, s.n_knots + 1, lines);
            basis.add_gradient(d_all + (i + f) * of_feature + (base ? heads : 0) + h, heads, s.functions, lines);
          }
        }
      });
    });
  });
  if (weight) write_sums(a, s, sums, tasks.splits);
}

// Whether features fill a vector, the tables have a layer's splines, and 32 bits the offsets of their lines.
inline bool takes_feature_lanes(const Shape& s) {
  const bool short_grid = s.local && s.order >= 1 && s.order <= kSmallOrder && s.n_knots <= kMostKnots;
  return short_grid && s.in >= Simd<float>::lanes && s.out <= INT32_MAX / (kTileColumns * (s.n_knots + 1) * kLine);
}

// call(order, heads), as constants; heads: 1, or 0 for any.
template <int K = 3, class Call>
void with_short_order(const Shape& s, const Call& call) {
  if constexpr (K > 1) {
    if (s.order != K) return with_short_order<K - 1>(s, call);
  }
  const std::integral_constant<int, K> order;
  s.out == 1 ? call(order, std::integral_constant<int, 1>()) : call(order, std::integral_constant<int, 0>());
}

}  // namespace KAN_ISA
}  // namespace kan
