/* Products of bits: XOR or AND, and popcount. One-bit weights stay bits, codes of b bits become b planes of bits.
 *
 * Bits lie in uint32 words, bit i of word k is element 32 k + i, and bits past the end of a row are 0. For a plane of n
 * elements that stand for -1 and +1, or for 0 and 1:
 *     XOR:  dot = n - 2 popcount(a ^ w)            AND:  dot = 2 popcount(a & w) - popcount(a)
 * Codes of several bits are sums of planes of 0 and 1: 2^i for plane i, and -2^(b-1) for the last one of signed codes.
 * The vector lanes are outputs, so nothing is ever summed across lanes.
 */
#define WORD 32
#define TILE 4 /* tokens that share one pass over a block's weights: 128 counters stay in registers */

static inline int count_bits(uint32_t x) { return __builtin_popcount(x); }

/* The tile: c[t][l] = sum over k of popcount(a[t][k] OP w[k][l]). */

#ifdef __ARM_NEON
/* Byte counters hold 31 words (8 bits each) before they are widened. */
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

/* Rows of codes as planes. */
typedef struct {
    uint32_t *words; /* [planes][rows][stride] */
    int32_t *ones;   /* [planes][rows]: bits that are 1 */
    long rows, stride, width;
    int planes, sign, is_signed; /* sign: one plane of -1 and +1 */
} Planes;

/* The planes of one row of codes, padded to whole steps. */
static void row_planes(const Codes *a, Planes *p, long row)
{
    for (int plane = 0; plane < p->planes; plane++) {
        uint32_t *out = p->words + (plane * p->rows + row) * p->stride;
        int32_t ones = 0;
        for (long step = 0; step < a->steps; step++, out += 2) {
            const int8_t *codes = codes_at(a, row, step);
#ifdef QUADS
            __m256i first = in_order(_mm256_loadu_si256((const __m256i *)codes));
            __m256i second = in_order(_mm256_loadu_si256((const __m256i *)(codes + LANES)));
            __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
            uint64_t two = p->sign ? _mm512_cmpgt_epi8_mask(v, _mm512_setzero_si512())
                                   : _mm512_test_epi8_mask(v, _mm512_set1_epi8((char)(1 << plane)));
            memcpy(out, &two, sizeof two);
#else
            out[0] = out[1] = 0;
            for (int i = 0; i < STEP; i++) /* of -1, +1 and the padding's 0, only +1 is above 0 */
                out[i / WORD] |= (uint32_t)(p->sign ? codes[i] > 0 : codes[i] >> plane & 1) << i % WORD;
#endif
            ones += count_bits(out[0]) + count_bits(out[1]);
        }
        p->ones[plane * p->rows + row] = ones;
    }
}

/* Bits [count][bytes] of weights -> words [stride][32]: lanes are outputs. Bits past the width are 0, whatever the file
 * has there. */
static void open_words(const uint8_t *weight, long bytes, long count, const Planes *p, uint32_t *words)
{
#ifdef QUADS
    for (long k = 0; k < p->stride; k += 16)
        for (int half = 0; half < 2; half++) {
            __m512i columns[16];
            load_columns(weight + half * 16 * bytes + k * 4, bytes, count - half * 16, bytes - k * 4, columns);
            for (long w = 0; w < 16 && k + w < p->stride; w++)
                _mm512_storeu_si512(words + (k + w) * LANES + half * 16, columns[w]);
        }
#else
    memset(words, 0, (size_t)(p->stride * LANES) * sizeof *words);
    for (long n = 0; n < count && n < LANES; n++)
        for (long i = 0; i < bytes; i++)
            words[i / 4 * LANES + n] |= (uint32_t)weight[n * bytes + i] << (i % 4 * 8);
#endif
    for (int l = 0; p->width % WORD && l < LANES; l++)
        words[p->width / WORD * LANES + l] &= ((uint32_t)1 << p->width % WORD) - 1;
}

/* One row's sums: (what is there, if it adds) + each * found + ones. No pointer may be another's: then it is vectors. */
ALWAYS void add_plane(const int32_t *restrict found, int32_t each, int32_t ones, int adds, int32_t *restrict c)
{
    for (int l = 0; l < LANES; l++)
        c[l] = (adds ? c[l] : 0) + each * found[l] + ones;
}

/* c[r][n] = sum over k of row r times weight n, for up to 32 rows. */
static void multiply_planes(const Planes *p, long row, long count, const uint32_t *words, int32_t c[LANES][LANES])
{
    int32_t found[TILE][LANES];
    for (long r = 0; r < count; r += TILE)
        for (int plane = 0; plane < p->planes; plane++) {
            long at = plane * p->rows + row + r;
            int32_t value = p->is_signed && !p->sign && plane == p->planes - 1 ? -(1 << plane) : 1 << plane;
            (p->sign ? tile_xor : tile_and)(p->words + at * p->stride, p->stride, words, p->stride, found);
            for (int t = 0; t < TILE && r + t < count; t++)
                if (p->sign)
                    add_plane(found[t], -2, (int32_t)p->width, 0, c[r + t]);
                else
                    add_plane(found[t], 2 * value, -value * p->ones[at + t], plane > 0, c[r + t]);
        }
}
