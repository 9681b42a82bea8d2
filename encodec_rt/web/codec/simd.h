// Four floats at a time, and the elementwise functions of the codec.
//
// Every operation is IEEE 754 single precision in a fixed order: no fused or relaxed operation, so
// that all engines compute the same bits.
#pragma once
#include <stdint.h>
#include <wasm_simd128.h>

// For the bodies of loops. The compiler inlines nothing else, which would add a third to the size.
#define INLINE static inline __attribute__((always_inline))

typedef v128_t V;
typedef uint32_t u32;
typedef uint64_t u64;

INLINE V load4(const float *p) { return wasm_v128_load(p); }
INLINE void store4(float *p, V v) { wasm_v128_store(p, v); }
INLINE V splat(float x) { return wasm_f32x4_splat(x); }
INLINE V splat_at(const float *p) { return wasm_v128_load32_splat(p); }
INLINE V add(V a, V b) { return wasm_f32x4_add(a, b); }
INLINE V mul(V a, V b) { return wasm_f32x4_mul(a, b); }
INLINE V multiply_add(V a, V b, V c) { return add(c, mul(a, b)); }
INLINE float lane0(V v) { return wasm_f32x4_extract_lane(v, 0); }
INLINE float sum4(V v) {
  return (lane0(v) + wasm_f32x4_extract_lane(v, 1)) +
         (wasm_f32x4_extract_lane(v, 2) + wasm_f32x4_extract_lane(v, 3));
}

static void copy(float *to, const float *from, u32 floats) {
  __builtin_memcpy(to, from, floats * 4);
}
static void clear(float *to, u32 floats) { __builtin_memset(to, 0, floats * 4); }

// exp(x) - 1 for x <= 0 without cancellation near 0: x = n ln 2 + r with ln 2 in two parts, and
// the polynomial of Cephes' expf for exp(r), |r| <= ln 2 / 2.
INLINE V expm1_negative(V x) {
  x = wasm_f32x4_max(x, splat(-87.f));
  V n = wasm_f32x4_nearest(mul(x, splat(1.44269504088896341f)));
  V r = multiply_add(n, splat(-0.693359375f), x);
  r = multiply_add(n, splat(2.12194440e-4f), r);
  V p = splat(1.9875691500e-4f);
  p = multiply_add(p, r, splat(1.3981999507e-3f));
  p = multiply_add(p, r, splat(8.3334519073e-3f));
  p = multiply_add(p, r, splat(4.1665795894e-2f));
  p = multiply_add(p, r, splat(1.6666665459e-1f));
  p = multiply_add(p, r, splat(5.0000001201e-1f));
  p = multiply_add(mul(p, r), r, r);  // exp(r) - 1
  V exponent = wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_splat(127));
  V power = wasm_i32x4_shl(exponent, 23);  // 2^n
  return add(wasm_f32x4_sub(power, splat(1.f)), mul(power, p));
}

// As a function: a dozen constants at each use would cost more bytes than the calls do.
static V expm1_called(V x) { return expm1_negative(x); }

INLINE V elu4(V x) {
  V zero = splat(0.f);
  return add(wasm_f32x4_max(x, zero), expm1_negative(wasm_f32x4_min(x, zero)));
}

INLINE V tanh4(V x) {
  V t = expm1_called(mul(wasm_f32x4_abs(x), splat(-2.f)));
  V size = wasm_f32x4_div(wasm_f32x4_neg(t), add(t, splat(2.f)));
  V sign = wasm_v128_and(x, wasm_i32x4_splat((int)0x80000000));
  return wasm_v128_or(size, sign);
}

INLINE V sigmoid4(V x) {
  V e = expm1_called(wasm_f32x4_neg(wasm_f32x4_abs(x)));  // exp(-|x|) - 1
  V below = add(e, splat(2.f));
  V positive = wasm_f32x4_div(splat(1.f), below);
  V negative = wasm_f32x4_div(add(e, splat(1.f)), below);
  return wasm_v128_bitselect(positive, negative, wasm_f32x4_ge(x, splat(0.f)));
}

static __attribute__((noinline)) void elu_into(float *y, const float *x, u32 n) {
  for (u32 i = 0; i < n; i += 4) {
    V activated = elu4(load4(x + i));  // at the end also of numbers beyond x, which are not stored
    if (n - i >= 4) store4(y + i, activated);
    else copy(y + i, (float *)&activated, n - i);
  }
}

static __attribute__((noinline)) void add_into(float *y, const float *x, u32 n) {
  u32 i = 0;
  for (; i + 4 <= n; i += 4) store4(y + i, add(load4(y + i), load4(x + i)));
  for (; i < n; i++) y[i] += x[i];
}

static int all_finite(const float *x, u32 n) {
  const u32 *bits = (const u32 *)x;
  for (u32 i = 0; i < n; i++)
    if ((bits[i] & 0x7f800000u) == 0x7f800000u) return 0;
  return 1;
}
