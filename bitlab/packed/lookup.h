/* Products by looking up: four one-bit weights choose one of the 16 sums that four codes can have.
 *
 * Every four codes of a row get a table of 16 bytes: entry e is the sum of the codes whose bit is set in e. Four bits of
 * weights are an index into it, and one shuffle of bytes looks up 16 outputs in each of a vector's tables. The dot
 * product is twice what was chosen less the sum of all codes. Entries have a bias that keeps them at 0 or above, so that
 * bytes hold some of them before 16 bits have to.
 *
 * Bytes b to b + 3 of a row of weights are 8 indices: the low halves belong to four tables side by side, the high ones
 * to the next four. Arithmetic on vectors is the compiler's; what processors call otherwise stands in one place.
 */
#if defined(__AVX512BW__)
#define VECTOR 64     /* bytes of a vector */
#define LOOKUP_ROWS 4 /* rows that share one pass over the weights: their sums stay in registers */
#elif defined(__AVX2__)
#define VECTOR 32
#define LOOKUP_ROWS 2
#elif defined(__aarch64__)
#define VECTOR 16
#define LOOKUP_ROWS 4
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

#ifdef VECTOR
#define LOOKUP 1

#define VECTOR_OF(size) __attribute__((vector_size(size), may_alias))
typedef uint8_t Bytes VECTOR_OF(VECTOR);
typedef uint16_t Shorts VECTOR_OF(VECTOR);
typedef int32_t Words VECTOR_OF(VECTOR);
typedef uint8_t Bytes16 VECTOR_OF(16);
typedef uint16_t Shorts8 VECTOR_OF(16);
typedef int32_t Words8 VECTOR_OF(32);

/* What each processor calls otherwise:
 * choose     of every 16 bytes of tables those that 16 indices name, 0 for the index 0x80
 * fours      every other four of 32 codes, from number `first` on: one for each table of a vector, repeated
 * sums       of each four of 32 codes
 * LOW, HIGH  numbers of a and b in turn, from their first halves or from their second */
#if VECTOR == 64
ALWAYS Bytes choose(Bytes tables, Bytes indices) { return (Bytes)_mm512_shuffle_epi8((__m512i)tables, (__m512i)indices); }
ALWAYS Bytes fours(const int8_t *codes, int first)
{
    const Words every = {0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6};
    __m256i all = _mm256_loadu_si256((const __m256i *)codes);
    return (Bytes)_mm512_permutexvar_epi32((__m512i)(every + first), _mm512_castsi256_si512(all));
}
#elif VECTOR == 32
ALWAYS Bytes choose(Bytes tables, Bytes indices) { return (Bytes)_mm256_shuffle_epi8((__m256i)tables, (__m256i)indices); }
ALWAYS Bytes fours(const int8_t *codes, int first)
{
    const Words every = {0, 0, 0, 0, 2, 2, 2, 2};
    return (Bytes)_mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)codes), (__m256i)(every + first));
}
#else
ALWAYS Bytes choose(Bytes tables, Bytes indices) { return (Bytes)vqtbl1q_u8((uint8x16_t)tables, (uint8x16_t)indices); }
ALWAYS Bytes fours(const int8_t *codes, int first) { return (Bytes)vld1q_dup_s32((const int32_t *)codes + first); }
#endif

#if VECTOR == 16
#define LOW_BYTES(a, b) ((Bytes16)vzip1q_u8((uint8x16_t)(a), (uint8x16_t)(b)))
#define HIGH_BYTES(a, b) ((Bytes16)vzip2q_u8((uint8x16_t)(a), (uint8x16_t)(b)))
#define LOW_SHORTS(a, b) ((Shorts8)vzip1q_u16((uint16x8_t)(a), (uint16x8_t)(b)))
#define HIGH_SHORTS(a, b) ((Shorts8)vzip2q_u16((uint16x8_t)(a), (uint16x8_t)(b)))
ALWAYS Words8 sums(const int8_t *codes)
{
    int32x4x2_t both;
    for (int i = 0; i < 2; i++)
        both.val[i] = vpaddlq_s16(vpaddlq_s8(vld1q_s8(codes + 16 * i)));
    return *(Words8 *)&both;
}
#else
#define LOW_BYTES(a, b) ((Bytes16)_mm_unpacklo_epi8((__m128i)(a), (__m128i)(b)))
#define HIGH_BYTES(a, b) ((Bytes16)_mm_unpackhi_epi8((__m128i)(a), (__m128i)(b)))
#define LOW_SHORTS(a, b) ((Shorts8)_mm_unpacklo_epi16((__m128i)(a), (__m128i)(b)))
#define HIGH_SHORTS(a, b) ((Shorts8)_mm_unpackhi_epi16((__m128i)(a), (__m128i)(b)))
ALWAYS Words8 sums(const int8_t *codes)
{
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i *)codes));
    return (Words8)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#endif

static Tables tables_of(const Tables *memory, long steps, long bits, int is_signed)
{
    int bias = is_signed ? 4 << (bits - 1) : 0, greatest = is_signed && bits == 1 ? 8 : 4 * ((1 << bits) - 1);
    return (Tables){memory->bytes, memory->sums, steps, bias, 255 / greatest};
}

/* The tables of one row of codes: of 8 fours the even ones, then the odd ones. */
static void row_tables(const Codes *a, const Tables *t, long row)
{
    uint8_t *out = t->bytes + row * t->steps * 4 * TABLES;
    Words8 total = {0};
    Bytes pick[4]; /* code i for the entries with bit i, else 0 */
    for (int i = 0; i < 4; i++)
        for (int e = 0; e < VECTOR; e++)
            pick[i][e] = e >> i & 1 ? (uint8_t)i : 0x80;
    for (long half = 0; half < 2 * t->steps; half++) {
        int8_t codes[32] __attribute__((aligned(32)));
        memcpy(codes, codes_at(a, row, half / 2) + half % 2 * 32, sizeof codes);
#ifdef QUADS
        _mm256_storeu_si256((__m256i *)codes, in_order(_mm256_loadu_si256((const __m256i *)codes)));
#endif
        total += sums(codes);
        for (int odd = 0; odd < 2; odd++)
            for (int first = odd; first < 8; first += VECTOR / 8, out += VECTOR) {
                Bytes sum = (Bytes){0} + (uint8_t)t->bias, each = fours(codes, first);
                for (int i = 0; i < 4; i++)
                    sum += choose(each, pick[i]);
                *(Bytes *)out = sum;
            }
    }
    t->sums[row] = 0;
    for (int i = 0; i < 8; i++)
        t->sums[row] += total[i];
}

/* Bits [count][bytes] of weights -> indices [4 * steps][2][TABLES], 16 outputs a time. Past the end of a row they are
 * anything, for there the codes are 0. */
static void open_indices(const uint8_t *weight, long stride, long bytes, long count, Panel *p)
{
    for (long k = 0; k < p->steps * 8; k += 16)
        for (int half = 0; half < 2; half++) {
            Bytes16 r[16], t[16];
            for (int i = 0; i < 16; i++) {
                const long n = half * 16 + i, there = n < count ? bytes - k : 0;
                r[i] = (Bytes16){0};
                if (there >= 16)
                    memcpy(&r[i], weight + n * stride + k, 16);
                else if (there > 0)
                    memcpy(&r[i], weight + n * stride + k, (size_t)there);
            }
            for (int turn = 0; turn < 4; turn++) { /* the first half between the second: four times is a transpose */
                for (int i = 0; i < 8; i++) {
                    t[2 * i] = LOW_BYTES(r[i], r[i + 8]);
                    t[2 * i + 1] = HIGH_BYTES(r[i], r[i + 8]);
                }
                memcpy(r, t, sizeof r);
            }
            for (long b = k; b < k + 16 && b < p->steps * 8; b++) {
                int8_t *out = p->bytes + (b / 4 * 4 + half) * TABLES + b % 4 * 16;
                *(Bytes16 *)out = r[b - k] & 15;
                *(Bytes16 *)(out + 2 * TABLES) = r[b - k] >> 4;
            }
        }
}

/* The sums of a vector's tables. */
ALWAYS Shorts8 fold(Shorts v)
{
    Shorts8 parts[VECTOR / 16];
    memcpy(parts, &v, sizeof v);
    for (int i = 1; i < VECTOR / 16; i++)
        parts[0] += parts[i];
    return parts[0];
}

/* c[r][n] = (what is there, if it adds, else less the sum of the row) + twice what 32 outputs choose, for a few rows. */
static void look_up(const Tables *t, long row, long step, long count, const Panel *p, int32_t c[][LANES], int adds)
{
    const uint8_t *at = t->bytes + (row * t->steps + step) * 4 * TABLES;
    const long size = p->steps * 4, parts = TABLES / VECTOR, full = t->most / parts;
    Shorts even[LOOKUP_ROWS][2], odd[LOOKUP_ROWS][2]; /* outputs */
    for (int i = 0; i < 2 * LOOKUP_ROWS; i++)
        even[i / 2][i % 2] = odd[i / 2][i % 2] = (Shorts){0};
    for (long start = 0; start < size; start += full) {
        const long end = start + full < size ? start + full : size;
        Bytes sum[LOOKUP_ROWS][2];
        for (int i = 0; i < 2 * LOOKUP_ROWS; i++)
            sum[i / 2][i % 2] = (Bytes){0};
        for (long k = start; k < end; k++)
            for (long part = 0; part < TABLES; part += VECTOR) {
                const int8_t *weights = p->bytes + 2 * k * TABLES + part;
                const Bytes left = *(const Bytes *)weights, right = *(const Bytes *)(weights + TABLES);
                for (int r = 0; r < LOOKUP_ROWS; r++) {
                    const Bytes tables = *(const Bytes *)(at + (r * t->steps * 4 + k) * TABLES + part);
                    sum[r][0] += choose(tables, left);
                    sum[r][1] += choose(tables, right);
                }
            }
        for (int i = 0; i < 2 * LOOKUP_ROWS; i++) { /* even + 256 odd, for now */
            even[i / 2][i % 2] += (Shorts)sum[i / 2][i % 2];
            odd[i / 2][i % 2] += (Shorts)sum[i / 2][i % 2] >> 8;
        }
    }
    const int32_t bias = 2 * t->bias * (int32_t)p->steps * (STEP / 4);
    for (int r = 0; r < LOOKUP_ROWS && r < count; r++) {
        const int32_t start = -bias - (adds ? 0 : t->sums[row + r]);
        for (int half = 0; half < 2; half++) {
            const Shorts8 o = fold(odd[r][half]), e = fold(even[r][half]) - (o << 8);
            const Shorts8 eight[2] = {LOW_SHORTS(e, o), HIGH_SHORTS(e, o)};
            for (int i = 0; i < 2; i++) {
                Words8 *out = (Words8 *)(c[r] + 16 * half + 8 * i), found = 2 * __builtin_convertvector(eight[i], Words8);
                if (adds)
                    found += *out;
                *out = found + start;
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
