/* What stays float between two products: binarizers, LayerNorm and softmax.
 *
 * Each evaluates the float model's own expression in its own order, so that both models set the same bits, ties
 * included. LayerNorm and softmax also add in the order of torch's vectors, and exp is the polynomial that torch takes:
 * then there is nothing left to differ. Compiled without contraction: a multiply-add is one rounding only where
 * fmaf says so.
 */
#include <math.h>

#define SMALLEST_ALPHA 1e-5f

/* 32 floats at once: two registers, or a loop. --------------------------------------------------------------------- */

#ifdef __AVX512BW__

typedef struct {
    __m512 half[2];
} Floats;
#define EACH_HALF(expression) \
    Floats result; \
    for (int h = 0; h < 2; h++) \
        result.half[h] = (expression); \
    return result;
static inline Floats all(float x) { EACH_HALF(_mm512_set1_ps(x)) }
static inline Floats load(const float *p) { EACH_HALF(_mm512_loadu_ps(p + 16 * h)) }
static inline void store(float *p, Floats a) { _mm512_storeu_ps(p, a.half[0]), _mm512_storeu_ps(p + 16, a.half[1]); }
static inline Floats from_ints(const int32_t *p) { EACH_HALF(_mm512_cvtepi32_ps(_mm512_loadu_si512(p + 16 * h))) }
static inline Floats add(Floats a, Floats b) { EACH_HALF(_mm512_add_ps(a.half[h], b.half[h])) }
static inline Floats sub(Floats a, Floats b) { EACH_HALF(_mm512_sub_ps(a.half[h], b.half[h])) }
static inline Floats mul(Floats a, Floats b) { EACH_HALF(_mm512_mul_ps(a.half[h], b.half[h])) }
static inline Floats fma32(Floats a, Floats b, Floats c) { EACH_HALF(_mm512_fmadd_ps(a.half[h], b.half[h], c.half[h])) }
/* The greater; b where one of them is no number. */
static inline Floats greater(Floats a, Floats b) { EACH_HALF(_mm512_max_ps(a.half[h], b.half[h])) }
ALWAYS float greatest(Floats a) { return _mm512_reduce_max_ps(_mm512_max_ps(a.half[0], a.half[1])); }

#else

typedef struct {
    float x[LANES];
} Floats;
#define EACH_LANE(expression) \
    Floats result; \
    for (int l = 0; l < LANES; l++) \
        result.x[l] = (expression); \
    return result;
static inline Floats all(float x) { EACH_LANE(x) }
static inline Floats load(const float *p) { EACH_LANE(p[l]) }
static inline void store(float *p, Floats a) { memcpy(p, a.x, sizeof a.x); }
static inline Floats from_ints(const int32_t *p) { EACH_LANE((float)p[l]) }
static inline Floats add(Floats a, Floats b) { EACH_LANE(a.x[l] + b.x[l]) }
static inline Floats sub(Floats a, Floats b) { EACH_LANE(a.x[l] - b.x[l]) }
static inline Floats mul(Floats a, Floats b) { EACH_LANE(a.x[l] * b.x[l]) }
static inline Floats fma32(Floats a, Floats b, Floats c) { EACH_LANE(fmaf(a.x[l], b.x[l], c.x[l])) }
static inline Floats greater(Floats a, Floats b) { EACH_LANE(a.x[l] > b.x[l] ? a.x[l] : b.x[l]) }
ALWAYS float greatest(Floats a)
{
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++)
            a.x[l] = a.x[l] > a.x[l + half] ? a.x[l] : a.x[l + half];
    return a.x[0];
}

#endif

/* `count` floats and zeros (or whatever `rest` is). */
ALWAYS Floats load_some(const float *p, long count, float rest)
{
    if (count >= LANES)
        return load(p);
    float some[LANES];
    for (int l = 0; l < LANES; l++)
        some[l] = l < count ? p[l] : rest;
    return load(some);
}

/* The first `count` of them. */
ALWAYS void store_some(float *p, Floats a, long count)
{
    if (count >= LANES) {
        store(p, a);
        return;
    }
    float some[LANES];
    store(some, a);
    memcpy(p, some, (size_t)count * sizeof *some);
}

/* Binarizers. ---------------------------------------------------------------------------------------------------- */

/* codes = sign(x - beta), or clamp(round((x - beta) / alpha), low, high). They are stored with `offset` added, for
 * products that want them without a sign. */
typedef struct {
    const float *beta; /* [channels], or NULL for none */
    float alpha, inverse, low, high, turn;
    int one_bit, sign;
    int32_t offset;
} Set;

static Set make_set(const float *alpha, const float *beta, int bits, int is_signed, int32_t offset)
{
    Set s = {beta, *alpha < SMALLEST_ALPHA ? SMALLEST_ALPHA : *alpha, 0, 0, 0, 0, bits == 1, bits == 1 && is_signed, 0};
    s.inverse = 1 / s.alpha;
    s.low = is_signed ? -(float)(1 << (bits - 1)) : 0;
    s.high = (float)(is_signed ? (1 << (bits - 1)) - 1 : (1 << bits) - 1);
    s.turn = 0.5f - (float)(4 << bits) / (1 << 24);
    s.offset = is_signed ? offset : 0;
    return s;
}

/* Codes by division. Returns whether a number was none (a code can't say so; the sign of no number is -1). */
__attribute__((noinline)) static int divided_codes(Floats v, Set s, int8_t *codes)
{
    float x[LANES];
    int none = 0;
    store(x, v);
    for (int l = 0; l < LANES; l++) {
        float q = x[l] / s.alpha;
        none |= q != q;
        q = q > s.low ? q : s.low;
        q = q < s.high ? q : s.high;
        codes[place(l)] = (int8_t)((int32_t)rintf(q) + s.offset);
    }
    return none;
}

/* 32 codes, as divided_codes makes them, or 1 if it has to make them.
 *
 * One bit: x / alpha rounds to more than a half if x > alpha / 2, and only then: the next float after alpha / 2 is more
 * than 2^-24 of it away. More bits: multiplying by 1 / alpha is ten times as fast as dividing by alpha, and differs by up
 * to 3 / 2^24 of what comes out. That matters only where this brings it past a half, where rounding turns. */
#ifdef __AVX512BW__

#define MAGIC 12582912.0f /* 1.5 * 2^23: what is added to it is rounded to a whole number, which its last bits are */

/* 32 codes to their places, and back. */
#if defined(QUADS) && defined(__AVX512VBMI__)
ALWAYS __m256i in_place(__m256i codes)
{
    const __m256i eighth = _mm256_setr_epi32(0x18100800, 0x19110901, 0x1a120a02, 0x1b130b03, 0x1c140c04, 0x1d150d05,
                                             0x1e160e06, 0x1f170f07);
    return _mm256_permutexvar_epi8(eighth, codes);
}
ALWAYS __m256i in_order(__m256i codes)
{
    const __m256i fourth = _mm256_setr_epi32(0x0c080400, 0x1c181410, 0x0d090501, 0x1d191511, 0x0e0a0602, 0x1e1a1612,
                                             0x0f0b0703, 0x1f1b1713);
    return _mm256_permutexvar_epi8(fourth, codes);
}
#elif defined(QUADS)
ALWAYS __m256i in_place(__m256i codes)
{
    __m128i a = _mm256_castsi256_si128(codes), b = _mm256_extracti128_si256(codes, 1);
    a = _mm_unpacklo_epi8(a, _mm_srli_si128(a, 8));
    b = _mm_unpacklo_epi8(b, _mm_srli_si128(b, 8));
    return _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
}
ALWAYS __m256i in_order(__m256i codes)
{
    const __m128i fourth = _mm_setr_epi32(0x0c080400, 0x0d090501, 0x0e0a0602, 0x0f0b0703);
    __m128i a = _mm_shuffle_epi8(_mm256_castsi256_si128(codes), fourth);
    __m128i b = _mm_shuffle_epi8(_mm256_extracti128_si256(codes, 1), fourth);
    return _mm256_set_m128i(_mm_unpackhi_epi32(a, b), _mm_unpacklo_epi32(a, b));
}
#else
ALWAYS __m256i in_place(__m256i codes) { return codes; }
#endif

/* The last bytes of 32 words, in their places. */
ALWAYS __m256i last_bytes(__m512i a, __m512i b)
{
#if defined(QUADS) && defined(__AVX512VBMI__)
    const __m512i from = _mm512_castsi256_si512(_mm256_setr_epi32(0x60402000, 0x64442404, 0x68482808, 0x6c4c2c0c,
                                                                  0x70503010, 0x74543414, 0x78583818, 0x7c5c3c1c));
    return _mm512_castsi512_si256(_mm512_permutex2var_epi8(a, from, b));
#else
    return in_place(_mm256_set_m128i(_mm512_cvtepi32_epi8(b), _mm512_cvtepi32_epi8(a)));
#endif
}

ALWAYS uint32_t quick_codes(Floats v, Set s, int8_t *codes)
{
    uint32_t look = 0;
    if (s.one_bit) {
        __mmask32 up = 0;
        for (int h = 0; h < 2; h++) {
            __m512 half = _mm512_set1_ps(s.alpha / 2);
            up |= (__mmask32)(s.sign ? _mm512_cmp_ps_mask(v.half[h], _mm512_setzero_ps(), _CMP_GE_OQ)
                                     : _mm512_cmp_ps_mask(v.half[h], half, _CMP_GT_OQ)) << 16 * h;
            look |= s.sign ? 0 : _mm512_cmp_ps_mask(v.half[h], v.half[h], _CMP_UNORD_Q);
        }
        __m256i high = _mm256_set1_epi8((char)(s.offset + 1)), low = _mm256_set1_epi8((char)(s.offset - s.sign));
        _mm256_storeu_si256((__m256i *)codes, in_place(_mm256_mask_blend_epi8(up, low, high)));
        return look;
    }
    const __m512 magic = _mm512_set1_ps(MAGIC + (float)s.offset);
    __m512 whole[2];
    for (int h = 0; h < 2; h++) {
        __m512 q = _mm512_mul_ps(v.half[h], _mm512_set1_ps(s.inverse));
        q = _mm512_min_ps(_mm512_set1_ps(s.high), _mm512_max_ps(_mm512_set1_ps(s.low), q)); /* none stays none */
        whole[h] = _mm512_add_ps(q, magic);
        __m512 away = _mm512_abs_ps(_mm512_sub_ps(q, _mm512_sub_ps(whole[h], magic)));
        look |= _mm512_cmp_ps_mask(away, _mm512_set1_ps(s.turn), _CMP_NLE_UQ);
    }
    _mm256_storeu_si256((__m256i *)codes, last_bytes(_mm512_castps_si512(whole[0]), _mm512_castps_si512(whole[1])));
    return look;
}

#else

ALWAYS uint32_t quick_codes(Floats v, Set s, int8_t *codes)
{
    int look = 0;
    for (int l = 0; s.one_bit && l < LANES; l++) {
        codes[l] = (int8_t)(s.offset + ((s.sign ? v.x[l] >= 0 : v.x[l] > s.alpha / 2) ? 1 : -s.sign));
        look |= !s.sign && v.x[l] != v.x[l];
    }
    for (int l = 0; !s.one_bit && l < LANES; l++) {
        float q = v.x[l] * s.inverse;
        look |= q != q;
        q = q > s.low ? q : s.low;
        q = q < s.high ? q : s.high;
        float r = rintf(q);
        look |= fabsf(q - r) > s.turn;
        codes[l] = (int8_t)((int32_t)r + s.offset);
    }
    return (uint32_t)look;
}

#endif

/* The first `count` codes, and the code 0 after them. Returns whether a number was none. */
ALWAYS int codes_of(Floats v, Set s, int8_t *codes, long count)
{
    int none = quick_codes(v, s, codes) ? divided_codes(v, s, codes) : 0;
    for (long l = count; l < LANES; l++)
        codes[place((int)l)] = (int8_t)s.offset;
    return none;
}

/* The codes of one row, padded to whole steps. */
static int row_codes(const float *x, Set s, long width, const Codes *to, long row)
{
    int8_t *tile = codes_at(to, row, 0);
    int none = 0;
    for (long at = 0; at < to->steps * STEP; at += LANES) {
        int8_t *codes = in_tile(tile, at);
        if (at >= width) {
            memset(codes, s.offset, LANES);
            continue;
        }
        Floats v = load_some(x + at, width - at, 0), beta = load_some(s.beta + at, width - at, 0);
        none |= codes_of(sub(v, beta), s, codes, width - at);
    }
    return none;
}

/* LayerNorm. ----------------------------------------------------------------------------------------------------- */

#define WIDE 8   /* lanes of torch's LayerNorm */
#define CHUNK 16 /* vectors that one of its running means goes over */
#define ROWS 8   /* rows at a time: each mean waits for the one before, other rows fill the gaps */
#define DEEP 24  /* a binary tree over chunks is less deep than that */

#if defined(__FMA__) && defined(__AVX2__)
typedef __m256 Wide;
static inline Wide wide_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void wide_store(float *p, Wide a) { _mm256_storeu_ps(p, a); }
static inline Wide wide_all(float a) { return _mm256_set1_ps(a); }
static inline Wide wide_sub(Wide a, Wide b) { return _mm256_sub_ps(a, b); }
static inline Wide wide_fma(Wide a, Wide b, Wide c) { return _mm256_fmadd_ps(a, b, c); }
#else
typedef struct { float x[WIDE]; } Wide;
static inline Wide wide_load(const float *p) { Wide r; memcpy(r.x, p, sizeof r.x); return r; }
static inline void wide_store(float *p, Wide a) { memcpy(p, a.x, sizeof a.x); }
static inline Wide wide_all(float a) { Wide r; for (int l = 0; l < WIDE; l++) r.x[l] = a; return r; }
static inline Wide wide_sub(Wide a, Wide b) { for (int l = 0; l < WIDE; l++) a.x[l] -= b.x[l]; return a; }
static inline Wide wide_fma(Wide a, Wide b, Wide c)
{
    for (int l = 0; l < WIDE; l++)
        c.x[l] = fmaf(a.x[l], b.x[l], c.x[l]);
    return c;
}
#endif

typedef struct {
    long count;
    float mean[WIDE], sum[WIDE]; /* of each lane: mean, and sum of squared distances from it */
} Moments;

static void join(Moments *into, const Moments *from)
{
    long count = into->count + from->count;
    float share = count ? (float)from->count / (float)count : 0, before = (float)into->count;
    for (int l = 0; l < WIDE; l++) {
        float away = from->mean[l] - into->mean[l], step = share * away;
        into->mean[l] += step;
        into->sum[l] = fmaf(step, away * before, into->sum[l] + from->sum[l]);
    }
    into->count = count;
}

/* Running means of `vectors` vectors of ROWS rows at once. */
static void chunk_moments(const float *const x[ROWS], long first, long vectors, Moments m[ROWS])
{
    Wide mean[ROWS], sum[ROWS];
    for (int r = 0; r < ROWS; r++)
        mean[r] = sum[r] = wide_all(0);
    for (long j = 0; j < vectors; j++) {
        Wide share = wide_all(1.0f / (float)(j + 1));
        for (int r = 0; r < ROWS; r++) {
            Wide value = wide_load(x[r] + first + j * WIDE), away = wide_sub(value, mean[r]);
            mean[r] = wide_fma(away, share, mean[r]);
            sum[r] = wide_fma(away, wide_sub(value, mean[r]), sum[r]);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        m[r].count = vectors;
        wide_store(m[r].mean, mean[r]);
        wide_store(m[r].sum, sum[r]);
    }
}

/* Means and variances of ROWS rows from their lanes, and from what is left over at their ends. */
static void row_moments(const Moments lanes[ROWS], const float *const rest[ROWS], long left, float *mean, float *variance)
{
    long count = 0;
    for (int r = 0; r < ROWS; r++)
        mean[r] = variance[r] = 0;
    for (; count < left; count++)
        for (int r = 0; r < ROWS; r++) {
            float away = rest[r][count] - mean[r];
            mean[r] += away / (float)(count + 1);
            variance[r] += away * (rest[r][count] - mean[r]);
        }
    for (int l = 0; l < WIDE && lanes[0].count; l++) {
        float share = (float)lanes[0].count / (float)(count + lanes[0].count);
        for (int r = 0; r < ROWS; r++) {
            float away = lanes[r].mean[l] - mean[r];
            mean[r] = fmaf(share, away, mean[r]);
            variance[r] += fmaf(away * away * share, (float)count, lanes[r].sum[l]);
        }
        count += lanes[0].count;
    }
    for (int r = 0; r < ROWS; r++)
        variance[r] /= (float)count;
}

/* x = (x - mean) / sqrt(variance + eps) * weight + bias, for up to ROWS rows. */
static void layer_norm(float *x, long rows, long width, const float *weight, const float *bias, float eps)
{
    const float *from[ROWS];
    float mean[ROWS], variance[ROWS];
    Moments tree[DEEP][ROWS];
    long vectors = width / WIDE, chunks = (vectors + CHUNK - 1) / CHUNK;
    int depth = 1;
    for (int r = 0; r < ROWS; r++)
        from[r] = x + (r < rows ? r : 0) * width;
    while ((1L << depth) < chunks)
        depth++;
    memset(tree, 0, (size_t)depth * sizeof tree[0]);
    for (long i = 0; i < chunks; i++) {
        Moments chunk[ROWS];
        long left = vectors - i * CHUNK;
        chunk_moments(from, i * CHUNK * WIDE, left < CHUNK ? left : CHUNK, chunk);
        for (int r = 0; r < ROWS; r++)
            join(&tree[0][r], &chunk[r]);
        for (int level = 1; level < depth && !((i + 1) >> (level - 1) & 1); level++)
            for (int r = 0; r < ROWS; r++) {
                join(&tree[level][r], &tree[level - 1][r]);
                memset(&tree[level - 1][r], 0, sizeof tree[0][0]);
            }
    }
    for (int level = 1; level < depth; level++)
        for (int r = 0; r < ROWS; r++)
            join(&tree[0][r], &tree[level][r]);
    for (int r = 0; r < ROWS; r++)
        from[r] += vectors * WIDE;
    row_moments(tree[0], from, width - vectors * WIDE, mean, variance);
    for (long r = 0; r < rows; r++) {
        const float factor = 1 / sqrtf(variance[r] + eps), middle = mean[r];
        float *restrict y = x + r * width;
        for (long i = 0; i < width; i++)
            y[i] = fmaf((y[i] - middle) * factor, weight[i], bias[i]);
    }
}

/* Softmax. ------------------------------------------------------------------------------------------------------- */

/* e^x for x <= 0: 2^n e^s with n whole and |s| <= ln(2) / 2. */
#define LOG2_E 1.44269504f
#define LN2_HIGH 0.693145752f
#define LN2_LOW 1.42860677e-06f
static const float power[] = {0.5f, 0.166666672f, 0.0416664854f, 0.00833336078f, 0.00139304355f, 0.000198527618f};
#define NOTHING -104 /* e to this rounds to 0 */

#ifdef __AVX512F__

/* Scores become their exponentials less `top`; returns their sum by 16 lanes, as torch adds here. */
ALWAYS float exponentials(float *row, long room, float top, int lanes)
{
    __m512 sum = _mm512_setzero_ps();
    for (long at = 0; at < room; at += 16) {
        __m512 x = _mm512_sub_ps(_mm512_loadu_ps(row + at), _mm512_set1_ps(top));
        __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)), 8);
        __m512 s = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x), p = _mm512_set1_ps(power[5]);
        s = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), s);
        for (int i = 4; i >= 0; i--)
            p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(power[i]));
        p = _mm512_add_ps(_mm512_set1_ps(1), _mm512_fmadd_ps(_mm512_mul_ps(s, s), p, s));
        __mmask16 some = _mm512_cmp_ps_mask(x, _mm512_set1_ps(NOTHING), _CMP_NLT_UQ);
        x = _mm512_maskz_scalef_ps(some, p, n);
        _mm512_storeu_ps(row + at, x);
        sum = _mm512_add_ps(sum, x);
    }
    (void)lanes;
    return _mm512_reduce_add_ps(sum);
}

#else

static inline float power_of_two(int32_t n)
{
    uint32_t bits = (uint32_t)(n + 127) << 23;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

static inline float exponential(float x)
{
    float n = rintf(x * LOG2_E), s = fmaf(n, -LN2_LOW, fmaf(n, -LN2_HIGH, x)), p = power[5];
    for (int i = 4; i >= 0; i--)
        p = fmaf(p, s, power[i]);
    p = 1 + fmaf(s * s, p, s);
    int32_t whole = (int32_t)(n > -208 ? n : -208), half = whole >> 1; /* in two steps: 2^-149 has no power_of_two */
    p = p * power_of_two(half) * power_of_two(whole - half);
    return x < NOTHING ? 0 : p;
}

/* Scores become their exponentials less `top`; returns their sum by so many lanes, as torch's vectors add. */
ALWAYS float exponentials(float *row, long room, float top, int lanes)
{
    float sum[16] = {0};
    for (long i = 0; i < room; i++)
        row[i] = exponential(row[i] - top);
    for (long at = 0; at < room; at += lanes)
        for (int l = 0; l < lanes; l++)
            sum[l] += row[at + l];
    for (int half = lanes / 2; half; half /= 2)
        for (int l = 0; l < half; l++)
            sum[l] += sum[l + half];
    return sum[0];
}

#endif

/* The greatest of a row's scores, whole LANES of them. */
ALWAYS float greatest_of(const float *row, long room)
{
    Floats most = load(row);
    for (long at = LANES; at < room; at += LANES)
        most = greater(load(row + at), most);
    return greatest(most);
}

/* Softmax of `rows` rows of `length` scores, the rest of their whole LANES being -INFINITY. torch adds up by `lanes`, or
 * in order where a sentence is shorter than those. The codes of the probabilities go to the first rows of `to`. Rows do
 * not wait for each other: each step is done for all of them. */
static inline int softmax_codes(float *scores, long rows, long length, int lanes, int in_order, Set s, const Codes *to)
{
    const long room = rounded(length, LANES);
    float most[LANES], total[LANES];
    int none = 0;
    for (long r = 0; r < rows; r++)
        most[r] = greatest_of(scores + r * room, room);
    for (long r = 0; r < rows; r++)
        total[r] = exponentials(scores + r * room, room, most[r], lanes);
    for (long r = 0; r < rows && in_order; r++) {
        total[r] = 0;
        for (long i = 0; i < length; i++)
            total[r] += scores[r * room + i];
    }
    for (long r = 0; r < rows; r++) {
        const Floats factor = all(1 / total[r]);
        int8_t *tile = codes_at(to, r, 0);
        uint32_t look = 0;
        for (long at = 0; at < room; at += LANES)
            look |= quick_codes(mul(load(scores + r * room + at), factor), s, in_tile(tile, at));
        for (long at = 0; look && at < room; at += LANES)
            none |= codes_of(mul(load(scores + r * room + at), factor), s, in_tile(tile, at), LANES);
        if (room % STEP)
            memset(in_tile(tile, room), 0, LANES);
    }
    return none;
}
