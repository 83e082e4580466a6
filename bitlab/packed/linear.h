/* A linear layer from codes: to the next binarizer's codes, or to floats. */

enum { TILES_KERNEL, BYTES_KERNEL, POPCOUNT_KERNEL, LOOKUP_KERNEL, KERNELS };

/* What is to be computed with; pointers are read anew in every call. */
typedef struct {
    const uint8_t *weight;     /* [outputs][ceil(inputs / 8)], bit i of byte j is input 8 j + i, 1 is +1 */
    const float *scale;        /* of the weight */
    const float *bias;         /* [outputs] or NULL */
    const float *alpha, *beta; /* of the input's binarizer */
} Linear;

/* Memory of one thread. */
typedef struct {
    void *panel;         /* of weights */
    void *keys, *values; /* attention's panels, side by side */
    void *probs;         /* codes of 32 rows of probabilities */
    int32_t *products;   /* of queries and keys, [32][room] */
    float *scores;       /* the same */
    int32_t (*c)[LANES]; /* [rows][32] sums */
} Scratch;

/* One linear layer at work. Its outputs may come in heads, whose codes are padded to whole steps. */
typedef struct {
    const Linear *linear;
    const uint8_t *then; /* weights that are wanted next, or NULL */
    Codes in;
    Planes *planes;
    Tables *tables;
    long tokens, inputs, outputs, heads, threads;
    int kernel, rounds_once;
    float scale, least;   /* least: 0 for ReLU, else -INFINITY */
    Set set;              /* of the codes that come out, if out.codes */
    Codes out;
    const int32_t *place; /* the row of `out` that a token has, or NULL for its own number */
    float *y;             /* else floats, */
    int adds;             /* which may be added to what is there */
} Product;

/* How much is added to signed codes for this kernel. */
static int32_t offset_for(int kernel) { return kernel == BYTES_KERNEL ? OFFSET : 0; }

/* c[r][n] = (what is there, if it adds) + sum over k of row r times column n of a panel, for up to 32 rows, `stride`
 * numbers apart. */
static void multiply(int kernel, const Codes *a, long row, long count, const Panel *p, int32_t *c, long stride, int adds)
{
#ifdef TILES
    if (kernel == TILES_KERNEL) {
        multiply_tiles(a, row, p, c, stride, adds);
        return;
    }
#endif
    (void)kernel;
    multiply_bytes(a, row, count, p, c, stride, adds);
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
ALWAYS Floats affine(const int32_t *c, Floats scale, Floats bias, int rounds_once)
{
    return rounds_once ? fma32(from_ints(c), scale, bias) : add(mul(from_ints(c), scale), bias);
}

/* What a binarizer of the next layer gets of row r. */
ALWAYS Floats before_codes(Product p, Block b, const int32_t *c)
{
    return sub(greater(all(p.least), affine(c, all(p.scale), b.bias, p.rounds_once)), b.beta);
}

static inline int8_t *output_codes(Product p, Block b, long row)
{
    return codes_at(&p.out, p.place ? p.place[row] : row, b.column / STEP) + b.column % STEP;
}

/* Divides where quick_codes could not tell, and fills up. Returns whether a number was none. */
__attribute__((noinline)) static int divide_codes(const Product *p, const Block *b, long row, long count, int32_t c[][LANES])
{
    int none = 0;
    for (long r = 0; r < count; r++)
        none |= codes_of(before_codes(*p, *b, c[r]), p->set, output_codes(*p, *b, row + r), b->count);
    return none;
}

/* The next binarizer's codes of 32 outputs of some rows. Layer and block are copied first: stores of bytes could change
 * anything, for all that a compiler knows. Returns whether a number was none. */
static int finish_codes(const Product *product, const Block *block, long row, long count, int32_t c[][LANES])
{
    const Product p = *product;
    const Block b = *block;
    uint32_t look = b.count < LANES;
    for (long r = 0; r < count; r++)
        look |= quick_codes(before_codes(p, b, c[r]), p.set, output_codes(p, b, row + r));
    return look ? divide_codes(product, block, row, count, c) : 0;
}

/* Floats. */
static void finish_floats(const Product *product, const Block *block, long row, long count, int32_t c[][LANES])
{
    const Product p = *product;
    const Block b = *block;
    for (long r = 0; r < count; r++) {
        Floats v = affine(c[r], all(p.scale), b.bias, p.rounds_once);
        float *y = p.y + (row + r) * p.outputs + b.first;
        store_some(y, p.adds ? add(v, load_some(y, b.count, 0)) : v, b.count);
    }
}

/* Opens 32 outputs from one step of the inputs on. */
static void open_block(const Product *p, const Block *b, long step, Panel *panel)
{
    const long row = ceil_div(p->inputs, 8), from = step * STEP / 8;
    const uint8_t *weight = p->linear->weight + b->first * row + from;
    if (p->kernel == POPCOUNT_KERNEL)
        open_words(weight, row, b->count, p->planes, (uint32_t *)panel->bytes);
#ifdef LOOKUP
    else if (p->kernel == LOOKUP_KERNEL)
        open_indices(weight, row, row - from, b->count, panel);
#endif
    else
        open_weights(weight, row, row - from, b->count, panel);
    if (p->kernel == BYTES_KERNEL)
        sum_columns(panel);
}

/* The sums of 32 rows or fewer become codes or floats. Returns whether a number was none. */
static int finish(const Product *p, const Block *b, long row, long count, int32_t c[][LANES])
{
    if (p->out.codes)
        return finish_codes(p, b, row, count, c);
    finish_floats(p, b, row, count, c);
    return 0;
}

#define OPEN_STEPS 6 /* to bytes: 12 KB */

/* Steps that are opened at a time. */
static long at_once(int kernel, long all)
{
    return kernel == POPCOUNT_KERNEL ? all : kernel == LOOKUP_KERNEL ? LOOKUP_STEPS : OPEN_STEPS;
}

/* All rows times 32 outputs. So many steps are opened at a time that they stay in the first cache while 32 rows after 32
 * rows of codes stream past; of a wider layer all rows' sums wait for the next steps. Meanwhile the weights that come
 * `then` are fetched, a share with each 32 rows. */
static int run_block(const Product *p, long number, const uint8_t *then, const Scratch *s)
{
    const Block b = make_block(p, number);
    const long all = p->in.steps, most = at_once(p->kernel, all);
    const long size = LANES * ceil_div(p->inputs, 8), turns = ceil_div(all, most) * ceil_div(p->tokens, LANES);
    const uint8_t *end = then ? then + size : NULL;
    int none = 0;
    for (long step = 0; step < all; step += most) {
        Panel panel = panel_at(s->panel, 0, all - step < most ? all - step : most);
        Codes in = p->in;
        in.first += step;
        open_block(p, &b, step, &panel);
        for (long row = 0; row < p->tokens; row += LANES) {
            const long count = p->tokens - row < LANES ? p->tokens - row : LANES;
            int32_t(*c)[LANES] = s->c + (most < all ? row : 0);
            for (long i = 0; i < size / turns && then < end; i += 64, then += 64)
                __builtin_prefetch(then, 0, 2);
            if (p->kernel == POPCOUNT_KERNEL)
                multiply_planes(p->planes, row, count, (const uint32_t *)panel.bytes, c);
#ifdef LOOKUP
            else if (p->kernel == LOOKUP_KERNEL)
                multiply_tables(p->tables, row, step, count, &panel, c);
#endif
            else
                multiply(p->kernel, &in, row, count, &panel, c[0], LANES, step > 0);
            if (step + most >= all)
                none |= finish(p, &b, row, count, c);
        }
    }
    return none;
}

/* One linear layer, shared by the threads of a parallel region. */
static int run(Product *p, Scratch *s)
{
    const long blocks = p->heads * ceil_div(p->outputs / p->heads, LANES);
    int none = 0;
    p->scale = (*p->linear->alpha < SMALLEST_ALPHA ? SMALLEST_ALPHA : *p->linear->alpha) * *p->linear->scale;
    if (p->kernel == POPCOUNT_KERNEL) {
#pragma omp for schedule(static)
        for (long r = 0; r < p->tokens; r++)
            row_planes(&p->in, p->planes, r);
    }
#ifdef LOOKUP
    if (p->kernel == LOOKUP_KERNEL) {
#pragma omp for schedule(static)
        for (long r = 0; r < p->tokens; r++)
            row_tables(&p->in, p->tables, r);
    }
#endif
#pragma omp for schedule(static)
    for (long number = 0; number < blocks; number++) {
        const long next = number + 1 < blocks ? number + 1 : 0;
        const uint8_t *weight = p->linear->weight + make_block(p, next).first * ceil_div(p->inputs, 8);
        none |= run_block(p, number, next ? weight : p->then, s);
    }
    return none;
}
