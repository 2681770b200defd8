// Which positions of an image meet which taps of a kernel, and how images are cut into boxes and windows.
//
// Four axes: the images themselves, as an axis with one tap, and three axes of an image. Positions fall into classes by
// their residue modulo the stride: position q * stride + residue meets the taps of its class, and through the tap of
// shift s it meets the output q - s. So in a tile of outputs that is padded at its edges every tap is one offset.
#pragma once

#include <memory>

#include "cpu/linear/blocking.h"

namespace kan {
namespace KAN_ISA {

constexpr int kAxes = 4;

// Of one axis.
struct TapClass {
  int64_t residue;
  int64_t first, count;  // its taps, in AxisBlocking's lists
  int64_t low, high;     // the smallest and the largest shift
  int64_t begin, end;    // of q, for all outputs
};

class AxisBlocking {
 public:
  std::unique_ptr<int64_t[]> tap, shift;
  std::unique_ptr<TapClass[]> classes;
  int64_t n_classes = 0;
  int64_t low = 0, high = 0;  // of all shifts
  int64_t spread = 0;         // the largest high - low of a class
  int64_t size, stride, out, kernel;

  // apart: each tap has a class of its own.
  AxisBlocking(const cpu::ConvolutionAxis& a, bool apart)
      : tap(new int64_t[size_t(a.kernel)]),
        shift(new int64_t[size_t(a.kernel)]),
        classes(new TapClass[size_t(a.kernel)]),
        size(a.size),
        stride(a.stride),
        out(a.out),
        kernel(a.kernel) {
    int64_t n = 0;
    for (int64_t t = 0; t < a.kernel; ++t) {
      const int64_t residue = residue_of(a, t);
      bool listed = false;
      for (int64_t e = 0; e < t && !listed; ++e) listed = residue_of(a, e) == residue;
      if (listed) continue;
      const int64_t first = n;
      for (int64_t e = t; e < a.kernel; ++e) {
        if (residue_of(a, e) != residue) continue;
        tap[n] = e, shift[n] = (e * a.dilation - a.padding - residue) / a.stride;
        n += end_of(residue, shift[n]) > begin_of(shift[n]);  // or the tap only ever reads padding
      }
      add_classes(residue, first, n - first, apart);
    }
    for (int64_t c = 0; c < n_classes; ++c) {
      low = c ? min64(low, classes[c].low) : classes[c].low;
      high = c ? max64(high, classes[c].high) : classes[c].high;
      spread = max64(spread, classes[c].high - classes[c].low);
    }
  }

 private:
  static int64_t residue_of(const cpu::ConvolutionAxis& a, int64_t t) {
    const int64_t at = (t * a.dilation - a.padding) % a.stride;
    return at < 0 ? at + a.stride : at;
  }
  // The q that a tap reads inside x.
  int64_t begin_of(int64_t s) const { return max64(0, s); }
  int64_t end_of(int64_t residue, int64_t s) const {
    const int64_t available = size > residue ? ceil_div(size - residue, stride) : 0;
    return min64(available, out + s);
  }

  // Taps of one residue share the evaluation of the bases, unless more than a third of their products were idle then.
  void add_classes(int64_t residue, int64_t first, int64_t count, bool apart) {
    if (count == 0) return;
    TapClass all = {residue, first, count, shift[first], shift[first], 0, 0};
    int64_t work = 0;
    for (int64_t n = first; n < first + count; ++n) {
      all.low = min64(all.low, shift[n]), all.high = max64(all.high, shift[n]);
      work += end_of(residue, shift[n]) - begin_of(shift[n]);
    }
    all.begin = begin_of(all.low), all.end = end_of(residue, all.high);
    if (!apart && 2 * (all.end - all.begin) * count <= 3 * work) {
      classes[n_classes++] = all;
      return;
    }
    for (int64_t n = first; n < first + count; ++n) {
      const int64_t s = shift[n];
      classes[n_classes++] = {residue, n, 1, s, s, begin_of(s), end_of(residue, s)};
    }
  }
};

// A range of each axis.
struct Range4 {
  int64_t begin[kAxes], end[kAxes];
  int64_t length(int a) const { return end[a] - begin[a]; }
  bool empty() const {
    for (int a = 0; a < kAxes; ++a) {
      if (end[a] <= begin[a]) return true;
    }
    return false;
  }
};

// [0, extent) of every axis, cut into boxes of one size: a task, or a part of one, with a tile of outputs.
struct Boxes {
  static constexpr int64_t kTasks = 64;                      // images make so many tasks, if they are large enough,
  static constexpr int64_t kParts = 16;                      // or else are cut into so many
  static constexpr int64_t kLeast = 512;                     // places of a box that is not cut for more tasks
  static constexpr int64_t kTile = int64_t(256) << 10;       // bytes of a tile of several images
  static constexpr int64_t kLargestTile = int64_t(4) << 20;  // bytes of a tile of one image
  static constexpr int64_t kRim = 8;                         // a box is so many times as wide as its rim

  int64_t extent[kAxes], size[kAxes], count[kAxes];

  // rim: what a tile has beyond its box. A box of an image shares its rim with its neighbours: images are cut first.
  // Returns the bytes of a tile.
  int64_t cut(const int64_t* rim, int64_t place_bytes, int64_t groups) {
    for (int a = 0; a < kAxes; ++a) resize(a, extent[a]);
    for (;;) {
      int64_t inner = 1, places = 1;
      int widest = 1;
      for (int a = 0; a < kAxes; ++a) {
        inner *= size[a], places *= size[a] + rim[a];
        if (a > 1 && size[a] * (1 + rim[widest]) > size[widest] * (1 + rim[a])) widest = a;
      }
      const int64_t bytes = places * place_bytes, tasks = groups * total();
      if (size[0] > 1 && inner >= 2 * kLeast && (bytes > kTile || tasks < kTasks)) {
        resize(0, ceil_div(size[0], 2));
      } else if (size[0] > 1 && bytes > kLargestTile) {
        resize(0, ceil_div(size[0], 2));
      } else if (size[widest] > max64(1, rim[widest]) &&  // else a cut would leave most of the tile, twice
                 (bytes > kLargestTile ||
                  (tasks < kParts && inner >= 2 * kLeast && size[widest] >= 2 * kRim * rim[widest]))) {
        resize(widest, ceil_div(size[widest], 2));
      } else {
        return bytes;
      }
    }
  }

  int64_t total() const { return count[0] * count[1] * count[2] * count[3]; }
  void resize(int axis, int64_t wanted) {
    count[axis] = max64(1, ceil_div(extent[axis], max64(1, wanted)));
    size[axis] = max64(1, ceil_div(extent[axis], count[axis]));
    count[axis] = ceil_div(extent[axis], size[axis]);
  }
  Range4 box(int64_t n) const {
    Range4 range;
    for (int a = kAxes - 1; a >= 0; --a) {
      range.begin[a] = n % count[a] * size[a];
      range.end[a] = min64(extent[a], range.begin[a] + size[a]);
      n /= count[a];
    }
    return range;
  }
};

// A box of places with a margin. Places run backwards along the last axis where a tile is `turned`: the taps of
// neighbouring columns of a kernel, whose coefficients are neighbours, then meet neighbouring places of one row.
struct Tile {
  int64_t origin[kAxes], extent[kAxes], pitch[kAxes];

  void set(int axis, int64_t begin, int64_t end) { origin[axis] = begin, extent[axis] = end - begin; }
  void close(bool turned) {
    int64_t n = 1;
    for (int a = kAxes - 1; a >= 0; --a) pitch[a] = n, n *= extent[a];
    if (turned) pitch[3] = -1, origin[3] += extent[3] - 1;
  }
  int64_t positions() const { return pitch[0] * extent[0]; }
  int64_t place(const int64_t* at) const {
    int64_t n = 0;
    for (int a = 0; a < kAxes; ++a) n += (at[a] - origin[a]) * pitch[a];
    return n;
  }
  // What lies at a place of a turned tile.
  void find(int64_t* at, int64_t place) const {
    for (int a = 0; a < kAxes - 1; ++a) at[a] = origin[a] + place / pitch[a], place %= pitch[a];
    at[3] = origin[3] - place;
  }
  Range4 range() const {
    Range4 r;
    for (int a = 0; a < kAxes; ++a) r.begin[a] = pitch[a] < 0 ? origin[a] - extent[a] + 1 : origin[a];
    for (int a = 0; a < kAxes; ++a) r.end[a] = r.begin[a] + extent[a];
    return r;
  }
};

// Everything about the shape of one call.
struct ConvolutionBlocking {
  AxisBlocking axis[kAxes];
  int64_t groups, channels, taps;  // channels of a group

  explicit ConvolutionBlocking(const cpu::ConvolutionLayer& l, bool apart = false)
      : axis{AxisBlocking(images(l.batch), apart), AxisBlocking(l.axis[0], apart), AxisBlocking(l.axis[1], apart),
             AxisBlocking(l.axis[2], apart)},
        groups(l.groups),
        channels(l.in_features / l.groups),
        taps(l.axis[0].kernel * l.axis[1].kernel * l.axis[2].kernel) {}

  int64_t classes() const { return axis[0].n_classes * axis[1].n_classes * axis[2].n_classes * axis[3].n_classes; }
  // The rows of all classes times their taps, for all images and channels of a group.
  int64_t products() const {
    int64_t n = channels;
    for (const AxisBlocking& a : axis) {
      int64_t sum = 0;
      for (int64_t c = 0; c < a.n_classes; ++c) sum += (a.classes[c].end - a.classes[c].begin) * a.classes[c].count;
      n *= sum;
    }
    return n;
  }

 private:
  static cpu::ConvolutionAxis images(int64_t batch) {
    cpu::ConvolutionAxis a;
    a.size = a.out = batch;
    return a;
  }
};

// One class of positions: one class of each axis.
struct PositionClass {
  const TapClass* on[kAxes];
  int64_t taps;

  PositionClass(const ConvolutionBlocking& blocking, int64_t n) : taps(1) {
    for (int a = kAxes - 1; a >= 0; --a) {
      on[a] = blocking.axis[a].classes.get() + n % blocking.axis[a].n_classes;
      n /= blocking.axis[a].n_classes;
      taps *= on[a]->count;
    }
  }
  // Its q that reach an output of the box.
  Range4 reaching(const Range4& outputs) const {
    Range4 q;
    for (int a = 0; a < kAxes; ++a) {
      q.begin[a] = max64(on[a]->begin, outputs.begin[a] + on[a]->low);
      q.end[a] = min64(on[a]->end, outputs.end[a] + on[a]->high);
    }
    return q;
  }
  // Its q inside a box of q.
  Range4 inside(const Range4& box) const {
    Range4 q;
    for (int a = 0; a < kAxes; ++a) {
      q.begin[a] = max64(on[a]->begin, box.begin[a]), q.end[a] = min64(on[a]->end, box.end[a]);
    }
    return q;
  }
};

// Taps that follow each other along the last axis.
struct TapRun {
  int64_t tap;     // the first one, in the kernel
  int64_t offset;  // its place in the tile, from a row's place; the others' are the next ones
  int64_t count;
};

// The taps of a class, for rows whose places count from q_begin. Returns the number of runs; they have one tap each
// unless `joined`.
inline int64_t tap_runs(TapRun* out, const ConvolutionBlocking& blocking, const PositionClass& part, const Tile& tile,
                        const int64_t* q_begin, bool joined) {
  int64_t runs = 0;
  for (int64_t n = 0; n < part.taps; ++n) {
    int64_t rest = n, tap = 0, scale = 1, output[kAxes];
    for (int a = kAxes - 1; a >= 0; --a) {
      const int64_t at = part.on[a]->first + rest % part.on[a]->count;
      rest /= part.on[a]->count;
      tap += blocking.axis[a].tap[at] * scale, scale *= blocking.axis[a].kernel;
      output[a] = q_begin[a] - blocking.axis[a].shift[at];
    }
    const int64_t place = tile.place(output);
    const bool follows = runs > 0 && out[runs - 1].tap + out[runs - 1].count == tap &&
                         out[runs - 1].offset + out[runs - 1].count == place;
    if (joined && follows) {
      ++out[runs - 1].count;
    } else {
      out[runs++] = {tap, place, 1};
    }
  }
  return runs;
}

}  // namespace KAN_ISA
}  // namespace kan
