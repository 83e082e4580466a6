/* Runs every entry point of the kernel: against plain arithmetic, with arrays exactly as long as they must be (so that
 * a sanitizer sees one byte too far), each kernel against the others, and with hostile sizes, which must be refused. */
#include "kernel.c"
#include <stdio.h>

#define EXPECT(condition) \
    do { \
        if (!(condition)) { \
            printf("line %d: %s\n", __LINE__, #condition); \
            exit(1); \
        } \
    } while (0)

static uint32_t state = 1;

static uint32_t next(void)
{
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

static long below(long n) { return (long)(next() % (uint32_t)n); }

static void *made[200]; /* everything allocated, freed together */
static int count;

static void *allocate(size_t size)
{
    void *p = NULL;
    EXPECT(posix_memalign(&p, 64, size ? size : 1) == 0);
    return made[count++] = p;
}

static void free_all(void)
{
    while (count)
        free(made[--count]);
}

static uint8_t *bytes(long n)
{
    uint8_t *p = allocate((size_t)n);
    for (long i = 0; i < n; i++)
        p[i] = (uint8_t)next();
    return p;
}

/* Multiples of `unit` between -range and range. */
static float *floats(long n, long range, float unit)
{
    float *p = allocate((size_t)n * sizeof *p);
    for (long i = 0; i < n; i++)
        p[i] = (float)(below(2 * range + 1) - range) * unit;
    return p;
}

static const float one = 1, small = .05f;

/* No kernel looks up sums of codes of 8 bits. */
static long known(int kernel, long bits) { return kernel == LOOKUP_KERNEL && bits == 8 ? BYTES_KERNEL : kernel; }

static long code(float x, long bits, int is_signed)
{
    long low = is_signed ? -(1 << (bits - 1)) : 0, high = is_signed ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
    if (bits == 1 && is_signed)
        return x >= 0 ? 1 : -1;
    return (long)x < low ? low : (long)x > high ? high : (long)x;
}

static void linear(int kernel)
{
    long tokens = below(70), width = 1 + below(600), outputs = 1 + below(70), bits = 1 << below(4), row = ceil_div(width, 8);
    int is_signed = (int)below(2);
    Sizes n = {1, tokens, width, 1, outputs, bits, known(kernel, bits), 1, 16, 1, 0, 0, 0, 1, 0};
    uint8_t *weight = bytes(outputs * row); /* bits past the width are anything */
    float *x = floats(tokens * width, 140, 1), *y = floats(tokens * outputs, 1, 1);
    Linear l = {weight, &one, NULL, &one, floats(width, 0, 1)};
    int64_t room = bitlab_room(&n, 0);
    void *memory = allocate((size_t)room);
    EXPECT(bitlab_linear(&l, &n, is_signed, x, y, memory, room) == DONE);
    EXPECT(bitlab_linear(&l, &n, is_signed, x, y, memory, room - 1) == BAD_SIZES);
    for (long t = 0; t < tokens; t++)
        for (long o = 0; o < outputs; o++) {
            long dot = 0;
            for (long k = 0; k < width; k++) {
                int up = weight[o * row + k / 8] >> k % 8 & 1;
                dot += code(x[t * width + k], bits, is_signed) * (up ? 1 : -1);
            }
            EXPECT(y[t * outputs + o] == (float)dot);
        }
    free_all();
}

static Linear random_linear(long inputs, long outputs)
{
    uint8_t *weight = bytes(outputs * ceil_div(inputs, 8));
    float *bias = floats(outputs, 100, 1.f / 64), *beta = floats(inputs, 100, 1.f / 64);
    return (Linear){weight, &one, bias, &one, beta};
}

/* Two layers of random sizes; returns the sum of what comes out. */
static float encoder(int kernel)
{
    long heads = 1 + below(3), width = heads * (1 + below(heads > 1 ? 20 : 70)), inner = 1 + below(70);
    int many = !below(4); /* so many that two threads or three share the examples */
    long batch = many ? 130 + below(9) : below(3), length = below(many ? 4 : heads > 2 ? 70 : 20);
    long tokens = batch * length, bits = 1 << below(4), threads = 1 + below(3);
    int whole = (int)below(2); /* a mask for every head and query, or one for keys */
    Sizes n = {batch, length, width, heads, inner, bits, known(kernel, bits), threads, 16, 1, length, 0, 0, .125f, 1e-5f};
    Layer layers[2];
    for (int i = 0; i < 2; i++) {
        Layer *l = layers + i;
        for (int j = 0; j < 3; j++) {
            l->project[j] = random_linear(width, width);
            l->after[j] = (Binarizer){&one, floats(width, 100, 1.f / 64)};
        }
        l->out = random_linear(width, width);
        l->first = random_linear(width, inner);
        l->second = random_linear(inner, width);
        l->probs = (Binarizer){&small, NULL};
        l->out_norm = (Norm){floats(width, 100, 1.f / 64), floats(width, 100, 1.f / 64)};
        l->second_norm = (Norm){floats(width, 100, 1.f / 64), floats(width, 100, 1.f / 64)};
    }
    float *x = floats(tokens * width, 100, 1.f / 64), *mask = floats(whole ? tokens * heads * length : tokens, 100, 1), sum = 0;
    for (long i = 0; !whole && i < tokens; i++)
        mask[i] = mask[i] > 0 ? 0 : -3e38f;
    if (whole) {
        n.mask_example = heads * length * length;
        n.mask_head = length * length;
        n.mask_query = length;
    }
    int64_t room = bitlab_room(&n, 1);
    void *memory = allocate((size_t)room);
    EXPECT(bitlab_encoder(layers, 2, &n, x, below(3) ? mask : NULL, memory, room) == DONE);
    EXPECT(bitlab_encoder(layers, 2, &n, x, mask, memory, room - 1) == BAD_SIZES);
    for (long i = 0; i < tokens * width; i++)
        sum += x[i];
    free_all();
    return sum;
}

static void hostile(int kernel)
{
    const long odd[] = {0, -1, 1, 3, 7, 1L << 24, 1L << 40, -(1L << 62), 9223372036854775807L};
    Sizes n = {2, 5, 12, 3, 8, 2, kernel, 1, 16, 1, 0, 0, 0, 1, 0};
    long *fields[] = {&n.batch, &n.length, &n.width, &n.heads, &n.inner, &n.bits, &n.kernel, &n.threads, &n.lanes};
    const int64_t endless = (int64_t)1 << 62;
    for (int i = 0; i < 9; i++) {
        long before = *fields[i];
        for (int j = 0; j < 9; j++) {
            *fields[i] = odd[j];
            int64_t room = bitlab_room(&n, 1);
            EXPECT(room >= 0 || bitlab_encoder(NULL, 1, &n, NULL, NULL, NULL, endless) == BAD_SIZES);
            EXPECT(room >= 0 || bitlab_linear(NULL, &n, 1, NULL, NULL, NULL, endless) == BAD_SIZES);
            EXPECT(bitlab_encoder(NULL, 1, &n, NULL, NULL, NULL, -1) == BAD_SIZES);
        }
        *fields[i] = before;
    }
    EXPECT(bitlab_encoder(NULL, -1, &n, NULL, NULL, NULL, endless) == BAD_SIZES);
    int64_t ids[2] = {4, -1};
    uint8_t *table = bytes(5 * 2);
    float *scales = floats(5, 3, 1), *out = floats(2 * 9, 1, 1);
    EXPECT(bitlab_rows(ids, 1, table, scales, 5, 9, out) == DONE);
    EXPECT(bitlab_rows(ids, 2, table, scales, 5, 9, out) == BAD_SIZES);
    ids[1] = 5;
    EXPECT(bitlab_rows(ids, 2, table, scales, 5, 9, out) == BAD_SIZES);
    free_all();
}

int main(void)
{
    for (int kernel = 0; kernel < KERNELS; kernel++) {
        if (!bitlab_has_kernel(kernel))
            continue;
        for (int i = 0; i < 20; i++)
            linear(kernel);
        hostile(kernel);
    }
    for (int i = 0; i < 15; i++) {
        uint32_t start = next() | 1;
        state = start;
        float expected = encoder(POPCOUNT_KERNEL);
        for (int kernel = 0; kernel < KERNELS; kernel++) {
            if (!bitlab_has_kernel(kernel))
                continue;
            state = start;
            float found = encoder(kernel);
            EXPECT(memcmp(&found, &expected, sizeof found) == 0);
        }
    }
    (void)bitlab_limit_bits(1, 1);
    EXPECT(bitlab_limit_float(1, 0, 0) == 0);
    return 0;
}
