// cos(g x) and sin(g x), g = 1 .. G, and their derivatives, for scalars and SIMD vectors.
//
// x is reduced once, to quarter turns modulo 4 in two parts (Cody & Waite; far out with all digits of 2/pi that can
// matter, Payne & Hanek), so that g times the coarse part is exact. From it some points exp(i g x) are evaluated
// by themselves, and those between them as products of two: no error grows with g. The m-th derivative is g^m times m
// quarter turns.
#pragma once

#include "config.h"

namespace kan {
namespace KAN_ISA {

template <class T>
constexpr T kNearAngle = sizeof(T) == 8 ? T(0x1p14) : T(0x1p24);  // up to here two parts of 2/pi are enough
constexpr double kTwoOverPi = 0x1.45f306p-1, kTwoOverPiRest = 0x1.b9391054a7f0ap-26;
constexpr int kPiParts = 10, kPiPartBits = 22;
constexpr double kPiPart[kPiParts] = {2670176, 3597540, 1070247, 3942231, 3439949,  // the bits of 2/pi, 22 in a part
                                      908301,  2984534, 1653827, 2363519, 2430522};

// v rounded to a multiple of `unit`, a power of 2, by what adding a large number leaves of it.
template <class V, class T>
KAN_HD V to_multiple(V v, T unit) {
  const T magic = unit * (sizeof(T) == 8 ? T(6755399441055744.0) : T(12582912.0));  // 1.5 * 2^52, 1.5 * 2^23
  return (v + magic) - magic;
}

// An angle in quarter turns, coarse + fine: for g up to kMaxFrequencies, g * coarse has no rounding error.
template <class T>
struct Angle {
  T coarse, fine;
};

template <class T>
KAN_HD Angle<T> split_angle(double turns, double rest) {
  const double coarse = to_multiple(turns + rest, sizeof(T) == 8 ? 0x1p-41 : 0x1p-13);
  return {T(coarse), T((turns - coarse) + rest)};
}

// x / (pi/2) modulo 4 for |x| <= kNearAngle<T>: 24 bits times 23, and 29 times 23, are exact.
template <class T>
KAN_HD Angle<T> near_angle(T x) {
  const double whole = x, high = float(x), low = whole - high;
  const double turns = high * kTwoOverPi;
  return split_angle<T>(turns - to_multiple(turns, 4.0), low * kTwoOverPi + whole * kTwoOverPiRest);
}

// The same for |x| below 2^128; NaN beyond, and for NaN.
template <class T>
KAN_HD Angle<T> far_angle(T x) {
  const double whole = x, high = float(x), low = whole - high;
  double coarse = 0, fine = 0, unit = 1;  // multiples of 2^-41, summed without rounding, and what is left
  for (int k = 0; k < kPiParts; ++k) {
    unit *= 1.0 / (1 << kPiPartBits);
    const double products[2] = {high * (kPiPart[k] * unit), low * (kPiPart[k] * unit)};
    for (double p : products) {  // at most 51 bits: from 2^53 on, whole multiples of 4
      const double turns = (p < 0 ? -p : p) < 0x1p53 ? p - to_multiple(p, 4.0) : p - p;
      const double most = to_multiple(turns, 0x1p-41);
      coarse += most;
      fine += turns - most;
    }
  }
  return split_angle<T>(coarse - to_multiple(coarse, 4.0), fine);
}

// cos and sin of one angle, a number exp(i angle).
template <class V>
struct Point {
  V c, s;
};

template <class V>
KAN_HD Point<V> operator*(Point<V> a, Point<V> b) {
  return {a.c * b.c - a.s * b.s, a.s * b.c + a.c * b.s};
}
template <class V>
KAN_HD Point<V> operator/(Point<V> a, Point<V> b) {
  return {a.c * b.c + a.s * b.s, a.s * b.c - a.c * b.s};
}

// exp(i g x) by the series of sin and cos within an eighth of a turn.
template <class V, class T>
KAN_HD Point<V> point_at(V coarse, V fine, T g) {
  constexpr T sines[] = {T(1.5707963267948966192),     T(-0.64596409750624625366),    T(0.079692626246167045121),
                         T(-0.0046817541353186881007), T(0.00016044118478735982187),  T(-3.5988432352120853405e-6),
                         T(5.6921729219679268118e-8),  T(-6.6880351098114672325e-10), T(6.0669357311061956671e-12)};
  constexpr T cosines[] = {T(1.0),
                           T(-1.2337005501361698274),
                           T(0.25366950790104801364),
                           T(-0.020863480763352960873),
                           T(0.00091926027483942658024),
                           T(-0.000025202042373060605481),
                           T(4.7108747788181715037e-7),
                           T(-6.3866030837918522411e-9),
                           T(6.5659631149794723622e-11)};
  constexpr int last_sine = sizeof(T) == 8 ? 8 : 4, last_cosine = sizeof(T) == 8 ? 8 : 5;
  const V turns = coarse * g, quarter = to_multiple(turns, T(1));
  const V rest = (turns - quarter) + fine * g, square = rest * rest;
  V s = square * sines[last_sine] + sines[last_sine - 1], c = square * cosines[last_cosine] + cosines[last_cosine - 1];
  KAN_UNROLL
  for (int i = last_sine - 2; i >= 0; --i) s = s * square + sines[i];
  KAN_UNROLL
  for (int i = last_cosine - 2; i >= 0; --i) c = c * square + cosines[i];
  s = s * rest;
  const V place = quarter - to_multiple(quarter, T(4)), size = place < T(0) ? -place : place;  // -2 .. 2
  const V cosine = size == T(1) ? s : c, sine = size == T(1) ? c : s;
  return {((place > T(0)) | (size > T(1))) ? -cosine : cosine, ((place < T(0)) | (size > T(1))) ? -sine : sine};
}

// What the m-th derivatives of cos(g x) and sin(g x) are: one of cos and sin times g^m, with a sign.
template <class T>
struct QuarterTurns {
  bool swapped;
  T cos_sign, sin_sign;

  KAN_HD explicit QuarterTurns(int m)
      : swapped(m % 2 != 0), cos_sign(m % 4 == 1 || m % 4 == 2 ? T(-1) : T(1)), sin_sign(m % 4 >= 2 ? T(-1) : T(1)) {}
};

}  // namespace KAN_ISA
}  // namespace kan
