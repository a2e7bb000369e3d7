// SPDX-License-Identifier: Apache-2.0
// The transforms of F(4x4, 3x3) in one direction, a register of channels at a time: B^T, G and A^T of winograd.cpp. The points
// 0, ±5/8, ±5/4 and infinity, instead of 0, ±1, ±2, halve the error.
#pragma once

#include "vector.h"

namespace ddfast::DDFAST_ISA {
namespace {

constexpr int OUT = 4, IN = 6, POINTS = IN * IN;

using Lanes = Vec<float>;
constexpr float P = 0.625f, Q = 1.25f, P2 = P * P, Q2 = Q * Q;

// B^T of six, `step` apart
inline void input_points(Lanes* d, int step) {
  const Lanes d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const Lanes even_p = d4 - Q2 * d2, odd_p = P * (d3 - Q2 * d1), even_q = d4 - P2 * d2, odd_q = Q * (d3 - P2 * d1);
  d[0] = P2 * Q2 * d0 - (P2 + Q2) * d2 + d4;
  d[step] = even_p + odd_p;
  d[2 * step] = even_p - odd_p;
  d[3 * step] = even_q + odd_q;
  d[4 * step] = even_q - odd_q;
  d[5 * step] = P2 * Q2 * d1 - (P2 + Q2) * d3 + d5;
}

// G of three, `step` apart, to six that are `to_step` apart
inline void kernel_points(const Lanes* g, int step, Lanes* to, int to_step) {
  constexpr float AT_P = 1 / (2 * P2 * (P2 - Q2)), AT_Q = 1 / (2 * Q2 * (Q2 - P2)), AT_0 = 1 / (P2 * Q2);
  const Lanes g0 = g[0], g1 = g[step], g2 = g[2 * step];
  const Lanes even_p = AT_P * (g0 + P2 * g2), odd_p = AT_P * P * g1, even_q = AT_Q * (g0 + Q2 * g2), odd_q = AT_Q * Q * g1;
  to[0] = AT_0 * g0;
  to[to_step] = even_p + odd_p;
  to[2 * to_step] = even_p - odd_p;
  to[3 * to_step] = even_q + odd_q;
  to[4 * to_step] = even_q - odd_q;
  to[5 * to_step] = g2;
}

// A^T of six, `step` apart; four are left
inline void output_pixels(Lanes* m, int step) {
  const Lanes both_p = m[step] + m[2 * step], odd_p = m[step] - m[2 * step];
  const Lanes both_q = m[3 * step] + m[4 * step], odd_q = m[3 * step] - m[4 * step];
  m[0] = m[0] + both_p + both_q;
  m[step] = P * odd_p + Q * odd_q;
  m[2 * step] = P2 * both_p + Q2 * both_q;
  m[3 * step] = P * P2 * odd_p + Q * Q2 * odd_q + m[5 * step];
}

}  // namespace
}  // namespace ddfast::DDFAST_ISA
