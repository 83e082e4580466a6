/* Codes: what a binarizer makes of 64 channels of 16 rows lies together, as one tile.
 *
 * A code is a small integer in a byte. Rows are padded to whole steps of 64 with the code 0, and there is room for
 * whole tiles of rows. What reads 16 rows of a step reads 1,024 consecutive bytes.
 */
#include <stdint.h>
#include <string.h>

#define LANES 32 /* outputs, channels or keys that are handled together, and rows that are multiplied together */
#define STEP 64  /* channels at a time */
#define TALL 16  /* rows of a tile; 1 << 4 */

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define QUADS 1 /* panels (bytes.h) of 4 channels for each column, and codes in their order */
#endif

/* What takes vectors: a call would bring them through memory. */
#define ALWAYS static inline __attribute__((always_inline))

typedef struct {
    int8_t *codes;     /* [rows / 16][width][16][64] */
    long width;        /* steps of a row */
    long first, steps; /* those that are meant: one head's, for instance */
    int is_unsigned;   /* bytes are 0 to 255 */
} Codes;

static inline long ceil_div(long n, long d) { return (n + d - 1) / d; }

static inline long rounded(long n, long d) { return ceil_div(n, d) * d; }

/* 64 codes of a row. The next row's lie right behind, unless it begins another tile. */
static inline int8_t *codes_at(const Codes *a, long row, long step)
{
    return a->codes + (((row >> 4) * a->width + a->first + step) * TALL + (row & 15)) * STEP;
}

/* Code number `at` of a row whose codes begin at `tile`. */
static inline int8_t *in_tile(int8_t *tile, long at) { return tile + at / STEP * (TALL * STEP) + at % STEP; }

/* Where a code lies among the 32 of its vector. With QUADS, 4 that lie together are 8 channels apart: their weights are
 * one bit in each byte of a word, which opens without a shuffle. */
static inline int place(int lane)
{
#ifdef QUADS
    return lane % 8 * 4 + lane / 8;
#else
    return lane;
#endif
}

/* Codes of whole rows, or with `heads`, of one head of a row. */
static inline Codes codes_in(void *memory, long steps, long heads, int is_unsigned)
{
    return (Codes){memory, steps * heads, 0, steps, is_unsigned};
}
