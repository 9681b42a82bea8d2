// The matrix product that everything else is made of, over weights packed once.
#pragma once
#include "simd.h"

enum { PANEL = 16, NARROW = 4 };

static u64 padded(u64 n) { return (n + PANEL - 1) / PANEL * PANEL; }

// Floats of a packed matrix [K, N]: panels [N / 16][K][16], or [N][K] for at most 4 columns.
static u64 packed_floats(u64 k, u64 n) { return padded(n <= NARROW ? n * k : padded(n) * k); }

// Where element (k, n) of a [K, N] matrix lies when packed.
INLINE u64 packed_at(u64 K, u64 N, u64 k, u64 n) {
  return N <= NARROW ? n * K + k : (n / PANEL * K + k) * PANEL + n % PANEL;
}

static float dot(const float *p, const float *q, u32 K) {
  V s = splat(0.f), s2 = s;
  u32 k = 0;
  for (; k + 8 <= K; k += 8) {
    s = multiply_add(load4(p + k), load4(q + k), s);
    s2 = multiply_add(load4(p + k + 4), load4(q + k + 4), s2);
  }
  float sum = sum4(add(s, s2));
  for (; k < K; k++) sum += p[k] * q[k];
  return sum;
}

// One row times one panel: sixteen sums, each in two halves so that additions overlap.
INLINE void panel1(const float *x, u32 K, const float *w, const float *b, float *y) {
  V a0 = load4(b), a1 = load4(b + 4), a2 = load4(b + 8), a3 = load4(b + 12);
  V b0 = splat(0.f), b1 = b0, b2 = b0, b3 = b0;
  for (u32 k = 0; k < K; k += 2, w += 2 * PANEL) {
    V s = splat_at(x + k);
    a0 = multiply_add(s, load4(w), a0);
    a1 = multiply_add(s, load4(w + 4), a1);
    a2 = multiply_add(s, load4(w + 8), a2);
    a3 = multiply_add(s, load4(w + 12), a3);
    if (k + 1 == K) break;
    V r = splat_at(x + k + 1);
    b0 = multiply_add(r, load4(w + 16), b0);
    b1 = multiply_add(r, load4(w + 20), b1);
    b2 = multiply_add(r, load4(w + 24), b2);
    b3 = multiply_add(r, load4(w + 28), b3);
  }
  store4(y, add(a0, b0));
  store4(y + 4, add(a1, b1));
  store4(y + 8, add(a2, b2));
  store4(y + 12, add(a3, b3));
}

// Four rows, xs floats apart, times half a panel: eight sums fill the registers of SSE and NEON.
INLINE void half_panel4(const float *x, u32 xs, u32 K, const float *w, const float *b,
                               float *y, u32 ys) {
  const float *x1 = x + xs, *x2 = x1 + xs, *x3 = x2 + xs;
  V u = load4(b), v = load4(b + 4);
  V a0 = u, b0 = v, a1 = u, b1 = v, a2 = u, b2 = v, a3 = u, b3 = v;
  for (u32 k = 0; k < K; k++, w += PANEL) {
    V l = load4(w), h = load4(w + 4), s = splat_at(x + k);
    a0 = multiply_add(s, l, a0);
    b0 = multiply_add(s, h, b0);
    s = splat_at(x1 + k);
    a1 = multiply_add(s, l, a1);
    b1 = multiply_add(s, h, b1);
    s = splat_at(x2 + k);
    a2 = multiply_add(s, l, a2);
    b2 = multiply_add(s, h, b2);
    s = splat_at(x3 + k);
    a3 = multiply_add(s, l, a3);
    b3 = multiply_add(s, h, b3);
  }
  store4(y, a0);
  store4(y + 4, b0);
  store4(y += ys, a1);
  store4(y + 4, b1);
  store4(y += ys, a2);
  store4(y + 4, b2);
  store4(y += ys, a3);
  store4(y + 4, b3);
}

// y [T, N] = b + x [T, K] @ w, rows of x and y xs and ys floats apart; b is padded to 16.
static __attribute__((noinline)) void product(const float *x, u32 xs, u32 T, u32 K, const float *w, const float *b, float *y,
                    u32 ys, u32 N) {
  if (N <= NARROW) {
    for (u32 t = 0; t < T; t++)
      for (u32 n = 0; n < N; n++)
        y[t * ys + n] = dot(x + t * xs, w + n * K, K) + b[n];
    return;
  }
  float spare[4 * PANEL];
  for (u32 n = 0; n < N; n += PANEL, w += PANEL * K) {
    int whole = N - n >= PANEL;
    u32 t = 0;
    for (; t + 4 <= T; t += 4) {
      float *to = whole ? y + t * ys + n : spare;
      u32 step = whole ? ys : PANEL;
      const float *rows = x + t * xs;
      for (u32 half = 0; half < PANEL; half += PANEL / 2)
        half_panel4(rows, xs, K, w + half, b + n + half, to + half, step);
      if (!whole)
        for (u32 r = 0; r < 4; r++) copy(y + (t + r) * ys + n, spare + PANEL * r, N - n);
    }
    for (; t < T; t++) {
      float *to = whole ? y + t * ys + n : spare;
      panel1(x + t * xs, K, w, b + n, to);
      if (!whole) copy(y + t * ys + n, spare, N - n);
    }
  }
}
