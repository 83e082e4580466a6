/* Binary linear layers and binary attention on XOR, AND and popcount. C99; built at first use by kernel.py.
 *
 * Bits lie in uint32 words, bit i of word k is element 32 k + i, and bits past the end of a row are 0. A bit of a
 * weight stands for -1 or +1, a bit of an activation for -1 or +1 (XOR) or for 0 or 1 (AND). For n elements:
 *     XOR:  dot = n - 2 popcount(a ^ w)            AND:  dot = 2 popcount(a & w) - popcount(a)
 * Weights are repacked to blocks of 32 outputs, [outputs/32][words][32]: the vector lanes are outputs, so nothing is
 * ever summed across lanes. Every loop is plain C that compilers vectorise, but for the popcount where they do not.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LANES 32 /* outputs of a block */
#define TILE 4   /* tokens that share one pass over a block's weights: 128 counters stay in registers */

static inline long ceil_div(long n, long d) { return (n + d - 1) / d; }

static inline int count_bits(uint32_t x) { return __builtin_popcount(x); }

/* The tile: c[t][l] = sum over k of popcount(a[t][k] OP w[k][l]). ------------------------------------------------ */

#if defined(__AVX2__) && !defined(__AVX512VPOPCNTDQ__)
/* No vector popcount: look up nibbles. Byte counters hold 31 words (8 bits each) before they are widened. */
#define WIDTH 8
typedef __m256i vec;
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define SPLAT(x) _mm256_set1_epi32((int)(x))
#define VXOR(a, b) _mm256_xor_si256(a, b)
#define VAND(a, b) _mm256_and_si256(a, b)
#define ADD8(a, b) _mm256_add_epi8(a, b)
#define ADD32(a, b) _mm256_add_epi32(a, b)
#define ZERO() _mm256_setzero_si256()
static inline vec count_bytes(vec x)
{
    const vec table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                                       0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const vec low = _mm256_set1_epi8(15);
    vec upper = _mm256_and_si256(_mm256_srli_epi16(x, 4), low);
    return _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(x, low)), _mm256_shuffle_epi8(table, upper));
}
static inline vec widen(vec bytes)
{
    return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
}
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define WIDTH 4
typedef uint8x16_t vec;
#define LOAD(p) vreinterpretq_u8_u32(vld1q_u32((const uint32_t *)(p)))
#define STORE(p, v) vst1q_u32((uint32_t *)(p), vreinterpretq_u32_u8(v))
#define SPLAT(x) vreinterpretq_u8_u32(vdupq_n_u32(x))
#define VXOR(a, b) veorq_u8(a, b)
#define VAND(a, b) vandq_u8(a, b)
#define ADD8(a, b) vaddq_u8(a, b)
#define ADD32(a, b) vreinterpretq_u8_u32(vaddq_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)))
#define ZERO() vdupq_n_u8(0)
static inline vec count_bytes(vec x) { return vcntq_u8(x); }
static inline vec widen(vec bytes) { return vreinterpretq_u8_u32(vpaddlq_u16(vpaddlq_u8(bytes))); }
#endif

#ifdef WIDTH
#define DEFINE_TILE(name, OP, VOP)                                                                                  \
    static void name(const uint32_t *a, long stride, const uint32_t *w, long words, int32_t c[TILE][LANES])         \
    {                                                                                                               \
        for (int l = 0; l < LANES; l += WIDTH) {                                                                    \
            vec total[TILE] = {ZERO(), ZERO(), ZERO(), ZERO()};                                                     \
            for (long start = 0; start < words; start += 31) {                                                      \
                long end = start + 31 < words ? start + 31 : words;                                                 \
                vec bytes[TILE] = {ZERO(), ZERO(), ZERO(), ZERO()};                                                 \
                for (long k = start; k < end; k++) {                                                                \
                    vec weights = LOAD(w + k * LANES + l);                                                          \
                    for (int t = 0; t < TILE; t++)                                                                  \
                        bytes[t] = ADD8(bytes[t], count_bytes(VOP(SPLAT(a[t * stride + k]), weights)));             \
                }                                                                                                   \
                for (int t = 0; t < TILE; t++)                                                                      \
                    total[t] = ADD32(total[t], widen(bytes[t]));                                                    \
            }                                                                                                       \
            for (int t = 0; t < TILE; t++)                                                                          \
                STORE(&c[t][l], total[t]);                                                                          \
        }                                                                                                           \
    }
#else
#define DEFINE_TILE(name, OP, VOP)                                                                                  \
    static void name(const uint32_t *a, long stride, const uint32_t *w, long words, int32_t c[TILE][LANES])         \
    {                                                                                                               \
        int32_t sum[TILE][LANES];                                                                                   \
        memset(sum, 0, sizeof sum);                                                                                 \
        for (long k = 0; k < words; k++)                                                                            \
            for (int t = 0; t < TILE; t++) {                                                                        \
                uint32_t token = a[t * stride + k];                                                                 \
                for (int l = 0; l < LANES; l++)                                                                     \
                    sum[t][l] += count_bits(token OP w[k * LANES + l]);                                             \
            }                                                                                                       \
        memcpy(c, sum, sizeof sum);                                                                                 \
    }
#endif
DEFINE_TILE(tile_xor, ^, VXOR)
DEFINE_TILE(tile_and, &, VAND)

/* Bit l of the result: dots[l] >= thresholds[l]. */
static inline uint32_t compare(const int32_t *dots, const int32_t *thresholds)
{
#ifdef __AVX512F__ /* one instruction, which compilers do not find */
    __mmask16 low = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(dots), _mm512_loadu_si512(thresholds));
    __mmask16 high = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(dots + 16), _mm512_loadu_si512(thresholds + 16));
    return (uint32_t)low | (uint32_t)high << 16;
#else
    uint32_t word = 0;
    for (int l = 0; l < LANES; l++)
        word |= (uint32_t)(dots[l] >= thresholds[l]) << l;
    return word;
#endif
}

/* Linear layers. ------------------------------------------------------------------------------------------------- */

/* What becomes of a dot product: `bits` if it is not NULL (dot >= thresholds), else `y`: the dot itself if bias is
 * NULL, else bias + scale * dot, rounded once (`fused`) or twice, as torch.addcmul does here, plus the residual. */
typedef struct {
    const int32_t *thresholds; /* [blocks * 32] */
    uint32_t *bits;            /* [tokens][blocks] */
    const float *bias, *residual;
    float *y; /* [tokens][outputs] */
    float scale;
    int fused;
} Epilogue;

static inline void write_floats(const int32_t *dots, float *y, const float *bias, const float *residual, long count,
                                float scale, int fused)
{
    for (long l = 0; l < count; l++) {
        float value = (float)dots[l];
        if (bias)
            value = fused ? fmaf(value, scale, bias[l]) : value * scale + bias[l];
        y[l] = residual ? value + residual[l] : value;
    }
}

static void finish(const int32_t *dots, long token, long block, long blocks, long outputs, const Epilogue *e)
{
    if (e->bits) {
        e->bits[token * blocks + block] = compare(dots, e->thresholds + block * LANES);
        return;
    }
    long first = block * LANES, at = token * outputs + first, left = outputs - first;
    const float *bias = e->bias ? e->bias + first : NULL, *residual = e->residual ? e->residual + at : NULL;
    if (left >= LANES) /* a constant count: unrolled */
        write_floats(dots, e->y + at, bias, residual, LANES, e->scale, e->fused);
    else
        write_floats(dots, e->y + at, bias, residual, left, e->scale, e->fused);
}

static void linear_tile(const uint32_t *a, const int32_t *ones, const uint32_t *w, long token, long tokens, long words,
                        long block, long blocks, long width, long outputs, const Epilogue *e)
{
    int32_t c[TILE][LANES];
    const uint32_t *rows = a + token * words;
    long count = tokens - token < TILE ? tokens - token : TILE;
    long stride = count == TILE ? words : 0; /* the last tokens go one by one: four times the same row */
    for (long t = 0; t < count; t += stride ? TILE : 1) {
        (ones ? tile_and : tile_xor)(rows + t * words, stride, w + block * words * LANES, words, c);
        for (long i = 0; i < (stride ? TILE : 1); i++) {
            int32_t n = (int32_t)(ones ? ones[token + t + i] : width), flip = ones ? 0 : -1;
            for (int l = 0; l < LANES; l++)
                c[i][l] = ((2 * c[i][l] - n) ^ flip) - flip; /* negated for XOR: width - 2 popcount */
            finish(c[i], token + t + i, block, blocks, outputs, e);
        }
    }
}

/* a [tokens][words], w [blocks][words][32] -> see Epilogue. `width`: elements of a row that count (padding does not);
 * `unsigned_set`: activations are 0 or 1. Returns 0, or -1 if memory ran out. */
int bitlab_linear(const uint32_t *a, const uint32_t *w, long tokens, long words, long width, long outputs,
                  int unsigned_set, const int32_t *thresholds, uint32_t *bits, float scale, const float *bias,
                  const float *residual, float *y, int fused, int threads)
{
    Epilogue e = {thresholds, bits, bias, residual, y, scale, fused};
    long blocks = ceil_div(outputs, LANES), tiles = ceil_div(tokens, TILE);
    int32_t *ones = NULL;
    if (unsigned_set) {
        if (!(ones = malloc((size_t)(tokens ? tokens : 1) * sizeof *ones)))
            return -1;
        for (long t = 0; t < tokens; t++) {
            ones[t] = 0;
            for (long k = 0; k < words; k++)
                ones[t] += count_bits(a[t * words + k]);
        }
    }
    /* A block's weights stay in the first-level cache while its tokens pass; 32 tiles at a time, so that theirs stay
     * in the second. */
    long groups = ceil_div(tiles, 32);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1)
    for (long group = 0; group < groups; group++)
        for (long block = 0; block < blocks; block++)
            for (long i = group * 32; i < tiles && i < group * 32 + 32; i++)
                linear_tile(a, ones, w, i * TILE, tokens, words, block, blocks, width, outputs, &e);
    free(ones);
    return 0;
}

/* Bits of x [tokens][width] against up to three sets of thresholds beta [sets][width]: bit = x - beta >= 0.
 * out [sets][tokens][words]. The row is read once. */
void bitlab_signs(const float *x, const float *beta, long tokens, long width, long words, long sets, uint32_t *out,
                  int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (long t = 0; t < tokens; t++)
        for (long s = 0; s < sets; s++)
            for (long k = 0; k < words; k++) {
                const float *value = x + t * width + k * 32, *least = beta + s * width + k * 32;
                uint32_t word = 0;
                if (k * 32 + 32 <= width)
                    for (int i = 0; i < 32; i++)
                        word |= (uint32_t)(value[i] >= least[i]) << i;
                else
                    for (int i = 0; i < width - k * 32; i++)
                        word |= (uint32_t)(value[i] >= least[i]) << i;
                out[(s * tokens + t) * words + k] = word;
            }
}

/* Attention. ----------------------------------------------------------------------------------------------------- */

/* 32 rows of 32 bits -> 32 columns: bit i of out[j] is bit j of in[i]. In place, by halves, quarters, ... */
static void transpose(uint32_t m[32])
{
    uint32_t mask = 0x0000ffff;
    for (int step = 16; step; step >>= 1, mask ^= mask << step)
        for (int i = 0; i < 32; i = ((i | step) + 1) & ~step) {
            uint32_t moved = ((m[i] >> step) ^ m[i | step]) & mask;
            m[i] ^= moved << step;
            m[i | step] ^= moved;
        }
}

/* One head of one example at work. Keys are padded to whole words of 32. */
typedef struct {
    uint32_t *keys;   /* [head_words][padded]: lanes are keys */
    uint32_t *values; /* [padded / 32][32 head_words]: lanes are channels, bits are keys */
    uint32_t *chosen; /* [padded / 32]: the bits of one row of probabilities */
    int32_t *beyond;  /* [padded]: 0 for a key that counts, else what puts it beyond the table */
    int32_t *far;     /* [padded]: bits in which query and key differ, plus beyond */
} Scratch;

typedef struct {
    long batch, length, padded, heads, head_words, head_width, stride;
    const int64_t *table;
    double half_alpha;
} Shape;

static void load_head(const uint32_t *k, const uint32_t *v, const uint8_t *keep, int any, const Shape *n, Scratch *s)
{
    uint32_t square[32];
    for (long j = 0; j < n->padded; j++)
        s->beyond[j] = j < n->length && (keep[j] || !any) ? 0 : 2 * (int32_t)n->head_width + 2;
    for (long w = 0; w < n->head_words; w++) {
        for (long j = 0; j < n->padded; j++)
            s->keys[w * n->padded + j] = j < n->length ? k[j * n->stride + w] : 0;
        for (long start = 0; start < n->padded; start += 32) {
            for (long j = 0; j < 32; j++)
                square[j] = start + j < n->length ? v[(start + j) * n->stride + w] : 0;
            transpose(square);
            memcpy(s->values + (start / 32 * n->head_words + w) * 32, square, sizeof square);
        }
    }
}

/* far of one query. If no key counts, all are equally far. */
static void measure(const uint32_t *query, int any, const Shape *n, Scratch *s)
{
    int32_t *restrict far = s->far;
    memcpy(far, s->beyond, (size_t)n->padded * sizeof *far);
    for (long w = 0; any && w < n->head_words; w++) {
        uint32_t word = query[w];
        const uint32_t *restrict key = s->keys + w * n->padded;
        for (long start = 0; start < n->padded; start += 32)
            for (int j = 0; j < 32; j++)
                far[start + j] += count_bits(word ^ key[start + j]);
    }
}

/* Probability bits of one query: far -> chosen. table[i] is exp(-2 i c), in units of 2^-40, for a key that differs in
 * i bits more than the nearest one, and 0 for i > head_width. A bit is 1 iff table[i] > half_alpha * sum. Sums of
 * integers do not depend on order, so neither padding nor a batch changes a bit. */
static void choose(const Shape *n, Scratch *s)
{
    const int32_t *restrict far = s->far;
    int32_t nearest = INT32_MAX, cut = 0, last[LANES];
    for (long start = 0; start < n->padded; start += 32)
        for (int j = 0; j < 32; j++)
            nearest = far[start + j] < nearest ? far[start + j] : nearest;
    int64_t sum = 0, sum1 = 0, sum2 = 0, sum3 = 0;
    for (long j = 0; j < n->padded; j += 4) {
        sum += n->table[far[j] - nearest];
        sum1 += n->table[far[j + 1] - nearest];
        sum2 += n->table[far[j + 2] - nearest];
        sum3 += n->table[far[j + 3] - nearest];
    }
    sum += sum1 + sum2 + sum3;
    double least = n->half_alpha * (double)sum;
    while (cut <= n->head_width && (double)n->table[cut] > least)
        cut++;
    for (int l = 0; l < LANES; l++)
        last[l] = nearest + cut - 1;
    for (long start = 0; start < n->padded; start += 32)
        s->chosen[start / 32] = compare(last, s->far + start);
}

static void attend(const uint32_t *q, int any, const int32_t *thresholds, uint32_t *out, const Shape *n, Scratch *s)
{
    for (long i = 0; i < n->length; i++) {
        measure(q + i * n->stride, any, n, s);
        choose(n, s);
        for (long word = 0; word < n->head_words; word++) {
            int32_t context[LANES] = {0}, ones = 0;
            for (long w = 0; w < n->padded / 32; w++) {
                uint32_t chosen = s->chosen[w];
                const uint32_t *values = s->values + (w * n->head_words + word) * 32;
                ones += count_bits(chosen);
                for (int l = 0; l < LANES; l++)
                    context[l] += count_bits(chosen & values[l]);
            }
            for (int l = 0; l < LANES; l++)
                context[l] = 2 * context[l] - ones;
            out[i * n->stride + word] = compare(context, thresholds + word * 32);
        }
    }
}

/* q, k, v, out [batch][length][heads * head_words]; keep [batch][length], 0 for a masked key (all 0: all keys count
 * the same, as in a softmax over equal scores); table [3 head_width + 4]; thresholds [heads * head_words * 32] on the
 * context's integers. Returns 0, or -1 if memory ran out. */
int bitlab_attention(const uint32_t *q, const uint32_t *k, const uint32_t *v, const uint8_t *keep, long batch,
                     long length, long heads, long head_words, long head_width, const int64_t *table,
                     double half_alpha, const int32_t *thresholds, uint32_t *out, int threads)
{
    long padded = ceil_div(length, 32) * 32, channels = head_words * 32;
    Shape n = {batch, length, padded, heads, head_words, head_width, heads * head_words, table, half_alpha};
    size_t size = (size_t)((head_words + 2) * padded + padded / 32 * (channels + 1));
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        uint32_t *memory = malloc((size ? size : 1) * sizeof *memory);
        Scratch s = {0};
        if (memory) {
            s.keys = memory;
            s.values = s.keys + head_words * padded;
            s.chosen = s.values + padded / 32 * channels;
            s.beyond = (int32_t *)(s.chosen + padded / 32);
            s.far = s.beyond + padded;
        }
        failed = !memory;
#pragma omp for schedule(static)
        for (long i = 0; i < batch * heads; i++) {
            if (!memory)
                continue;
            long b = i / heads, h = i % heads, at = b * length * n.stride + h * head_words;
            int any = memchr(keep + b * length, 1, (size_t)length) != NULL;
            load_head(k + at, v + at, keep + b * length, any, &n, &s);
            attend(q + at, any, thresholds + h * channels, out + at, &n, &s);
        }
        free(memory);
    }
    return failed ? -1 : 0;
}

/* Repack rows of bytes [outputs][bytes], little-endian bits, to blocks [outputs/32][words][32]. */
void bitlab_repack(const uint8_t *rows, long outputs, long bytes, long words, uint32_t *blocks)
{
    memset(blocks, 0, (size_t)(ceil_div(outputs, LANES) * words * LANES) * sizeof *blocks);
    for (long n = 0; n < outputs; n++)
        for (long i = 0; i < bytes; i++)
            blocks[(n / LANES * words + i / 4) * LANES + n % LANES] |= (uint32_t)rows[n * bytes + i] << (i % 4 * 8);
}

/* What this processor can do, in registers alone: `rounds` times 16 vectors of 16 lanes. For the roofline. Returns a
 * value that depends on every operation, so that none is left out. Bits: 0 where there is no vector popcount. */
uint32_t bitlab_limit_bits(long rounds, uint32_t seed)
{
    uint32_t c[16][16], sum = 0;
#ifndef __AVX512VPOPCNTDQ__
    return 0;
#endif
    for (uint32_t i = 0; i < 256; i++)
        c[i / 16][i % 16] = i * seed;
    for (long r = 0; r < rounds; r++)
        for (int i = 0; i < 16; i++)
            for (int l = 0; l < 16; l++)
                c[i][l] += (uint32_t)count_bits(c[i][l] ^ seed);
    for (int i = 0; i < 256; i++)
        sum |= c[i / 16][i % 16];
    return sum | 1;
}

float bitlab_limit_float(long rounds, float a, float b)
{
    float c[16][16], sum = 0;
    for (int i = 0; i < 256; i++)
        c[i / 16][i % 16] = (float)i * a;
    for (long r = 0; r < rounds; r++, b = -b) /* b changes, or compilers turn the loops around */
        for (int i = 0; i < 16; i++)
            for (int l = 0; l < 16; l++)
                c[i][l] = fmaf(c[i][l], a, b);
    for (int i = 0; i < 256; i++)
        sum += c[i / 16][i % 16];
    return sum;
}
