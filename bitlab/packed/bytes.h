/* Products of bytes: small codes times small codes, summed in int32.
 *
 * The second factor comes as a panel: 32 columns, opened just before use so that it stays in the first caches. One-bit
 * weights are opened to bytes of -1 and +1, attention's keys and values are bytes already. With AVX-512 VNNI a panel is
 * [steps][2][16][16][4]: for 64 of K and 16 columns, 16 vectors of 4 k for each column, in the order of codes. That is
 * what a tile multiply (AMX) and a dot product of bytes (VNNI) take. Otherwise it is [32][steps][64], for plain loops.
 */
typedef struct {
    int8_t *bytes; /* [steps][LANES * STEP] */
    int32_t *sums; /* [LANES] of each column, for codes that are stored with an offset; after the bytes */
    long steps;
} Panel;

static inline size_t panel_size(long steps) { return (size_t)steps * LANES * STEP + LANES * sizeof(int32_t); }

/* Panel number i of consecutive ones in `memory`. */
static inline Panel panel_at(void *memory, long i, long steps)
{
    int8_t *bytes = (int8_t *)memory + (size_t)i * panel_size(steps);
    return (Panel){bytes, (int32_t *)(bytes + steps * LANES * STEP), steps};
}

#ifdef QUADS

static inline int8_t *panel_row(const Panel *p, long k, int half)
{
    return p->bytes + ((k / STEP * 2 + half) * 16 + k % STEP / 4) * 64;
}

/* 16 rows of 16 dwords -> 16 columns. */
static inline void transpose(__m512i r[16])
{
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* lane l of r[i + j] is column 4 l + j of rows i to i + 3 */
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        __m512i low = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x44), high = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xee);
        __m512i low2 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x44);
        __m512i high2 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xee);
        t[j] = _mm512_shuffle_i32x4(low, low2, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(high, high2, 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
    for (int i = 0; i < 16; i++)
        r[i] = t[i];
}

/* `count` rows (up to 16) of up to 64 bytes, transposed; what is not there is 0. */
static inline void load_columns(const void *rows, long stride, long count, long bytes, __m512i columns[16])
{
    __mmask64 there = bytes >= 64 ? ~0ull : (1ull << bytes) - 1;
    for (long i = 0; i < 16; i++)
        columns[i] = _mm512_maskz_loadu_epi8(i < count ? there : 0, (const char *)rows + i * (i < count ? stride : 0));
    transpose(columns);
}

/* Bits [count][bytes] of weights -> -1 and +1. Past the end of a row they are -1, where codes are 0. */
static void open_weights(const uint8_t *weight, long stride, long bytes, long count, Panel *p)
{
    const __m512i up = _mm512_set1_epi8(1), down = _mm512_set1_epi8(-1);
    for (long k = 0; k < p->steps * STEP; k += 512)
        for (int half = 0; half < 2; half++) {
            __m512i words[16];
            load_columns(weight + half * 16 * stride + k / 8, stride, count - half * 16, bytes - k / 8, words);
            for (long w = 0; w < 16 && k + w * 32 < p->steps * STEP; w++) {
                int8_t *out = panel_row(p, k + w * 32, half);
                for (int i = 0; i < 8; i++) { /* bit i of 4 bytes, for each of 16 columns */
                    __mmask64 bits = _mm512_test_epi8_mask(words[w], _mm512_set1_epi8((char)(1 << i)));
                    _mm512_store_si512(out + i * 64, _mm512_mask_blend_epi8(bits, down, up));
                }
            }
        }
}

/* Rows of codes as columns: attention's keys, from `row` on, `count` of them. */
static void open_keys(const Codes *keys, long row, long count, long width, Panel *p)
{
    for (long step = 0; step < p->steps; step++)
        for (int half = 0; half < 2; half++) {
            __m512i columns[16];
            const int8_t *from = codes_at(keys, count > half * TALL ? row + half * TALL : row, step);
            load_columns(from, STEP, count - half * TALL, rounded(width - step * STEP, LANES), columns);
            for (int i = 0; i < 16; i++)
                _mm512_store_si512(panel_row(p, step * STEP, half) + i * 64, columns[i]);
        }
}

/* Columns of codes as they are: attention's values, `length` rows from `row` on, `count` channels from `channel` on. */
static void open_values(const Codes *values, long row, long length, long channel, long count, Panel *p)
{
    for (long k = 0; k < p->steps * STEP; k += LANES)
        for (int i = 0; i < 8; i++) {
            __m256i rows[4];
            for (int j = 0; j < 4; j++) {
                const long key = k + 8 * j + i;
                const int8_t *from = codes_at(values, key < length ? row + key : row, channel / STEP) + channel % STEP;
                rows[j] = key < length ? in_order(_mm256_loadu_si256((const __m256i *)from)) : _mm256_setzero_si256();
            }
            for (int half = 0; half < 2; half++) {
                __m128i four[4], pair[4], *out = (__m128i *)panel_row(p, k + 4 * i, half);
                for (int j = 0; j < 4; j++)
                    four[j] = half ? _mm256_extracti128_si256(rows[j], 1) : _mm256_castsi256_si128(rows[j]);
                for (int j = 0; j < 2; j++) {
                    pair[j] = _mm_unpacklo_epi8(four[2 * j], four[2 * j + 1]);
                    pair[2 + j] = _mm_unpackhi_epi8(four[2 * j], four[2 * j + 1]);
                }
                for (int j = 0; j < 4; j += 2) {
                    _mm_store_si128(out + j, _mm_unpacklo_epi16(pair[j], pair[j + 1]));
                    _mm_store_si128(out + j + 1, _mm_unpackhi_epi16(pair[j], pair[j + 1]));
                }
            }
        }
}

#else

static void open_weights(const uint8_t *weight, long stride, long bytes, long count, Panel *p)
{
    for (long n = 0; n < LANES; n++)
        for (long i = 0; i < p->steps * STEP / 8; i++) {
            unsigned byte = n < count && i < bytes ? weight[n * stride + i] : 0;
            for (int bit = 0; bit < 8; bit++)
                p->bytes[n * p->steps * STEP + i * 8 + bit] = (int8_t)((byte >> bit & 1) * 2 - 1);
        }
}

static void open_keys(const Codes *keys, long row, long count, long width, Panel *p)
{
    memset(p->bytes, 0, (size_t)(p->steps * STEP * LANES));
    for (long n = 0; n < count && n < LANES; n++)
        for (long k = 0; k < width; k += STEP)
            memcpy(p->bytes + n * p->steps * STEP + k, codes_at(keys, row + n, k / STEP),
                   (size_t)(width - k < STEP ? width - k : STEP));
}

static void open_values(const Codes *values, long row, long length, long channel, long count, Panel *p)
{
    memset(p->bytes, 0, (size_t)(p->steps * STEP * LANES));
    for (long k = 0; k < length; k++) {
        const int8_t *from = codes_at(values, row + k, channel / STEP) + channel % STEP;
        for (long n = 0; n < count && n < LANES; n++)
            p->bytes[n * p->steps * STEP + k] = from[n];
    }
}

#endif

/* Multiplying: c[r][n] = sum over k of row r times column n, for up to 32 rows, `stride` numbers apart. ----------- */

#ifdef QUADS

#define OFFSET 128 /* of signed codes: the instruction takes unsigned times signed bytes */
#define AT_ONCE 8  /* rows, so that 16 sums stay in registers */

/* The offset's share of every product is OFFSET times the sum of a column. */
static void sum_columns(Panel *p)
{
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (long i = 0; i < p->steps * 32; i++)
        sum[i / 16 % 2] = _mm512_dpbusd_epi32(sum[i / 16 % 2], ones, _mm512_load_si512(p->bytes + i * 64));
    _mm512_storeu_si512(p->sums, sum[0]);
    _mm512_storeu_si512(p->sums + 16, sum[1]);
}

static inline void multiply_rows(const Codes *a, long row, long count, const Panel *p, const int32_t *start,
                                 int32_t *c, long stride, int adds)
{
    __m512i sum[AT_ONCE][2];
    for (int r = 0; r < AT_ONCE; r++)
        for (int h = 0; h < 2; h++)
            sum[r][h] = _mm512_loadu_si512(start + 16 * h);
    for (int r = 0; adds && r < count; r++)
        for (int h = 0; h < 2; h++)
            sum[r][h] = _mm512_add_epi32(sum[r][h], _mm512_loadu_si512(c + r * stride + 16 * h));
    for (long step = 0; step < p->steps; step++) {
        const int8_t *x = codes_at(a, row, step);
        for (int i = 0; i < 16; i++) {
            const int8_t *w = p->bytes + (step * 32 + i) * 64;
            __m512i left = _mm512_load_si512(w), right = _mm512_load_si512(w + 16 * 64);
            for (int r = 0; r < AT_ONCE; r++) {
                int32_t four;
                memcpy(&four, x + (r < count ? r : 0) * STEP + i * 4, 4);
                sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], _mm512_set1_epi32(four), left);
                sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], _mm512_set1_epi32(four), right);
            }
        }
    }
    for (int r = 0; r < count; r++)
        for (int h = 0; h < 2; h++)
            _mm512_storeu_si512(c + r * stride + 16 * h, sum[r][h]);
}

static void multiply_bytes(const Codes *a, long row, long count, const Panel *p, int32_t *c, long stride, int adds)
{
    int32_t start[LANES];
    for (int n = 0; n < LANES; n++)
        start[n] = a->is_unsigned ? 0 : -OFFSET * p->sums[n];
    for (long r = 0; r < count; r += AT_ONCE) {
        if (count - r >= AT_ONCE) /* a constant: unrolled */
            multiply_rows(a, row + r, AT_ONCE, p, start, c + r * stride, stride, adds);
        else
            multiply_rows(a, row + r, count - r, p, start, c + r * stride, stride, adds);
    }
}

#else

#define OFFSET 0
static void sum_columns(Panel *p) { (void)p; }

#ifdef __AVX2__
/* 16 codes in 16 bits. */
static inline __m256i sixteen(const int8_t *codes, int is_unsigned)
{
    __m128i v = _mm_loadu_si128((const __m128i *)codes);
    return is_unsigned ? _mm256_cvtepu8_epi16(v) : _mm256_cvtepi8_epi16(v);
}

/* The dot product of a row and a column. */
static int32_t multiply_row(const Codes *a, long row, const Panel *p, long column)
{
    __m256i sum = _mm256_setzero_si256();
    int32_t sums[8];
    for (long step = 0; step < p->steps; step++)
        for (int k = 0; k < STEP; k += 16) {
            __m256i x = sixteen(codes_at(a, row, step) + k, a->is_unsigned);
            __m256i w = sixteen(p->bytes + (column * p->steps + step) * STEP + k, 0);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
        }
    memcpy(sums, &sum, sizeof sums);
    return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}
#elif defined(__ARM_FEATURE_DOTPROD)
/* The same by dot products of signed fours: unsigned codes come less 128, and twice 64 make up for it. */
static int32_t multiply_row(const Codes *a, long row, const Panel *p, long column)
{
    const int8x16_t less = vdupq_n_s8(a->is_unsigned ? -128 : 0), rest = vdupq_n_s8(a->is_unsigned ? 64 : 0);
    int32x4_t sum = vdupq_n_s32(0), more = sum;
    for (long step = 0; step < p->steps; step++)
        for (int k = 0; k < STEP; k += 16) {
            int8x16_t w = vld1q_s8(p->bytes + (column * p->steps + step) * STEP + k);
            sum = vdotq_s32(sum, veorq_s8(vld1q_s8(codes_at(a, row, step) + k), less), w);
            more = vdotq_s32(more, rest, w);
        }
    return vaddvq_s32(sum) + 2 * vaddvq_s32(more);
}
#else
/* The same in plain loops, which compilers turn into whatever the processor has for products of bytes. */
static int32_t multiply_row(const Codes *a, long row, const Panel *p, long column)
{
    int32_t sum = 0;
    for (long step = 0; step < p->steps; step++) {
        const int8_t *x = codes_at(a, row, step), *w = p->bytes + (column * p->steps + step) * STEP;
        if (a->is_unsigned)
            for (int k = 0; k < STEP; k++)
                sum += (int16_t)(uint8_t)x[k] * (int16_t)w[k];
        else
            for (int k = 0; k < STEP; k++)
                sum += (int16_t)x[k] * (int16_t)w[k];
    }
    return sum;
}
#endif

static void multiply_bytes(const Codes *a, long row, long count, const Panel *p, int32_t *c, long stride, int adds)
{
    for (long r = 0; r < count; r++)
        for (int n = 0; n < LANES; n++)
            c[r * stride + n] = (adds ? c[r * stride + n] : 0) + multiply_row(a, row + r, p, n);
}

#endif
