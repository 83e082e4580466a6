/* Products by looking up: four one-bit weights choose one of the 16 sums that four codes can have.
 *
 * Every four codes of a row get a table of 16 bytes: entry e is the sum of the codes whose bit is set in e. Four bits of
 * weights are an index into it, and one shuffle of bytes looks up 16 outputs in each of a vector's tables. The dot
 * product is twice what was chosen less the sum of all codes. Entries have a bias that keeps them at 0 or above, so that
 * bytes hold some of them before 16 bits have to.
 *
 * Bytes b to b + 3 of a row of weights are 8 indices: the low halves lie in one vector of tables, the high in the next.
 */
#if defined(__AVX512BW__)
#define LOOKUP 1
#define LOOKUP_ROWS 4 /* rows that share one pass over the weights: their sums stay in registers */
typedef __m512i Vector;
#define VECTOR(name) _mm512_##name
#define LOAD_TABLES(p) _mm512_load_si512(p)
#define NOUGHT() _mm512_setzero_si512()
#define SPREAD(codes, which) _mm512_permutexvar_epi32(which, _mm512_castsi256_si512(codes))
#elif defined(__AVX2__)
#define LOOKUP 1
#define LOOKUP_ROWS 2
typedef __m256i Vector;
#define VECTOR(name) _mm256_##name
#define LOAD_TABLES(p) _mm256_load_si256((const __m256i *)(p))
#define NOUGHT() _mm256_setzero_si256()
#define SPREAD(codes, which) _mm256_permutevar8x32_epi32(codes, which)
#endif

#define TABLES 64       /* bytes of 4 tables */
#define LOOKUP_STEPS 24 /* opened at a time: 12 KB, and sums that 16 bits hold */

/* Rows of codes as tables. */
typedef struct {
    uint8_t *bytes; /* [rows][4 * steps][TABLES] */
    int32_t *sums;  /* [rows] of all codes */
    long steps;
    int bias;       /* of every entry */
    int most;       /* entries that a byte holds the sum of */
} Tables;

#ifdef LOOKUP

static Tables tables_of(const Tables *memory, long steps, long bits, int is_signed)
{
    int bias = is_signed ? 4 << (bits - 1) : 0, greatest = is_signed && bits == 1 ? 8 : 4 * ((1 << bits) - 1);
    return (Tables){memory->bytes, memory->sums, steps, bias, 255 / greatest};
}

/* The tables of one row of codes. */
static void row_tables(const Codes *a, const Tables *t, long row)
{
    const __m256i ones = _mm256_set1_epi8(1);
    const long each = sizeof(Vector) / sizeof(int32_t);
    uint8_t *out = t->bytes + row * t->steps * 4 * TABLES;
    __m256i total = _mm256_setzero_si256();
    int32_t which[2 * STEP / 4]; /* of 8 times four codes: the even ones, then the odd ones, each for 16 entries */
    Vector pick[4]; /* code i for the entries with bit i, else 0 */
    for (int i = 0; i < 32; i++)
        which[i] = i / 4 % 4 * 2 + i / 16;
    for (int i = 0; i < 4; i++) {
        uint8_t entries[64];
        for (int e = 0; e < 64; e++)
            entries[e] = e >> i & 1 ? (uint8_t)i : 0x80;
        memcpy(&pick[i], entries, sizeof pick[i]);
    }
    for (long half = 0; half < 2 * t->steps; half++) {
        __m256i codes = _mm256_loadu_si256((const __m256i *)(codes_at(a, row, half / 2) + half % 2 * 32));
#ifdef QUADS
        codes = in_order(codes);
#endif
        total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(ones, codes), _mm256_set1_epi16(1)));
        for (int i = 0; i < 32; i += each, out += sizeof(Vector)) {
            Vector spread, sum = VECTOR(set1_epi8)((char)t->bias);
            memcpy(&spread, which + i, sizeof spread);
            spread = SPREAD(codes, spread);
            for (int j = 0; j < 4; j++)
                sum = VECTOR(add_epi8)(sum, VECTOR(shuffle_epi8)(spread, pick[j]));
            memcpy(out, &sum, sizeof sum);
        }
    }
    int32_t sums[8];
    memcpy(sums, &total, sizeof sums);
    t->sums[row] = sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

/* Bits [count][bytes] of weights -> indices [4 * steps][2][TABLES], 16 outputs a time. Past the end of a row they are
 * anything, for there the codes are 0. */
static void open_indices(const uint8_t *weight, long stride, long bytes, long count, Panel *p)
{
    const __m128i low = _mm_set1_epi8(15);
    for (long k = 0; k < p->steps * 8; k += 16)
        for (int half = 0; half < 2; half++) {
            __m128i r[16], t[16];
            for (int i = 0; i < 16; i++) {
                const long n = half * 16 + i, there = n < count ? bytes - k : 0;
                r[i] = there < 16 ? _mm_setzero_si128() : _mm_loadu_si128((const __m128i *)(weight + n * stride + k));
                if (there > 0 && there < 16)
                    memcpy(&r[i], weight + n * stride + k, (size_t)there);
            }
            for (int turn = 0; turn < 4; turn++) { /* the first half between the second: four times is a transpose */
                for (int i = 0; i < 8; i++) {
                    t[2 * i] = _mm_unpacklo_epi8(r[i], r[i + 8]);
                    t[2 * i + 1] = _mm_unpackhi_epi8(r[i], r[i + 8]);
                }
                memcpy(r, t, sizeof r);
            }
            for (long b = k; b < k + 16 && b < p->steps * 8; b++) {
                int8_t *out = p->bytes + (b / 4 * 4 + half) * TABLES + b % 4 * 16;
                _mm_store_si128((__m128i *)out, _mm_and_si128(r[b - k], low));
                _mm_store_si128((__m128i *)(out + 2 * TABLES), _mm_and_si128(_mm_srli_epi16(r[b - k], 4), low));
            }
        }
}

/* The sums of a vector's tables: 8 times 16 bits. */
static inline __m128i fold(Vector v)
{
#ifdef __AVX512BW__
    __m256i both = _mm256_add_epi16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
#else
    __m256i both = v;
#endif
    return _mm_add_epi16(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
}

/* c[r][n] = (what is there, if it adds, else less the sum of the row) + twice what 32 outputs choose, for a few rows. */
static void look_up(const Tables *t, long row, long step, long count, const Panel *p, int32_t c[][LANES], int adds)
{
    const uint8_t *at = t->bytes + (row * t->steps + step) * 4 * TABLES;
    const long size = p->steps * 4, parts = TABLES / sizeof(Vector), full = t->most / parts;
    Vector even[LOOKUP_ROWS][2], odd[LOOKUP_ROWS][2]; /* outputs, in 16 bits */
    for (int i = 0; i < 2 * LOOKUP_ROWS; i++)
        even[i / 2][i % 2] = odd[i / 2][i % 2] = NOUGHT();
    for (long start = 0; start < size; start += full) {
        const long end = start + full < size ? start + full : size;
        Vector sum[LOOKUP_ROWS][2]; /* in bytes */
        for (int i = 0; i < 2 * LOOKUP_ROWS; i++)
            sum[i / 2][i % 2] = NOUGHT();
        for (long k = start; k < end; k++)
            for (long part = 0; part < parts; part++) {
                const long from = part * sizeof(Vector);
                const Vector left = LOAD_TABLES(p->bytes + 2 * k * TABLES + from);
                const Vector right = LOAD_TABLES(p->bytes + (2 * k + 1) * TABLES + from);
                for (int r = 0; r < LOOKUP_ROWS; r++) {
                    const Vector tables = LOAD_TABLES(at + (r * t->steps * 4 + k) * TABLES + from);
                    sum[r][0] = VECTOR(add_epi8)(sum[r][0], VECTOR(shuffle_epi8)(tables, left));
                    sum[r][1] = VECTOR(add_epi8)(sum[r][1], VECTOR(shuffle_epi8)(tables, right));
                }
            }
        for (int i = 0; i < 2 * LOOKUP_ROWS; i++) { /* even + 256 odd, for now */
            even[i / 2][i % 2] = VECTOR(add_epi16)(even[i / 2][i % 2], sum[i / 2][i % 2]);
            odd[i / 2][i % 2] = VECTOR(add_epi16)(odd[i / 2][i % 2], VECTOR(srli_epi16)(sum[i / 2][i % 2], 8));
        }
    }
    const int32_t bias = 2 * t->bias * (int32_t)p->steps * (STEP / 4);
    for (int r = 0; r < LOOKUP_ROWS && r < count; r++) {
        const __m256i start = _mm256_set1_epi32(-bias - (adds ? 0 : t->sums[row + r]));
        for (int half = 0; half < 2; half++) {
            const __m128i o = fold(odd[r][half]);
            const __m128i e = fold(VECTOR(sub_epi16)(even[r][half], VECTOR(slli_epi16)(odd[r][half], 8)));
            const __m128i eight[2] = {_mm_unpacklo_epi16(e, o), _mm_unpackhi_epi16(e, o)};
            for (int i = 0; i < 2; i++) {
                __m256i *out = (__m256i *)(c[r] + 16 * half + 8 * i), found = _mm256_cvtepu16_epi32(eight[i]);
                found = _mm256_add_epi32(_mm256_add_epi32(found, found), start);
                _mm256_storeu_si256(out, adds ? _mm256_add_epi32(_mm256_loadu_si256(out), found) : found);
            }
        }
    }
}

/* c[r][n] (+)= sum over the panel's part of row r times weight n, for up to 32 rows. */
static void multiply_tables(const Tables *t, long row, long step, long count, const Panel *p, int32_t c[][LANES])
{
    for (long r = 0; r < count; r += LOOKUP_ROWS)
        look_up(t, row + r, step, count - r, p, c + r, step > 0);
}

#endif
