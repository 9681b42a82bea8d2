// The weights blob (docs/web.md has its layout) read into packed matrices, every number checked.
#pragma once
#include "product.h"

enum {
  NOT_LOADED = -1,
  LOADED_ALREADY = -2,
  BAD_HEADER = -3,
  BAD_LAYER = -4,
  BAD_LENGTH = -5,
  BAD_WEIGHT = -6,
  NO_MEMORY = -7,
  BAD_HANDLE = -8,
  BAD_COUNT = -9,
  BAD_CODE = -10,
  BAD_AUDIO = -11,
};
enum { CONV, TRANSPOSED, RESIDUAL, LSTM };
enum { CONSTANT, REFLECT, REPLICATE };
enum { LEFT = 1, RIGHT = 2 };
enum { MAGIC = 0x57545245, VERSION = 1, MAX_LAYERS = 1024, ALIGN = 32 };
enum { MAX_SIDE = 1 << 24, MAX_FRAMES = 1 << 12, MAX_BOOKS = 4096, MAX_BOOK_SIZE = 1 << 16 };
enum { MAX_STATE = 1 << 24, MAX_SCRATCH = 1 << 26, MAX_FLOATS = 1 << 29 };

typedef struct {
  u32 magic, version, meta_bytes, encoder_layers, decoder_layers, channels, hop, dim, books,
      book_size, pad_mode, encoder_start, decoder_start, decoder_lag, prime_frames, reserved;
} Header;
typedef struct {  // one layer as the blob describes it
  u32 kind, in, out, kernel, stride, dilation, hidden, option;
} Record;
typedef struct {
  Record is;
  u32 past;         // rows of state; of an LSTM, its layers
  u32 state, cell;  // where in the arena, in floats
  float *w, *b, *w2, *b2;
} Layer;
typedef struct {
  Layer *layers;
  u32 count, state_floats;
} Network;
typedef struct {
  float *search, *norms, *vectors;  // -2 times the vectors, packed; their squared norms; [V, D]
} Book;

static Header model;
static Network networks[2];  // encoder, decoder
static Book *books;
static int loaded;

extern unsigned char __heap_base;
static u64 top;                     // first free byte
static u64 spare_from, spare_until;  // the blob's bytes, once they have been read

static void *take(u64 bytes) {
  u64 at = (spare_from + 63) & ~(u64)63;
  if (spare_until && at + bytes <= spare_until) {
    spare_from = at + bytes;
    return (void *)(unsigned long)at;
  }
  if (!top) top = (unsigned long)&__heap_base;
  at = (top + 63) & ~(u64)63;
  u64 have = (u64)__builtin_wasm_memory_size(0) << 16;
  if (bytes > (u64)1 << 32 || at + bytes > (u64)0xffff0000u) return 0;
  if (at + bytes > have) {
    u64 pages = (at + bytes - have + 65535) >> 16;
    if (__builtin_wasm_memory_grow(0, (unsigned long)pages) == (unsigned long)-1) return 0;
  }
  top = at + bytes;
  return (void *)(unsigned long)at;
}

static float *take_floats(u64 floats) {
  if (floats > (u64)MAX_FLOATS) return 0;
  float *at = take(floats * 4);
  if (at) clear(at, floats);
  return at;
}

typedef struct {
  const unsigned char *at, *end;
  int error;
} Reader;
typedef struct {
  const unsigned char *data;
  u32 half;
} Tensor;

static Tensor fail(Reader *r, int error) {
  if (!r->error) r->error = error;
  return (Tensor){0, 0};
}

// A tensor of that many numbers: a word that says float32 (0) or float16 (1), and the numbers.
static Tensor next_tensor(Reader *r, u64 count) {
  if (r->error) return fail(r, r->error);
  u64 left = (u64)(r->end - r->at);
  if (left < 4) return fail(r, BAD_LENGTH);
  u32 half = *(const u32 *)r->at;
  if (half > 1) return fail(r, BAD_WEIGHT);
  if (count > left) return fail(r, BAD_LENGTH);
  u64 bytes = half ? (count * 2 + 3) & ~(u64)3 : count * 4;
  if (bytes > left - 4) return fail(r, BAD_LENGTH);
  Tensor tensor = {r->at + 4, half};
  r->at += 4 + bytes;
  return tensor;
}

// Element i. No float32 on the way is subnormal: audio threads may take those for zero.
INLINE float number(Tensor t, u64 i) {
  if (!t.half) return ((const float *)t.data)[i];
  u32 bits = ((const uint16_t *)t.data)[i], size = bits & 0x7fff;
  union { u32 u; float f; } wide = {(size << 13) + ((127 - 15) << 23)};
  if (size < 0x400) wide.f = (float)size * 0x1p-24f;  // subnormal, or zero
  if (size >= 0x7c00) wide.u = 0x7f800000u;
  wide.u |= (bits & 0x8000) << 16;
  return wide.f;
}

// Room for `depth` packed matrices [K, N] whose numbers come next; a vector is a matrix with K = 1.
static float *room_for(Reader *r, u32 depth, u64 K, u64 N) {
  if (r->error) return 0;
  // Whether the numbers are there is looked at before memory is taken for them.
  u64 left = (u64)(r->end - r->at);
  if (K * N > (u64)MAX_FLOATS || K * N * depth > left) { fail(r, BAD_LENGTH); return 0; }
  float *room = take_floats(packed_floats(K, N) * depth);
  if (!room) fail(r, NO_MEMORY);
  return room;
}

static __attribute__((noinline)) void read_packed(Reader *r, u64 K, u64 N, float *to) {
  Tensor from = next_tensor(r, K * N);
  if (r->error) return;
  for (u64 k = 0; k < K; k++)
    for (u64 n = 0; n < N; n++) to[packed_at(K, N, k, n)] = number(from, k * N + n);
  if (!all_finite(to, (u32)packed_floats(K, N))) fail(r, BAD_WEIGHT);
}

// `depth` pairs of matrix [K, N] and bias [N], one after the other.
static void read_products(Reader *r, u32 depth, u64 K, u64 N, float **w, float **b) {
  *w = room_for(r, depth, K, N);
  *b = room_for(r, depth, 1, N);
  for (u32 i = 0; i < depth && !r->error; i++) {
    read_packed(r, K, N, *w + packed_floats(K, N) * i);
    read_packed(r, 1, N, *b + padded(N) * i);
  }
}

static int side(u32 n) { return n >= 1 && n <= MAX_SIDE; }

// Sizes small enough that no product of them below overflows 64 bits.
static int sound(const Record *l) {
  if (!side(l->in) || !side(l->out) || !side(l->kernel) || !side(l->stride)) return 0;
  if (!side(l->dilation) || (u64)l->kernel * l->dilation > MAX_SIDE) return 0;
  if ((u64)l->kernel * l->in > (u64)MAX_FLOATS || (u64)l->kernel * l->out > (u64)MAX_FLOATS) return 0;
  switch (l->kind) {
    case CONV:
      return (u64)(l->kernel - 1) * l->dilation + 1 >= l->stride && l->option <= 1;
    case TRANSPOSED:
      return l->kernel >= l->stride && l->option <= l->kernel - l->stride;
    case RESIDUAL:
      return l->in == l->out && side(l->hidden) && l->stride == 1 && l->option <= 1;
    case LSTM:
      return l->in == l->out && l->hidden >= 1 && l->hidden <= MAX_LAYERS;
  }
  return 0;
}

static u32 in_arena(Network *net, u64 floats) {
  u32 at = net->state_floats;
  u64 end = at + (floats + ALIGN - 1) / ALIGN * ALIGN;
  net->state_floats = end > MAX_STATE ? MAX_STATE + 1 : (u32)end;
  return at;
}

static void read_layer(Reader *r, const Record *is, Network *net, Layer *l) {
  u64 K = (u64)is->kernel * is->in, N;
  l->is = *is;
  switch (is->kind) {
    case CONV:
      l->past = (is->kernel - 1) * is->dilation + 1 - is->stride;
      l->state = in_arena(net, (u64)l->past * is->in);
      read_products(r, 1, K, is->out, &l->w, &l->b);
      break;
    case TRANSPOSED:
      l->past = is->kernel - is->stride;
      l->state = in_arena(net, (u64)l->past * is->out);
      N = (u64)is->kernel * is->out;
      l->w = room_for(r, 1, is->in, N);
      l->b = room_for(r, 1, 1, is->out);
      // The bias is added once, behind the overlap: the product's own is zero.
      l->b2 = room_for(r, 1, 1, N);
      read_packed(r, is->in, N, l->w);
      read_packed(r, 1, is->out, l->b);
      break;
    case RESIDUAL:
      l->past = (is->kernel - 1) * is->dilation;
      l->state = in_arena(net, (u64)l->past * is->in);
      read_products(r, 1, K, is->hidden, &l->w, &l->b);
      read_products(r, 1, (u64)is->hidden + (is->option ? is->in : 0), is->in, &l->w2, &l->b2);
      break;
    case LSTM:
      l->past = is->hidden;
      l->state = in_arena(net, (u64)is->hidden * is->in);
      l->cell = in_arena(net, (u64)is->hidden * is->in);
      read_products(r, is->hidden, 2 * (u64)is->in, 4 * (u64)is->in, &l->w, &l->b);
      break;
  }
}

// The layers of one direction, whose channels must follow from one another; returns what their
// strides multiply to. An encoder has no transposed convolution, a decoder no other stride.
static u64 read_network(Reader *r, const Record *records, u32 count, u32 in, u32 out,
                        Network *net) {
  u64 rate = 1;
  int upwards = net == &networks[1];
  net->count = count;
  net->state_floats = 0;
  net->layers = take((u64)count * sizeof(Layer));
  if (!net->layers) { fail(r, NO_MEMORY); return 0; }
  __builtin_memset(net->layers, 0, count * sizeof(Layer));
  for (u32 i = 0; i < count && !r->error; i++) {
    const Record *is = &records[i];
    int misplaced = upwards ? is->kind == CONV && is->stride > 1 : is->kind == TRANSPOSED;
    if (!sound(is) || is->in != in || misplaced) { fail(r, BAD_LAYER); return 0; }
    in = is->out;
    rate *= is->kind <= TRANSPOSED ? is->stride : 1;
    if (rate > MAX_SIDE) { fail(r, BAD_LAYER); return 0; }
    read_layer(r, &records[i], net, &net->layers[i]);
    if (net->state_floats > MAX_STATE) fail(r, NO_MEMORY);
  }
  if (!r->error && in != out) fail(r, BAD_LAYER);
  return rate;
}

static void read_book(Reader *r, Book *book) {
  u64 D = model.dim, size = model.book_size;
  book->vectors = room_for(r, 1, 1, D * size);
  book->search = room_for(r, 1, D, size);
  book->norms = room_for(r, 1, 1, size);
  read_packed(r, 1, D * size, book->vectors);
  if (r->error) return;
  for (u64 v = 0; v < size; v++) {
    double norm = 0;
    for (u64 d = 0; d < D; d++) {
      float x = book->vectors[v * D + d];
      book->search[packed_at(D, size, d, v)] = -2.f * x;
      norm += (double)x * x;
    }
    book->norms[v] = (float)norm;
  }
  if (!all_finite(book->norms, (u32)size)) fail(r, BAD_WEIGHT);
}

static int check_header(void) {
  if (model.magic != MAGIC || model.version != VERSION || model.reserved) return 0;
  if (!model.encoder_layers || model.encoder_layers > MAX_LAYERS) return 0;
  if (!model.decoder_layers || model.decoder_layers > MAX_LAYERS) return 0;
  if (model.channels < 1 || model.channels > 2 || !side(model.hop) || !side(model.dim)) return 0;
  if (model.books < 1 || model.books > MAX_BOOKS || model.pad_mode > REPLICATE) return 0;
  if (model.book_size < 2 || model.book_size > MAX_BOOK_SIZE) return 0;
  u32 frames[] = {model.encoder_start, model.decoder_start, model.prime_frames};
  for (int i = 0; i < 3; i++)
    if (frames[i] < 1 || frames[i] > MAX_FRAMES) return 0;
  if (model.encoder_start > model.prime_frames || model.decoder_start > model.prime_frames) return 0;
  return 1;
}

static int read_model(const unsigned char *blob, u64 bytes) {
  if (bytes < sizeof model) return BAD_LENGTH;
  __builtin_memcpy(&model, blob, sizeof model);
  if (!check_header()) return BAD_HEADER;
  u32 layers = model.encoder_layers + model.decoder_layers;
  u64 meta = ((u64)model.meta_bytes + 3) & ~(u64)3;
  if (bytes < sizeof model + meta + (u64)layers * sizeof(Record)) return BAD_LENGTH;
  const Record *records = (const Record *)(blob + sizeof model + meta);
  Reader r = {(const unsigned char *)(records + layers), blob + bytes, 0};
  u64 down = read_network(&r, records, model.encoder_layers, model.channels, model.dim, &networks[0]);
  if (r.error) return r.error;
  u64 up = read_network(&r, records + model.encoder_layers, model.decoder_layers, model.dim,
                        model.channels, &networks[1]);
  if (r.error) return r.error;
  if (down != model.hop || up != model.hop) return BAD_LAYER;
  books = take((u64)model.books * sizeof(Book));
  if (!books) return NO_MEMORY;
  for (u32 i = 0; i < model.books && !r.error; i++) read_book(&r, &books[i]);
  if (r.error) return r.error;
  return r.at == r.end ? 0 : BAD_LENGTH;
}
