/* A linear layer from codes: to the next binarizer's codes, or to floats. */

enum { TILES_KERNEL, BYTES_KERNEL, POPCOUNT_KERNEL, KERNELS };

/* What is to be computed with; pointers are read anew in every call. */
typedef struct {
    const uint8_t *weight;     /* [outputs][ceil(inputs / 8)], bit i of byte j is input 8 j + i, 1 is +1 */
    const float *scale;        /* of the weight */
    const float *bias;         /* [outputs] or NULL */
    const float *alpha, *beta; /* of the input's binarizer */
} Linear;

/* Memory of one thread. */
typedef struct {
    void *panel;         /* one, of weights */
    void *keys, *values; /* attention's panels, side by side */
    void *probs;         /* codes of 32 rows of probabilities */
    float *scores;       /* [32][room] */
    int32_t (*c)[LANES]; /* 2 times [32][32] sums */
} Scratch;

/* One linear layer at work. Its outputs may come in heads, whose codes are padded to whole steps. */
typedef struct {
    const Linear *linear;
    Codes in;
    Planes *planes;
    long tokens, inputs, outputs, heads;
    int kernel, rounds_once, relu;
    float scale;
    Set set;              /* of the codes that come out, if out.codes */
    Codes out;
    const int32_t *place; /* the row of `out` that a token has, or NULL for its own number */
    const float *residual; /* else floats: y + residual */
    float *y;
} Product;

/* How much is added to signed codes for this kernel. */
static int32_t offset_for(int kernel) { return kernel == BYTES_KERNEL ? OFFSET : 0; }

/* c[r][n] = sum over k of row r times column n of a panel, for up to 32 rows. */
static void multiply(int kernel, const Codes *a, long row, long count, const Panel *p, int32_t c[LANES][LANES])
{
#ifdef TILES
    if (kernel == TILES_KERNEL) {
        multiply_tiles(a, row, count, p, c);
        return;
    }
#endif
    (void)kernel;
    multiply_bytes(a, row, count, p, c);
}

/* Up to 32 outputs of a linear layer. */
typedef struct {
    long first, count; /* outputs */
    long column;       /* where their codes go */
    Floats bias, beta;
} Block;

static Block make_block(const Product *p, long number)
{
    long width = p->outputs / p->heads, each = ceil_div(width, LANES), at = number % each * LANES;
    long head = number / each, first = head * width + at, count = width - at < LANES ? width - at : LANES;
    Block b = {first, count, head * rounded(width, STEP) + at, all(0), all(0)};
    if (p->linear->bias)
        b.bias = load_some(p->linear->bias + first, count, 0);
    if (p->out.codes)
        b.beta = load_some(p->set.beta + first, count, 0);
    return b;
}

/* Sums -> what the float model makes of them: bias + scale * sum, rounded as torch.addcmul rounds it. */
static inline Floats affine(const int32_t *c, Floats scale, Floats bias, int has_bias, int rounds_once)
{
    Floats sum = from_ints(c);
    if (!has_bias)
        return mul(sum, scale);
    return rounds_once ? fma32(sum, scale, bias) : add(mul(sum, scale), bias);
}

/* The next binarizer's codes of 32 outputs of some rows. What is constant is copied first: stores of bytes could change
 * anything, for all that a compiler knows. Returns whether a number was none. */
static inline int finish_codes(const Product *p, const Block *b, long row, long count, int32_t c[][LANES])
{
    const Floats scale = all(p->scale), bias = b->bias, beta = b->beta;
    const int has_bias = p->linear->bias != NULL, rounds_once = p->rounds_once, relu = p->relu;
    const int32_t *place = p->place;
    const long step = b->column / STEP, rest = b->column % STEP, some = b->count;
    const Set set = p->set;
    const Codes out = p->out;
    int none = 0;
    for (long r = 0; r < count; r++) {
        Floats v = affine(c[r], scale, bias, has_bias, rounds_once);
        if (relu)
            v = greater(all(0), v);
        none |= some_codes(sub(v, beta), &set, codes_at(&out, place ? place[row + r] : row + r, step) + rest, some);
    }
    return none;
}

/* Floats, the residual added. */
static inline void finish_floats(const Product *p, const Block *b, long row, long count, int32_t c[][LANES])
{
    for (long r = 0; r < count; r++) {
        Floats v = affine(c[r], all(p->scale), b->bias, p->linear->bias != NULL, p->rounds_once);
        long at = (row + r) * p->outputs + b->first;
        if (p->residual)
            v = add(v, load_some(p->residual + at, b->count, 0));
        store_some(p->y + at, v, b->count);
    }
}

/* What becomes of 32 rows' sums. */
static inline int finish(const Product *p, const Block *b, long row, long count, int32_t c[][LANES])
{
    if (p->out.codes)
        return finish_codes(p, b, row, count, c);
    finish_floats(p, b, row, count, c);
    return 0;
}

#ifdef TILES
/* All rows of a block on tiles. While these multiply, the vectors finish the 32 rows before, a few rows a step. */
static int block_on_tiles(const Product *p, const Block *b, const Panel *panel, int32_t (*c)[LANES])
{
    int32_t(*sums)[LANES] = c, (*before)[LANES] = c + LANES;
    long waiting = 0, steps = panel->steps;
    int none = 0;
    for (long row = 0; row < p->tokens; row += LANES) {
        long count = p->tokens - row < LANES ? p->tokens - row : LANES;
        tiles_zero();
        long each = ceil_div(waiting, steps);
        for (long step = 0; step < steps; step++) {
            tiles_step(&p->in, row, count > TALL, panel, step);
            long from = step * each < waiting ? step * each : waiting, some = waiting - from < each ? waiting - from : each;
            none |= finish(p, b, row - waiting + from, some, before + from);
        }
        tiles_store(count > TALL, sums);
        int32_t(*other)[LANES] = before;
        before = sums;
        sums = other;
        waiting = count;
    }
    return none | finish(p, b, p->tokens - waiting, waiting, before);
}
#endif

static int block_rows(const Product *p, const Block *b, const Panel *panel, int32_t (*c)[LANES])
{
    int none = 0;
    for (long row = 0; row < p->tokens; row += LANES) {
        long count = p->tokens - row < LANES ? p->tokens - row : LANES;
        if (p->kernel == POPCOUNT_KERNEL)
            multiply_planes(p->planes, row, count, (const uint32_t *)panel->bytes, c);
        else
            multiply_bytes(&p->in, row, count, panel, c);
        none |= finish(p, b, row, count, c);
    }
    return none;
}

/* One linear layer, shared by the threads of a parallel region. */
static int run(Product *p, Scratch *s)
{
    long bytes = ceil_div(p->inputs, 8), blocks = p->heads * ceil_div(p->outputs / p->heads, LANES);
    int none = 0;
    p->scale = (*p->linear->alpha < SMALLEST_ALPHA ? SMALLEST_ALPHA : *p->linear->alpha) * *p->linear->scale;
    if (p->kernel == POPCOUNT_KERNEL) {
#pragma omp for schedule(static)
        for (long r = 0; r < p->tokens; r++)
            row_planes(&p->in, p->planes, r);
    }
#pragma omp for schedule(static)
    for (long number = 0; number < blocks; number++) {
        const Block b = make_block(p, number);
        const uint8_t *weight = p->linear->weight + b.first * bytes;
        Panel panel = panel_at(s->panel, 0, p->in.steps);
        if (p->kernel == POPCOUNT_KERNEL)
            open_words(weight, bytes, b.count, p->planes, s->panel);
        else
            open_weights(weight, bytes, b.count, &panel);
        if (p->kernel == BYTES_KERNEL)
            sum_columns(&panel);
        for (long i = 0; i < LANES * bytes; i += 64) /* the next block's */
            __builtin_prefetch(weight + b.count * bytes + i);
#ifdef TILES
        if (p->kernel == TILES_KERNEL) {
            none |= block_on_tiles(p, &b, &panel, s->c);
            continue;
        }
#endif
        none |= block_rows(p, &b, &panel, s->c);
    }
    return none;
}
