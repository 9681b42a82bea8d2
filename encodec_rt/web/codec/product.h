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

INLINE void store_panel(float *y, V s0, V s1, V s2, V s3) {
  store4(y, s0);
  store4(y + 4, s1);
  store4(y + 8, s2);
  store4(y + 12, s3);
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
  store_panel(y, add(a0, b0), add(a1, b1), add(a2, b2), add(a3, b3));
}

// Two rows, xs floats apart, times one panel: eight sums, and each weight is loaded once for both.
INLINE void panel2(const float *x, u32 xs, u32 K, const float *w, const float *b, float *y, u32 ys) {
  V a0 = load4(b), a1 = load4(b + 4), a2 = load4(b + 8), a3 = load4(b + 12);
  V b0 = a0, b1 = a1, b2 = a2, b3 = a3;
  for (u32 k = 0; k < K; k++, w += PANEL) {
    V s = splat_at(x + k), r = splat_at(x + xs + k), v = load4(w);
    a0 = multiply_add(s, v, a0);
    b0 = multiply_add(r, v, b0);
    v = load4(w + 4);
    a1 = multiply_add(s, v, a1);
    b1 = multiply_add(r, v, b1);
    v = load4(w + 8);
    a2 = multiply_add(s, v, a2);
    b2 = multiply_add(r, v, b2);
    v = load4(w + 12);
    a3 = multiply_add(s, v, a3);
    b3 = multiply_add(r, v, b3);
  }
  store_panel(y, a0, a1, a2, a3);
  store_panel(y + ys, b0, b1, b2, b3);
}

// y [T, N] = b + x [T, K] @ w, rows of x and y xs and ys floats apart; b is padded to 16.
static __attribute__((noinline)) void product(const float *x, u32 xs, u32 T, u32 K,
                                              const float *w, const float *b, float *y, u32 ys,
                                              u32 N) {
  if (N <= NARROW) {
    for (u32 t = 0; t < T; t++)
      for (u32 n = 0; n < N; n++)
        y[t * ys + n] = dot(x + t * xs, w + n * K, K) + b[n];
    return;
  }
  float spare[2 * PANEL];
  for (u32 n = 0; n < N; n += PANEL, w += PANEL * K) {
    u32 whole = N - n >= PANEL, step = whole ? ys : PANEL;
    for (u32 t = 0, rows; t < T; t += rows) {
      float *to = whole ? y + t * ys + n : spare;
      rows = T - t >= 2 ? 2 : 1;
      if (rows == 2) panel2(x + t * xs, xs, K, w, b + n, to, step);
      else panel1(x + t * xs, K, w, b + n, to);
      if (!whole)
        for (u32 r = 0; r < rows; r++) copy(y + (t + r) * ys + n, spare + PANEL * r, N - n);
    }
  }
}
