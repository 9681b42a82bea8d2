// EnCodec's streaming step for WebAssembly: no imports, no libc, one model per instance.
//
// A host reserves room for a weights blob, loads it, opens streams, and then puts audio, codes or
// latents into the module's own buffers and calls encode or decode. Streams are numbers, never
// addresses; counts, codes and samples are checked; what is refused returns a negative number and
// changes nothing.
#include "layers.h"

#define EXPORT(name) __attribute__((export_name(#name)))

enum { ENCODER = 1, DECODER = 2, MAX_STREAMS = 256 };
typedef struct {
  u32 direction;  // 0: free
  float *arena;
} Stream;

static Stream streams[MAX_STREAMS];
static unsigned char *blob;
static u32 blob_bytes;
static float *pcm, *latents, *primed[2];
static uint16_t *codes;
static u32 pcm_floats, max_frames, primed_books;

// Room for a blob of that many bytes, or 0 if there is none.
EXPORT(reserve) unsigned char *reserve(u32 bytes) {
  if (loaded || blob) return 0;
  blob = take(bytes);
  blob_bytes = blob ? bytes : 0;
  return blob;
}

static int allocate(void) {
  u64 need[4] = {0, 0, 0, 0};
  u64 first = (u64)model.encoder_start * model.hop;
  u64 latent_rows = measure(&networks[0], first, need);
  u64 samples = latent_rows ? measure(&networks[1], model.decoder_start, need) : 0;
  if (!samples) return NO_MEMORY;
  max_frames = model.encoder_start > model.decoder_start ? model.encoder_start : model.decoder_start;
  u64 wide = larger(first, samples) * model.channels;
  // The search needs a row of activations and one of distances.
  need[0] = larger(larger(need[0], model.book_size), wide) + SLACK;
  x_buffer = take_floats(need[0]);
  y_buffer = take_floats(need[0]);
  full_buffer = take_floats(need[1] + SLACK);
  sums_buffer = take_floats(larger(need[2], model.book_size) + SLACK);
  windows_buffer = take_floats(need[3] + SLACK);
  pcm_floats = (u32)wide;
  pcm = take_floats(wide + SLACK);
  latents = take_floats(larger(max_frames, model.prime_frames) * model.dim + SLACK);
  codes = (uint16_t *)take_floats(((u64)max_frames * model.books + 1) / 2 + SLACK);
  for (int i = 0; i < 2; i++) primed[i] = take_floats(networks[i].state_floats + ALIGN);
  if (!x_buffer || !y_buffer || !full_buffer || !sums_buffer || !windows_buffer) return NO_MEMORY;
  if (!pcm || !latents || !codes || !primed[0] || !primed[1]) return NO_MEMORY;
  return 0;
}

// Reads the blob: 0, or why it was refused. An instance loads once, and after a refusal never.
EXPORT(load) int load(void) {
  if (!blob) return NOT_LOADED;
  if (loaded) return LOADED_ALREADY;
  loaded = -1;
  int refused = read_model(blob, blob_bytes);
  if (refused) return refused;
  // Nothing points into the blob any more, so that its room can be used again.
  spare_from = (unsigned long)blob;
  spare_until = spare_from + blob_bytes;
  refused = allocate();
  if (!refused) loaded = 1;
  return refused;
}

// The module's buffers, [T, channels], [frames, books] and [frames, dim].
EXPORT(pcm) float *pcm_at(void) { return pcm; }
EXPORT(codes) uint16_t *codes_at(void) { return codes; }
EXPORT(latents) float *latents_at(void) { return latents; }

// Numbers of the model, in the order of the header from `channels` on.
EXPORT(describe) int describe(u32 what) {
  const u32 *numbers = &model.channels;
  return loaded == 1 && what < 10 ? (int)numbers[what] : NOT_LOADED;
}

static Stream *stream(u32 handle, u32 direction) {
  if (loaded != 1 || handle >= MAX_STREAMS || !streams[handle].direction) return 0;
  if (direction && streams[handle].direction != direction) return 0;
  return &streams[handle];
}

// Finds the nearest vectors, book by book, of the latent in `residual`, which becomes the residual.
static void search(float *residual, u32 count, uint16_t *chosen) {
  u32 D = model.dim, size = model.book_size;
  float *distance = sums_buffer;
  for (u32 q = 0; q < count; q++) {
    product(residual, 0, 1, D, books[q].search, books[q].norms, distance, 0, size);
    u32 best = 0;
    for (u32 v = 1; v < size; v++)
      if (distance[v] < distance[best]) best = v;  // the lowest index wins a tie
    chosen[q] = (uint16_t)best;
    const float *vector = books[q].vectors + best * D;
    for (u32 d = 0; d < D; d++) residual[d] -= vector[d];
  }
}

static void sum_vectors(const uint16_t *chosen, u32 count, float *latent) {
  copy(latent, books[0].vectors + chosen[0] * model.dim, model.dim);
  for (u32 q = 1; q < count; q++)
    add_into(latent, books[q].vectors + chosen[q] * model.dim, model.dim);
}

// Makes `primed` the arenas of streams after `prime_frames` frames of silence.
static void prime(u32 count) {
  u32 rows = model.encoder_start * model.hop, done = 0;
  int edge = LEFT;
  uint16_t *chosen = codes;
  clear(primed[0], networks[0].state_floats);
  clear(primed[1], networks[1].state_floats);
  while (done < model.prime_frames) {
    clear(x_buffer, rows * model.channels);
    u32 frames = run(&networks[0], primed[0], rows, edge);
    for (u32 t = 0; t < frames && done < model.prime_frames; t++, done++) {
      search(x_buffer + t * model.dim, count, chosen);
      sum_vectors(chosen, count, latents + done * model.dim);
    }
    rows = model.hop;
    edge = 0;
  }
  u32 frames = model.decoder_start;
  edge = LEFT;
  for (u32 at = 0; at < model.prime_frames; at += frames, frames = 1, edge = 0) {
    copy(x_buffer, latents + at * model.dim, frames * model.dim);
    run(&networks[1], primed[1], frames, edge);
  }
  primed_books = count;
}

// A new stream (1: encoder, 2: decoder), or a negative number. Its state is that after silence that
// was coded with `count` books, or zero if `count` is 0.
EXPORT(open) int open_stream(u32 direction, u32 count) {
  if (loaded != 1) return NOT_LOADED;
  if (direction != ENCODER && direction != DECODER) return BAD_HANDLE;
  if (count > model.books) return BAD_COUNT;
  // Even numbers are encoders, odd ones decoders, so that a freed stream's arena fits the next one.
  u32 handle = direction - 1;
  while (handle < MAX_STREAMS && streams[handle].direction) handle += 2;
  if (handle >= MAX_STREAMS) return NO_MEMORY;
  u32 floats = networks[direction - 1].state_floats;
  if (!streams[handle].arena) streams[handle].arena = take_floats(floats + ALIGN);
  if (!streams[handle].arena) return NO_MEMORY;
  if (count && count != primed_books) prime(count);
  if (count) copy(streams[handle].arena, primed[direction - 1], floats);
  else clear(streams[handle].arena, floats);
  streams[handle].direction = direction;
  return (int)handle;
}

EXPORT(close) int close_stream(u32 handle) {
  Stream *s = stream(handle, 0);
  if (!s) return BAD_HANDLE;
  s->direction = 0;
  return 0;
}

// Where the stream's row of the arena lies, and how many floats it has; what a snapshot copies.
EXPORT(state) float *state_at(u32 handle) {
  Stream *s = stream(handle, 0);
  return s ? s->arena : 0;
}
EXPORT(state_floats) int state_floats(u32 handle) {
  Stream *s = stream(handle, 0);
  return s ? (int)networks[s->direction - 1].state_floats : BAD_HANDLE;
}

// Whether a step of `given` units may be at that edge, where the first takes `first` of them.
static int fits(u32 given, u32 first, u32 unit, u32 edge) {
  switch (edge) {
    case 0: return given == unit;
    case LEFT: return given == first;
    case RIGHT: return given < unit;
    case LEFT | RIGHT: return given >= 1 && given <= first;
  }
  return 0;
}

// `samples` of pcm -> codes with `count` books; returns the number of frames.
EXPORT(encode) int encode(u32 handle, u32 samples, u32 count, u32 edge) {
  Stream *s = stream(handle, ENCODER);
  if (!s) return BAD_HANDLE;
  u32 first = model.encoder_start * model.hop;
  if (count < 1 || count > model.books || !fits(samples, first, model.hop, edge)) return BAD_COUNT;
  if (!all_finite(pcm, samples * model.channels)) return BAD_AUDIO;
  if (edge & LEFT) clear(s->arena, networks[0].state_floats);
  copy(x_buffer, pcm, samples * model.channels);
  u32 frames = run(&networks[0], s->arena, samples, (int)edge);
  for (u32 t = 0; t < frames; t++)
    search(x_buffer + t * model.dim, count, codes + t * count);
  return (int)frames;
}

// Codes of `frames` frames -> latents; returns the frames.
EXPORT(look_up) int look_up(u32 frames, u32 count) {
  if (loaded != 1) return NOT_LOADED;
  if (frames > max_frames || count < 1 || count > model.books) return BAD_COUNT;
  for (u32 i = 0; i < frames * count; i++)
    if (codes[i] >= model.book_size) return BAD_CODE;
  for (u32 t = 0; t < frames; t++)
    sum_vectors(codes + t * count, count, latents + t * model.dim);
  return (int)frames;
}

// Latents of `frames` frames -> pcm; returns the number of samples.
EXPORT(decode_latents) int decode_latents(u32 handle, u32 frames, u32 edge) {
  Stream *s = stream(handle, DECODER);
  if (!s) return BAD_HANDLE;
  if (frames > max_frames || !fits(frames, model.decoder_start, 1, edge)) return BAD_COUNT;
  if (!all_finite(latents, frames * model.dim)) return BAD_AUDIO;
  if (edge & LEFT) clear(s->arena, networks[1].state_floats);
  copy(x_buffer, latents, frames * model.dim);
  u32 samples = run(&networks[1], s->arena, frames, (int)edge);
  copy(pcm, x_buffer, samples * model.channels);
  return (int)samples;
}

EXPORT(decode) int decode(u32 handle, u32 frames, u32 count, u32 edge) {
  int refused = stream(handle, DECODER) ? look_up(frames, count) : BAD_HANDLE;
  return refused < 0 ? refused : decode_latents(handle, frames, edge);
}
