// The forward kernel of a convolution: tasks are boxes of outputs of one group, each with its tile of sums.
#pragma once

#include "rows.h"

namespace kan {
namespace KAN_ISA {

template <class T>
class ConvolutionForward {
 public:
  explicit ConvolutionForward(const cpu::ConvolutionArgs& args)
      : a_(args),
        s_(cpu::basis_layer(args.layer)),
        blocking_(args.layer),
        micro_(micro_kernels_for<T>(s_.n_values)),
        columns_(s_.out, micro_.widest),
        coefficients_(args.layer, s_, blocking_.taps, columns_.padded) {
    block_ = min64(kInputBlock, ceil_div(kSumInputs, max64(1, blocking_.taps)));
    if (cut() > 2 * Boxes::kLargestTile) {  // mostly rim: values are made for each tap rather
      blocking_ = ConvolutionBlocking(args.layer, true);
      cut();
    }
    chunk_ = columns_.joined ? 1 : min64(kChunk, block_);
  }

  void run(const cpu::Executor& executor) {
    const int64_t vectors = ceil_div(s_.out, Simd<T>::lanes);
    const bool parallel = blocking_.groups * blocking_.products() * s_.n_values * vectors > kSerialCycles;
    coefficients_.prepare(executor, parallel);
    execute(
        executor, parallel, blocking_.groups * boxes_.total(),
        [](int64_t begin, int64_t end, void* self) {
          for (int64_t t = begin; t < end; ++t) static_cast<const ConvolutionForward*>(self)->task(t);
        },
        this);
  }

 private:
  int64_t cut() {
    int64_t rim[kAxes];
    for (int a = 0; a < kAxes; ++a) boxes_.extent[a] = blocking_.axis[a].out, rim[a] = 2 * blocking_.axis[a].spread;
    const int64_t place_bytes = columns_.padded * int64_t(sizeof(T)) * (blocking_.channels > block_ ? 2 : 1);
    return boxes_.cut(rim, place_bytes, blocking_.groups);
  }

  static constexpr int kChunk = 4;  // channels whose values wait while one panel of the tile stays in cache

  void task(int64_t t) const {
    const int64_t group = t / boxes_.total();
    const Range4 outputs = boxes_.box(t % boxes_.total());
    Tile tile;
    for (int a = 0; a < kAxes; ++a) {
      tile.set(a, outputs.begin[a] - blocking_.axis[a].spread, outputs.end[a] + blocking_.axis[a].spread);
    }
    tile.close(true);
    const int64_t places = tile.positions(), values_size = int64_t(s_.n_values) * kRowStride;
    const int64_t tile_size = places * columns_.padded, blocks = ceil_div(blocking_.channels, block_);
    Arena arena(WindowRows<T>::bytes() +
                size_t(chunk_) * (EvaluatedRows<T>::bytes(s_.n_knots) + Arena::bytes_for<T>(values_size)) +
                Arena::bytes_for<T>(tile_size) * (blocks > 1 ? 2 : 1) + Arena::bytes_for<TapRun>(blocking_.taps));
    WindowRows<T> window;
    window.take(arena);
    EvaluatedRows<T> evaluated[kChunk];
    T* values[kChunk];
    for (int64_t c = 0; c < chunk_; ++c) {
      evaluated[c].take(arena, s_.n_knots);
      values[c] = arena.take<T>(values_size);
    }
    T* sums = arena.take<T>(tile_size);
    T* part = blocks > 1 ? arena.take<T>(tile_size) : sums;
    TapRun* runs = arena.take<TapRun>(blocking_.taps);

    start(sums, places, group);
    for (int64_t k = 0; k < blocking_.channels; k += block_) {
      const int64_t first = group * blocking_.channels + k, n_block = min64(block_, blocking_.channels - k);
      for (int64_t j = 0; blocks > 1 && j < tile_size; ++j) part[j] = T(0);
      for (int64_t n = 0; n < blocking_.classes(); ++n) {
        const PositionClass some(blocking_, n);
        const Range4 q = some.reaching(outputs);
        if (q.empty()) continue;
        const int64_t n_runs = tap_runs(runs, blocking_, some, tile, q.begin, columns_.joined);
        int64_t sizes[kAxes];
        window_sizes(sizes, blocking_, q, columns_.part_bytes());
        for_windows(q, sizes, [&](const Range4& w) {
          window.locate(blocking_, some, w, q.begin, tile, nullptr);
          window.read(a_.layer, blocking_, some, w, first, n_block);
          for (int64_t c0 = 0; c0 < n_block; c0 += chunk_) {
            const int64_t channels = min64(chunk_, n_block - c0);
            for (int64_t c = 0; c < channels; ++c) {
              const T* grid = static_cast<const T*>(a_.layer.grid) + (first + c0 + c) * s_.grid_columns;
              evaluated[c].sort(s_, window, c0 + c, grid);
              evaluate_rows(values[c], evaluated[c].sorted, s_, grid, 0, false);
            }
            contract(evaluated, values, first + c0, channels, runs, n_runs, part, places);
          }
        });
      }
      if (blocks > 1) add_row(sums, part, tile_size);
    }
    finish(sums, tile, outputs, group);
  }

  void contract(const EvaluatedRows<T>* evaluated, T* const* values, int64_t channel, int64_t channels,
                const TapRun* runs, int64_t n_runs, T* sums, int64_t places) const {
    MicroArgs<T> args{};
    columns_.each([&](int64_t o, int64_t width) {
      args.pitch = width;
      for (int64_t c = 0; c < channels; ++c) {
        args.values = values[c];
        args.row = evaluated[c].place;
        args.runs = evaluated[c].sorted.runs;
        args.n_runs = evaluated[c].sorted.n_runs;
        for (int64_t n = 0; n < n_runs; ++n) {
          columns_.panels(runs[n].count * width, [&](int64_t column, int index) {
            args.panel = coefficients_.panel(channel + c, runs[n].tap, o + column);
            args.tile = sums + places * o + runs[n].offset * width + column;
            micro_.forward[index](args);
          });
        }
      }
    });
  }

  // The tile starts as the bias.
  void start(T* sums, int64_t places, int64_t group) const {
    T bias[4 * Simd<T>::lanes];
    columns_.each([&](int64_t o, int64_t width) {
      const int64_t n = min64(width, s_.out - o);
      for (int64_t j = 0; j < width; ++j) bias[j] = T(0);
      if (a_.bias) read_row(bias, a_.bias, a_.layer.weight_dtype, group * s_.out + o, n, 1);
      T* out = sums + places * o;
      for (int64_t b = 0; b < places; ++b, out += width) {
        for (int64_t j = 0; j < width; j += Simd<T>::lanes) store(out + j, load(bias + j));
      }
    });
  }

  void finish(const T* sums, const Tile& tile, const Range4& outputs, int64_t group) const {
    const cpu::ImageStrides& y = a_.y_strides;
    columns_.each([&](int64_t o, int64_t width) {
      const int64_t n = min64(width, s_.out - o);
      const T* panel = sums + tile.positions() * o;
      for_lines(outputs, [&](const int64_t* at) {
        const int64_t to = image_offset(y, at) + (group * s_.out + o) * y.channel;
        void* out = static_cast<char*>(a_.y) + to * item_size(a_.layer.weight_dtype);
        write_matrix(out, a_.layer.weight_dtype, y.axis[2], y.channel, panel + tile.place(at) * width,
                     tile.pitch[3] * width, 1, outputs.length(3), n);
      });
    });
  }

  const cpu::ConvolutionArgs& a_;
  const Shape s_;
  ConvolutionBlocking blocking_;
  const MicroKernels<T>& micro_;
  const Columns<T> columns_;
  TapCoefficients<T> coefficients_;
  Boxes boxes_;
  int64_t chunk_, block_;  // block_: channels that are added up before they are added to y
};

}  // namespace KAN_ISA
}  // namespace kan
