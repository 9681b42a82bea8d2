// One step through the layers of a direction, and the two edges of a stream: streaming/steps.py.
#pragma once
#include "model.h"

// Activations [T, C], and what a layer needs on the way to the next ones. All have SLACK floats
// more than a layer asks for, so that whole vectors may be written. No size in them passes
// MAX_SCRATCH (see `measure`), so that 32 bits hold every product of sizes and T.
static float *x_buffer, *y_buffer, *full_buffer, *sums_buffer, *windows_buffer;
enum { SLACK = 64 };

// Which of `rows` rows the offline padding has at position `at` < 0 or >= rows; -1 for zeros.
// A reflection wider than the clip reflects the clip lengthened by zeros (model/conv.py).
static int padding_row(int at, int rows, int widest) {
  if (model.pad_mode == CONSTANT) return -1;
  if (model.pad_mode == REPLICATE) return at < 0 ? 0 : rows - 1;
  int length = rows > widest ? rows : widest + 1;
  if (at >= rows && at < length) return -1;
  int mirrored = at < 0 ? -at : 2 * (length - 1) - at;
  return mirrored >= 0 && mirrored < rows ? mirrored : -1;
}

static void pad_rows(float *first, u32 rows, u32 channels, int from, int until, int widest) {
  for (int at = from; at < until; at++) {
    int row = padding_row(at, (int)rows, widest);
    float *to = first + at * (int)channels;
    if (row < 0) clear(to, channels);
    else copy(to, first + row * channels, channels);
  }
}

// Puts the layer's past and its input, `activated` or not, into full_buffer, padded where the
// stream has an edge, and keeps the last rows as the new past. Returns the rows of input with
// what was padded on the right.
static u32 with_past(const Layer *l, float *state, const float *x, u32 T, int edge,
                     int activated) {
  u32 C = l->is.in, extra = 0;
  float *input = full_buffer + l->past * C;
  if (activated) elu_into(input, x, T * C);
  else copy(input, x, T * C);
  if (edge & RIGHT && T % l->is.stride) extra = l->is.stride - T % l->is.stride;
  if (edge & LEFT) {
    int widest = l->past > extra ? l->past : extra;
    pad_rows(input, T, C, -(int)l->past, 0, widest);
    pad_rows(input, T, C, T, T + extra, widest);
  } else {
    copy(full_buffer, state, l->past * C);
    pad_rows(full_buffer, l->past + T, C, l->past + T, l->past + T + extra, extra);
  }
  copy(state, full_buffer + T * C, l->past * C);
  return T + extra;
}

// y [T, N] = the convolution of full_buffer, whose windows are rows of memory as they lie unless
// the layer is dilated.
static void convolve(const Layer *l, u32 T, float *y, u32 ys, u32 N) {
  u32 C = l->is.in, K = l->is.kernel;
  if (l->is.dilation == 1) {
    product(full_buffer, l->is.stride * C, T, K * C, l->w, l->b, y, ys, N);
    return;
  }
  float *to = windows_buffer;
  for (u32 t = 0; t < T; t++)
    for (u32 k = 0; k < K; k++, to += C)
      copy(to, full_buffer + (t * l->is.stride + k * l->is.dilation) * C, C);
  product(windows_buffer, K * C, T, K * C, l->w, l->b, y, ys, N);
}

static u32 conv(const Layer *l, float *arena, const float *x, float *y, u32 T, int edge) {
  if (!T) return 0;
  u32 rows = with_past(l, arena + l->state, x, T, edge, l->is.option) / l->is.stride;
  convolve(l, rows, y, l->is.out, l->is.out);
  return rows;
}

static u32 residual(const Layer *l, float *arena, const float *x, float *y, u32 T, int edge) {
  if (!T) return 0;
  u32 C = l->is.in, H = l->is.hidden, row = l->is.option ? H + C : H;
  with_past(l, arena + l->state, x, T, edge & LEFT, 1);
  convolve(l, T, sums_buffer, row, H);
  for (u32 t = 0; t < T; t++) {
    float *sums = sums_buffer + t * row;
    elu_into(sums, sums, H);
    // The 1x1 convolution and the shortcut's are one product over [hidden | x].
    if (l->is.option) copy(sums + H, x + t * C, C);
  }
  product(sums_buffer, row, T, row, l->w2, l->b2, y, C, C);
  if (!l->is.option) add_into(y, x, T * C);
  return T;
}

static u32 transposed(const Layer *l, float *arena, const float *x, float *y, u32 T, int edge) {
  u32 C = l->is.out, stride = l->is.stride, taps = l->is.kernel * C;
  u32 ready = T * stride, first = edge & LEFT ? l->is.option : 0;
  elu_into(full_buffer, x, T * l->is.in);
  if (edge & RIGHT) {
    // One more input of zeros adds nothing and pushes the overlap out.
    clear(full_buffer + T * l->is.in, l->is.in);
    T++;
    ready += l->is.option;
    if (ready > T * stride) ready = T * stride;
  }
  product(full_buffer, l->is.in, T, l->is.in, l->w, l->b2, sums_buffer, taps, taps);
  float *spread = windows_buffer, *tail = arena + l->state;
  u32 kept = l->past * C, given = T * stride * C;
  copy(spread, tail, kept);
  clear(spread + kept, given);
  for (u32 t = 0; t < T; t++)
    add_into(spread + t * stride * C, sums_buffer + t * taps, taps);
  copy(tail, spread + given, kept);
  if (ready <= first) return 0;
  for (u32 t = first; t < ready; t++) {
    float *to = y + (t - first) * C;
    copy(to, spread + t * C, C);
    add_into(to, l->b, C);
  }
  return ready - first;
}

static void lstm_step(const Layer *l, float *arena, const float *x, float *y) {
  u32 D = l->is.in;
  float *above = full_buffer, *gates = sums_buffer, *cell = windows_buffer;
  copy(above, x, D);
  for (u32 depth = 0; depth < l->is.hidden; depth++) {
    float *h = arena + l->state + depth * D, *c = arena + l->cell + depth * D;
    copy(above + D, h, D);
    product(above, 0, 1, 2 * D, l->w + (u32)packed_floats(2 * D, 4 * D) * depth,
            l->b + (u32)padded(4 * D) * depth, gates, 0, 4 * D);
    copy(cell, c, D);
    // The gates are in torch's order: i, f, g, o. Vectors overrun only into slack.
    for (u32 i = 0; i < D; i += 4) {
      V kept = mul(sigmoid4(load4(gates + D + i)), load4(cell + i));
      V taken = mul(sigmoid4(load4(gates + i)), tanh4(load4(gates + 2 * D + i)));
      V now = add(kept, taken);
      store4(cell + i, now);
      store4(above + i, mul(sigmoid4(load4(gates + 3 * D + i)), tanh4(now)));
    }
    copy(c, cell, D);
    copy(h, above, D);
  }
  copy(y, x, D);
  add_into(y, above, D);
}

// T rows in x_buffer through all layers; returns the number of rows that x_buffer has then.
static u32 run(const Network *net, float *arena, u32 T, int edge) {
  for (u32 i = 0; i < net->count; i++) {
    const Layer *l = &net->layers[i];
    float *x = x_buffer, *y = y_buffer;
    switch (l->is.kind) {
      case CONV: T = conv(l, arena, x, y, T, edge); break;
      case RESIDUAL: T = residual(l, arena, x, y, T, edge); break;
      case TRANSPOSED: T = transposed(l, arena, x, y, T, edge); break;
      default:
        for (u32 t = 0; t < T; t++)
          lstm_step(l, arena, x + t * l->is.in, y + t * l->is.in);
    }
    x_buffer = y;
    y_buffer = x;
  }
  return T;
}

static u64 larger(u64 a, u64 b) { return a > b ? a : b; }

// What the buffers must hold for T rows of input: activations, full, sums, windows. Returns the
// largest number of rows of output, or 0 if a buffer would be larger than MAX_SCRATCH.
static u64 measure(const Network *net, u64 T, u64 need[4]) {
  need[0] = larger(need[0], T * net->layers[0].is.in);
  for (u32 i = 0; i < net->count; i++) {
    const Layer *l = &net->layers[i];
    u64 in = l->is.in, out = l->is.out, kernel = l->is.kernel, full = 0, sums = 0, windows = 0;
    switch (l->is.kind) {
      case CONV:
        full = (l->past + T + l->is.stride) * in;
        T = T / l->is.stride + 1;
        windows = l->is.dilation > 1 ? T * kernel * in : 0;
        break;
      case RESIDUAL:
        full = (l->past + T) * in;
        sums = T * (l->is.hidden + in);
        windows = l->is.dilation > 1 ? T * kernel * in : 0;
        break;
      case TRANSPOSED:
        T = T + 1;
        full = T * in;
        sums = T * kernel * out;
        windows = (T * l->is.stride + l->past) * out;
        T = T * l->is.stride;
        break;
      default:
        full = 2 * in;
        sums = 4 * in;
        windows = in;
    }
    need[0] = larger(need[0], T * out);
    need[1] = larger(need[1], full);
    need[2] = larger(need[2], sums);
    need[3] = larger(need[3], windows);
    for (int k = 0; k < 4; k++)
      if (need[k] > MAX_SCRATCH) return 0;
  }
  return T;
}
