// The gradients of a convolution in one pass over x and g: tasks are blocks of channels times splits of the images, so
// that every task owns its results and no sum depends on the number of threads.
#pragma once

#include "rows.h"

namespace kan {
namespace KAN_ISA {

template <class T>
class ConvolutionBackward {
 public:
  explicit ConvolutionBackward(const cpu::ConvolutionBackwardArgs& args)
      : a_(args),
        s_(cpu::basis_layer(args.layer)),
        blocking_(args.layer),
        micro_(micro_kernels_for<T>(s_.n_values)),
        columns_(s_.out, micro_.widest),
        coefficients_(args.layer, s_, blocking_.taps, columns_.padded),
        weight_(args.d_spline != nullptr),
        input_(args.dx != nullptr) {
    int64_t rim[kAxes];
    for (int a = 0; a < kAxes; ++a) {
      const AxisBlocking& axis = blocking_.axis[a];
      boxes_.extent[a] = ceil_div(axis.size, axis.stride), rim[a] = axis.high - axis.low;
    }
    boxes_.cut(rim, columns_.padded * int64_t(sizeof(T)), blocking_.groups);
    blocks_ = ceil_div(blocking_.channels, kInputBlock);
    ld_ = blocking_.taps * columns_.padded;
    channel_size_ = s_.coefficient_rows() * ld_;
    const int64_t affordable = kPartialBytes / max64(1, s_.in * channel_size_ * int64_t(sizeof(T)));
    const int64_t wanted = ceil_div(Boxes::kParts, blocking_.groups * blocks_);
    splits_ = max64(1, min64(boxes_.total(), weight_ ? min64(wanted, affordable) : boxes_.total()));
  }

  void run(const cpu::Executor& executor) {
    const int64_t vectors = ceil_div(s_.out, Simd<T>::lanes) * (weight_ + input_);
    const bool parallel = blocking_.groups * blocking_.products() * s_.n_values * vectors > kSerialCycles;
    if (input_) coefficients_.prepare(executor, parallel);
    if (weight_) partials_.reset(new T[size_t(splits_ * s_.in * channel_size_)]);
    execute(
        executor, parallel, blocking_.groups * blocks_ * splits_,
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t t = begin; t < end; ++t) static_cast<const ConvolutionBackward*>(self)->task(t);
        },
        this);
    if (!weight_) return;
    execute(
        executor, parallel, s_.in,
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t c = begin; c < end; ++c) static_cast<const ConvolutionBackward*>(self)->reduce(c);
        },
        this);
  }

 private:
  // What one task works on.
  struct Work {
    int64_t group, channel, channels;
    T* sums;    // [channels][coefficient_rows][taps][padded], the base row first
    T* g;       // the tile
    T* slopes;  // of x: [channels][places of a box of x]
    Tile tile, box;
    TapRun* runs;
    int64_t n_runs;
    WindowRows<T> window;
    EvaluatedRows<T> evaluated;
    T *weight_values, *input_values, *partial, *scale;
    int32_t* aside;  // sorted rows where a function is not finite,
    T* aside_base;   // and the base there
  };

  void task(int64_t t) const {
    Work w;
    const int64_t split = t % splits_, block = t / splits_ % blocks_;
    w.group = t / splits_ / blocks_;
    w.channel = w.group * blocking_.channels + block * kInputBlock;
    w.channels = min64(kInputBlock, blocking_.channels - block * kInputBlock);
    const int64_t per_split = ceil_div(boxes_.total(), splits_), first = min64(boxes_.total(), split * per_split);
    const int64_t last = min64(boxes_.total(), first + per_split);

    int64_t places = 1, box_places = 1;
    for (int a = 0; a < kAxes; ++a) {
      const AxisBlocking& axis = blocking_.axis[a];
      places *= boxes_.size[a] + axis.high - axis.low;
      box_places *= min64(axis.size, boxes_.size[a] * axis.stride);
    }
    const int64_t values_size = int64_t(s_.n_values) * kRowStride;
    Arena arena(WindowRows<T>::bytes() + EvaluatedRows<T>::bytes(s_.n_knots) + 2 * Arena::bytes_for<T>(values_size) +
                Arena::bytes_for<T>(kRowStride * Simd<T>::lanes) + 2 * Arena::bytes_for<T>(kRowStride) +
                Arena::bytes_for<int32_t>(kRowStride) + Arena::bytes_for<T>(places * columns_.padded) +
                Arena::bytes_for<T>(input_ ? w.channels * box_places : 0) + Arena::bytes_for<TapRun>(blocking_.taps));
    w.window.take(arena);
    w.evaluated.take(arena, s_.n_knots);
    w.weight_values = arena.take<T>(values_size);
    w.input_values = arena.take<T>(values_size);
    w.partial = arena.take<T>(kRowStride * Simd<T>::lanes);
    w.scale = arena.take<T>(kRowStride);
    w.aside_base = arena.take<T>(kRowStride);
    w.aside = arena.take<int32_t>(kRowStride);
    w.g = arena.take<T>(places * columns_.padded);
    w.slopes = arena.take<T>(input_ ? w.channels * box_places : 0);
    w.runs = arena.take<TapRun>(blocking_.taps);
    if (weight_) {
      w.sums = partials_.get() + (split * s_.in + w.channel) * channel_size_;
      for (int64_t j = 0; j < w.channels * channel_size_; ++j) w.sums[j] = T(0);
    }
    for (int64_t n = first; n < last; ++n) one_box(w, boxes_.box(n));
  }

  void one_box(Work& w, const Range4& box) const {
    for (int a = 0; a < kAxes; ++a) {
      const AxisBlocking& axis = blocking_.axis[a];
      w.tile.set(a, box.begin[a] - axis.high, box.end[a] - axis.low);
      w.box.set(a, box.begin[a] * axis.stride, min64(axis.size, box.end[a] * axis.stride));
    }
    w.tile.close(true), w.box.close(false);
    pack_cotangents(w);
    for (int64_t j = 0; input_ && j < w.channels * w.box.positions(); ++j) w.slopes[j] = T(0);
    for (int64_t n = 0; n < blocking_.classes(); ++n) {
      const PositionClass part(blocking_, n);
      const Range4 q = part.inside(box);
      if (q.empty()) continue;
      w.n_runs = tap_runs(w.runs, blocking_, part, w.tile, q.begin, columns_.joined);
      int64_t sizes[kAxes];
      window_sizes(sizes, blocking_, q, columns_.part_bytes());
      for_windows(q, sizes, [&](const Range4& range) {
        w.window.locate(blocking_, part, range, q.begin, w.tile, input_ ? &w.box : nullptr);
        w.window.read(a_.layer, blocking_, part, range, w.channel, w.channels);
        for (int64_t c = 0; c < w.channels; ++c) one_channel(w, c);
      });
    }
    if (input_) write_slopes(w);
  }

  void one_channel(Work& w, int64_t c) const {
    const T* grid = static_cast<const T*>(a_.layer.grid) + (w.channel + c) * s_.grid_columns;
    const SortedRows<T>& sorted = w.evaluated.sorted;
    w.evaluated.sort(s_, w.window, c, grid);
    T* const values[2] = {w.weight_values, w.input_values};
    const int orders[2] = {0, 1};
    evaluate_orders(values + !weight_, orders + !weight_, weight_ + input_, sorted, s_, grid);
    const int64_t n_aside = weight_ ? set_aside(w) : 0;
    const Run* outside = input_ && s_.base != kNoBase ? sorted.find_special(outside_cell(s_.n_knots)) : nullptr;
    // Outside the knots only the base is left, and it can be infinite: it multiplies the sum over taps and outputs,
    // since infinity times the zeros around the tile would be NaN.
    for (int q = outside ? outside->begin : 0; outside && q < outside->end; ++q) {
      w.scale[q] = w.input_values[q], w.input_values[q] = T(1);
    }
    MicroArgs<T> args{};
    args.row = w.evaluated.place;
    args.runs = sorted.runs;
    args.n_runs = sorted.n_runs;
    args.partial = w.partial;
    args.start = true;
    T* sums = weight_ ? w.sums + c * channel_size_ : nullptr;
    columns_.each([&](int64_t o, int64_t width) {
      args.pitch = width;
      for (int64_t n = 0; n < w.n_runs; ++n) {
        const TapRun run = w.runs[n];
        columns_.panels(run.count * width, [&](int64_t column, int index) {
          args.tile = w.g + w.tile.positions() * o + run.offset * width + column;
          if (weight_) {
            args.values = w.weight_values;
            args.panel = sums_panel(sums + run.tap * columns_.padded + o + column);
            micro_.weight[index](args);
          }
          if (input_) {
            args.values = w.input_values;
            args.panel = coefficients_.panel(w.channel + c, run.tap, o + column);
            micro_.input[index](args);
            args.start = false;
          }
        });
      }
    });
    for (int64_t i = 0; i < n_aside; ++i) add_aside(w, sums, i);
    if (input_) add_slopes(w, w.slopes + c * w.box.positions(), outside);
  }

  Panel<T> sums_panel(T* rows) const { return {rows, rows + ld_, ld_, s_.base != kNoBase ? 0 : ld_}; }

  // Takes rows where a function is not finite out of the products: times the zeros around the tile they were NaN.
  int64_t set_aside(Work& w) const {
    int64_t n = 0;
    for (const int cell : {outside_cell(s_.n_knots), nan_cell(s_.n_knots)}) {
      const Run* run = w.evaluated.sorted.find_special(cell);
      for (int q = run ? run->begin : 0; run && q < run->end; ++q) {
        const T x = w.evaluated.sorted.x[q];
        if (x - x == T(0)) continue;
        w.aside[n] = q, w.aside_base[n++] = w.weight_values[q];
        for (int j = 0; j < s_.n_values; ++j) w.weight_values[j * kRowStride + q] = T(0);
      }
    }
    return n;
  }

  // Such a row meets the taps that see it one by one. A NaN has no window: it makes every function NaN.
  void add_aside(const Work& w, T* sums, int64_t i) const {
    const T x = w.evaluated.sorted.x[w.aside[i]];
    for (int64_t n = 0; n < w.n_runs; ++n) {
      for (int64_t t = 0; t < w.runs[n].count; ++t) {
        const int64_t place = w.evaluated.place[w.aside[i]] + w.runs[n].offset + t;
        if (!is_output(w.tile, place)) continue;
        T* row = sums + (w.runs[n].tap + t) * columns_.padded;
        if (s_.base != kNoBase) {
          columns_.each([&](int64_t o, int64_t width) {
            const T* g = w.g + w.tile.positions() * o + place * width;
            for (int64_t j = 0; j < width; ++j) row[o + j] += w.aside_base[i] * g[j];
          });
          row += ld_;
        }
        for (int64_t r = 0; x != x && r < s_.functions; ++r) {
          for (int64_t o = 0; o < columns_.padded; ++o) row[r * ld_ + o] = T(__builtin_nan(""));
        }
      }
    }
  }

  bool is_output(const Tile& tile, int64_t place) const {
    int64_t at[kAxes];
    tile.find(at, place);
    for (int a = 0; a < kAxes; ++a) {
      if (at[a] < 0 || at[a] >= blocking_.axis[a].out) return false;
    }
    return true;
  }

  // Lane sums of the sorted rows, added up where each row has its home.
  void add_slopes(const Work& w, T* slopes, const Run* outside) const {
    constexpr int L = Simd<T>::lanes;
    const SortedRows<T>& sorted = w.evaluated.sorted;
    T sums[L];
    for (int q = 0; q < sorted.rows; q += L) {  // partial is padded: surplus sums are not used
      sum_rows<T>(sums, w.partial + int64_t(q) * L);
      const int n = sorted.rows - q < L ? sorted.rows - q : L;
      for (int r = 0; r < n; ++r) {
        const bool scaled = outside && q + r >= outside->begin && q + r < outside->end;
        slopes[w.window.home[sorted.row[q + r]]] += scaled ? sums[r] * w.scale[q + r] : sums[r];
      }
    }
  }

  void write_slopes(const Work& w) const {
    const cpu::ImageStrides& s = a_.dx_strides;
    const Range4 box = w.box.range();
    for_lines(box, [&](const int64_t* at) {
      const int64_t to = image_offset(s, at) + w.channel * s.channel;
      void* out = static_cast<char*>(a_.dx) + to * item_size(a_.layer.x_dtype);
      write_matrix(out, a_.layer.x_dtype, s.axis[2], s.channel, w.slopes + w.box.place(at), 1, w.box.positions(),
                   box.length(3), w.channels);
    });
  }

  void pack_cotangents(const Work& w) const {
    Range4 inner = w.tile.range();
    for (int a = 0; a < kAxes; ++a) {
      inner.begin[a] = max64(0, inner.begin[a]), inner.end[a] = min64(blocking_.axis[a].out, inner.end[a]);
    }
    const int64_t places = w.tile.positions(), size = places * columns_.padded;
    for (int64_t j = 0; j < size; j += Simd<T>::lanes) store(w.g + j, Vec<T>{});
    if (inner.empty()) return;
    const cpu::ImageStrides& s = a_.g_strides;
    const DType dtype = a_.layer.weight_dtype;
    columns_.each([&](int64_t o, int64_t width) {
      const int64_t n = min64(width, s_.out - o), ld = w.tile.pitch[3] * width;
      for_lines(inner, [&](const int64_t* at) {
        const int64_t from = image_offset(s, at) + (w.group * s_.out + o) * s.channel;
        const MatrixView view{at_element(a_.g, dtype, from), dtype, s.channel, s.axis[2]};
        T* out = w.g + places * o + w.tile.place(at) * width;
        read_transposed(out, ld, view, 0, n, 0, inner.length(3));
      });
    });
  }

  // Adds the splits of one channel in their order and writes its gradients.
  void reduce(int64_t channel) const {
    T* total = partials_.get() + channel * channel_size_;
    for (int64_t split = 1; split < splits_; ++split) {
      add_row(total, partials_.get() + (split * s_.in + channel) * channel_size_, channel_size_);
    }
    const T* row = total;
    for (int64_t r = s_.base != kNoBase ? -1 : 0; r < s_.functions; ++r) {
      const int64_t at = r < 0 ? channel : channel * s_.functions + r;
      for (int64_t tap = 0; tap < blocking_.taps; ++tap, row += columns_.padded) {
        write_row(r < 0 ? a_.d_base : a_.d_spline, a_.layer.weight_dtype, (at * blocking_.taps + tap) * s_.out, row,
                  s_.out);
      }
    }
  }

  const cpu::ConvolutionBackwardArgs& a_;
  const Shape s_;
  const ConvolutionBlocking blocking_;
  const MicroKernels<T>& micro_;
  const Columns<T> columns_;
  TapCoefficients<T> coefficients_;
  const bool weight_, input_;
  Boxes boxes_;
  int64_t blocks_, ld_, channel_size_, splits_;  // ld: between rows of sums
  std::unique_ptr<T[]> partials_;
};

}  // namespace KAN_ISA
}  // namespace kan
