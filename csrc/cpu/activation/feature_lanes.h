// Activations of B-splines with short grids: lanes are features, rows are read and written as they lie (cells.h).
#pragma once

#include <vector>

#include "activation.h"
#include "block_rows.h"
#include "cells.h"

namespace kan {
namespace KAN_ISA {

constexpr int64_t kAhead = 6;  // rows that are fetched before they are read: each lies in a page of its own
constexpr int64_t kStage = 4;  // rows of which each step is done before the next: vectors to work on at once

// The polynomials of one head at the lanes' places, from their monomials.
template <int Degree>
KAN_HD Vec<float> spline_values(const float* splines, const int32_t* offsets, const Vec<float>* monomials) {
  Vec<float> c[kLine];
  read_lines<float>(splines, offsets, c);
  Vec<float> value = c[0] * monomials[0];
  KAN_UNROLL
  for (int j = 1; j <= Degree; ++j) value += c[j] * monomials[j];
  return value;
}

// v: [heads][kTileColumns]; row_scale, activation: may be null.
template <int K>
KAN_HD void values_of_row(const CellBlock& block, const Places& places, int64_t n, const float* row_scale,
                          const float* activation, float* v) {
  const float *const splines = block.splines, *const base_weights = block.base_weights;
  const int64_t heads = block.heads;
  for (int64_t f = 0; f < n; f += Simd<float>::lanes) {
    Vec<float> terms[K + 1];
    monomials<float, K>(places.at(f), terms);
    for (int64_t h = 0; h < heads; ++h) {
      Vec<float> value = spline_values<K>(splines + h * kLine, places.splines + f, terms);
      if (activation) value += load(activation + f) * load(base_weights + h * block.columns + f);
      if (row_scale) value *= load(row_scale + f);
      store(v + h * kTileColumns + f, value);
    }
  }
}

template <int K>
void feature_lanes_forward(const cpu::ActivationArgs& a, const Shape& s, const cpu::Executor& executor) {
  constexpr int L = Simd<float>::lanes;
  Arena memory(CellTables<K>::bytes(s, a.derivative), true);
  const CellTables<K> tables(a.layer, s, a.derivative, K, executor, memory);
  const bool base = s.base != kNoBase, scaled = a.row_scale.data != nullptr;
  const int64_t heads = s.out, part = rows_of_part(1);
  run_tasks(executor, s.batch * s.in * (3 + s.out) > kSerialCycles, s, Tasks::of_rows(s), [&](const Task& task) {
    const int64_t i = task.i0, n = task.i1 - i, padded = ceil_div(n, L) * L;
    Arena arena(2 * Arena::bytes_for<float>(BlockRows::floats(part)) + Arena::bytes_for<float>(heads * kTileColumns));
    BlockRows x(a.x, i, n, arena.take<float>(BlockRows::floats(part)));
    BlockRows row_scale(a.row_scale, i, n, arena.take<float>(BlockRows::floats(part)));
    float* const v = arena.take<float>(heads * kTileColumns);
    alignas(64) float activation[kStage][2 * kTileColumns];
    const CellBlock block = tables.block(i);
    const RowWriter writer(a.v, a.layer.weight_dtype, s.in, s.batch * heads * s.in, n);
    Places places[kStage];
    for_parts(task.first, task.last - task.first, part, [&](int64_t row0, int64_t rows) {
      x.read(row0, rows);
      if (scaled) row_scale.read(row0, rows);
      for_parts(0, rows, kStage, [&](int64_t b0, int64_t stage) {
        for (int64_t r = 0; r < stage; ++r) {
          x.fetch(min64(b0 + r + kAhead, task.last - 1 - row0));
          if (base) base_rows(s.base, x.row(b0 + r), padded, &a.derivative, 1, activation[r], kTileColumns);
        }
        block.locate(x.row(b0), x.stride(), stage, padded, places);
        for (int64_t r = 0; r < stage; ++r) {
          const float* const scale = scaled ? row_scale.row(b0 + r) : nullptr;
          values_of_row<K>(block, places[r], padded, scale, base ? activation[r] : nullptr, v);
          const int64_t row = (row0 + b0 + r) * heads;
          for (int64_t h = 0; h < heads; ++h) writer.write((row + h) * s.in + i, v + h * kTileColumns);
        }
      });
    });
    writer.finish();
  });
}

// The sums over the rows of g u^j w^(K-j), cell by cell: as many numbers as a cell has, whatever the basis' size. Their
// products with the basis' polynomials are the weights' gradients.
template <int K>
class CellMoments {
 public:
  // size: of the lines of all heads, 0 where there are none.
  CellMoments(int64_t size, int64_t heads, Arena& arena)
      : heads_(heads),
        size_(size),
        tile_(arena.take<float>(size_)),
        base_(arena.take<float>(heads * kTileColumns)),
        sums_(arena.take<double>(size_)) {
    std::memset(tile_, 0, size_t(size_) * sizeof(float));
    std::memset(base_, 0, size_t(heads * kTileColumns) * sizeof(float));
    std::memset(sums_, 0, size_t(size_) * sizeof(double));
  }
  static size_t bytes(int64_t size, int64_t heads) {
    return Arena::bytes_for<float>(size) + Arena::bytes_for<double>(size) +
           Arena::bytes_for<float>(heads * kTileColumns);
  }
  // Of the rows since the last add_tile, so few that they are summed in float; base: [heads][kTileColumns].
  float* tile() const { return tile_; }
  float* base() const { return base_; }

  void add_tile() {
    for (int64_t n = 0; n < size_; ++n) sums_[n] += double(tile_[n]);
    std::memset(tile_, 0, size_t(size_) * sizeof(float));
  }
  // out[e]: the sums of feature f and head h.
  void of(int64_t f, int64_t h, int entries, Line<double>* out) const {
    for (int e = 0; e < entries; ++e) {
      out[e] = *reinterpret_cast<const Line<double>*>(sums_ + ((f * entries + e) * heads_ + h) * kLine);
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
  float *moments, *base_moments, *result;
};

// Degree: of the splines' derivatives.
template <int K, int Degree, bool Input, bool Weight>
KAN_HD void gradients_of_row(const CellBlock& block, const Places& places, int64_t n, const GradientRow& to) {
  const GradientRow row = to;
  const float *const splines = block.splines, *const base_weights = block.base_weights;
  const int64_t heads = block.heads;
  for (int64_t f = 0; f < n; f += Simd<float>::lanes) {
    const Place<float> place = places.at(f);
    Vec<float> powers[Degree + 1], terms[K + 1], sum = Vec<float>{}, base_sum = Vec<float>{};
    monomials<float, Degree>(place, powers), monomials<float, K>(place, terms);
    for (int64_t h = 0; h < heads; ++h) {
      Vec<float> cotangent = load(row.g[h] + f);
      // An infinite base multiplies the sum over the heads: inf - inf would be NaN.
      if constexpr (Input) {
        sum += cotangent * spline_values<Degree>(splines + h * kLine, places.splines + f, powers);
        base_sum += cotangent * load(base_weights + h * block.columns + f);
      }
      if constexpr (Weight) {
        if (row.row_scale) cotangent *= load(row.row_scale + f);
        Vec<float> moment[kLine] = {};
        KAN_UNROLL
        for (int j = 0; j <= K; ++j) moment[j] = cotangent * terms[j];
        add_lines<float>(row.moments + h * kLine, places.splines + f, moment);
        float* const base_moment = row.base_moments + h * kTileColumns + f;
        if (row.activation) store(base_moment, load(base_moment) + cotangent * load(row.activation + f));
      }
    }
    if constexpr (Input) store(row.result + f, row.slope ? sum + load(row.slope + f) * base_sum : sum);
  }
}

template <int K, int Degree>
void feature_lanes_backward(const cpu::ActivationBackwardArgs& a, const Shape& s, const cpu::Executor& executor) {
  constexpr int L = Simd<float>::lanes;
  const bool base = s.base != kNoBase, scaled = a.row_scale.data != nullptr;
  const bool weight = a.d_spline != nullptr, input = a.input != nullptr;
  const int64_t heads = s.out, of_feature = int64_t(s.coefficient_rows()) * heads,
                size = weight ? s.in * of_feature : 0;
  const Tasks tasks = weight ? Tasks::of_sums(s, size) : Tasks::of_rows(s);
  const int derivative = input ? a.input_derivative : -1;  // of the splines' tables
  Arena memory(CellTables<K>::bytes(s, derivative) + Arena::bytes_for<double>(tasks.splits * size), true);
  const CellTables<K> tables(a.layer, s, derivative, Degree, executor, memory);
  double* const sums = memory.take<double>(tasks.splits * size);
  std::fill(sums, sums + tasks.splits * size, 0.0);
  const int orders[2] = {weight ? a.weight_derivative : a.input_derivative, a.input_derivative};
  const int n_orders = 1 + (weight && input);
  const int64_t part = rows_of_part(heads);
  run_tasks(executor, s.batch * s.in * (6 + 3 * s.out) > kSerialCycles, s, tasks, [&](const Task& task) {
    const int64_t i = task.i0, n = task.i1 - i, padded = ceil_div(n, L) * L;
    const CellBlock block = tables.block(i);
    const int64_t moments_size = weight ? block.splines_size() : 0;
    const int64_t copy = BlockRows::floats(part);
    Arena arena((2 + heads) * Arena::bytes_for<float>(copy) + CellMoments<K>::bytes(moments_size, heads));
    BlockRows x(a.x, i, n, arena.take<float>(copy)), row_scale(a.row_scale, i, n, arena.take<float>(copy));
    std::vector<MatrixView> views;
    std::vector<BlockRows> g;
    for (int64_t h = 0; h < heads; ++h) views.push_back(head(a, h));
    for (int64_t h = 0; h < heads; ++h) g.emplace_back(views[size_t(h)], i, n, arena.take<float>(copy));
    CellMoments<K> moments(moments_size, heads, arena);
    alignas(64) float activation[kStage][2 * kTileColumns], result[kTileColumns];
    std::vector<const float*> g_rows(static_cast<size_t>(heads));
    GradientRow row{g_rows.data(), nullptr, nullptr, nullptr, moments.tile(), moments.base(), result};
    const RowWriter writer(a.input, a.x.dtype, s.in, s.batch * s.in, n);
    double* const d_all = sums + task.split * size;
    Places places[kStage];
    task.for_tiles([&](int64_t tile0, int64_t tile_rows) {
      for_parts(tile0, tile_rows, part, [&](int64_t row0, int64_t rows) {
        x.read(row0, rows);
        if (scaled) row_scale.read(row0, rows);
        for (BlockRows& of_head : g) of_head.read(row0, rows);
        for_parts(0, rows, kStage, [&](int64_t b0, int64_t stage) {
          for (int64_t r = 0; r < stage; ++r) {
            const int64_t next = min64(b0 + r + kAhead, task.last - 1 - row0);
            x.fetch(next);
            for (const BlockRows& of_head : g) of_head.fetch(next);
            if (base) base_rows(s.base, x.row(b0 + r), padded, orders, n_orders, activation[r], kTileColumns);
          }
          block.locate(x.row(b0), x.stride(), stage, padded, places);
          for (int64_t r = 0; r < stage; ++r) {
            for (int64_t h = 0; h < heads; ++h) g_rows[size_t(h)] = g[size_t(h)].row(b0 + r);
            if (scaled) row.row_scale = row_scale.row(b0 + r);
            if (base) row.activation = activation[r], row.slope = activation[r] + (n_orders - 1) * kTileColumns;
            if (!weight) {
              gradients_of_row<K, Degree, true, false>(block, places[r], padded, row);
            } else if (!input) {
              gradients_of_row<K, Degree, false, true>(block, places[r], padded, row);
            } else {
              gradients_of_row<K, Degree, true, true>(block, places[r], padded, row);
            }
            if (input) writer.write((row0 + b0 + r) * s.in + i, result);
          }
        });
      });
      if (!weight) return;
      moments.add_tile();
      for (int64_t h = 0; base && h < heads; ++h) {
        for (int64_t f = 0; f < n; ++f) {
          d_all[(i + f) * of_feature + h] += double(moments.base()[h * kTileColumns + f]);
          moments.base()[h * kTileColumns + f] = 0.0f;
        }
      }
    });
    if (input) writer.finish();
    if (!weight) return;
    with_entries(s, [&](auto N) {
      ShortKnots<K, N()> knots;
      BasisLines<K, N()> basis;
      Line<double> lines[N()];
      for (int64_t f = 0; f < n; ++f) {
        if (!tables.repeats(i + f, i)) {
          knots.load(tables.grid(i + f), s.n_knots);
          basis.load(knots, a.weight_derivative, K);
        }
        for (int64_t h = 0; h < heads; ++h) {
          moments.of(f, h, block.entries(), lines);
          basis.add_gradient(d_all + (i + f) * of_feature + (base ? heads : 0) + h, heads, s.functions, lines);
        }
      }
    });
  });
  if (weight) write_sums(a, s, sums, tasks.splits);
}

// Whether features fill a vector, the tables have a layer's splines, and 32 bits the offsets of their lines.
inline bool takes_feature_lanes(const Shape& s) {
  const bool short_grid = s.local && s.order >= 1 && s.order <= kSmallOrder && s.n_knots <= kMostKnots;
  return short_grid && s.in >= Simd<float>::lanes && s.out <= INT32_MAX / (kTileColumns * (s.n_knots + 1) * kLine);
}

// call(order), as a constant.
template <class Call>
void with_short_order(const Shape& s, const Call& call) {
  if (s.order == 1) return call(std::integral_constant<int, 1>());
  if (s.order == 2) return call(std::integral_constant<int, 2>());
  call(std::integral_constant<int, 3>());
}

}  // namespace KAN_ISA
}  // namespace kan
