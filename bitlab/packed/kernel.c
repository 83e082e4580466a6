/* Packed encoders: layers from codes to codes on one-bit weights. C99; built at first use by kernel.py.
 *
 * A binarizer's output is a small integer, its code, in a byte; a weight is a bit. A linear layer is an exact sum of
 * codes with signs, and its epilogue goes straight on to the codes of the next binarizer: floats live in the residual
 * stream, LayerNorm and softmax only (floats.h). Weights are read as they lie in the file, 32 outputs at a time, and
 * multiplied in one of three ways:
 *
 *     tiles     opened to bytes, on AMX tiles                               tiles.h
 *     bytes     opened to bytes, on dot products of bytes (VNNI or plain)   bytes.h
 *     popcount  left as bits, with XOR or AND and popcount                  bits.h
 *
 * Attention multiplies codes with codes, on tiles or bytes. Nothing is kept from call to call.
 */
#ifdef __AVX2__
#include <immintrin.h>
#endif
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
#include <stdlib.h>

#include "floats.h"
#include "bytes.h"
#include "tiles.h"
#include "bits.h"

enum { TILES_KERNEL, BYTES_KERNEL, POPCOUNT_KERNEL, KERNELS };
enum { DONE = 0, NO_NUMBER = 1, BAD_SIZES = -1 };

/* What is to be computed with; pointers are read anew in every call. */
typedef struct {
    const uint8_t *weight; /* [outputs][ceil(inputs / 8)], bit i of byte j is input 8 j + i, 1 is +1 */
    const float *scale;    /* of the weight */
    const float *bias;     /* [outputs] or NULL */
    const float *alpha, *beta; /* of the input's binarizer */
} Linear;

typedef struct {
    const float *alpha, *beta;
} Binarizer;

typedef struct {
    const float *weight, *bias;
} Norm;

typedef struct {
    Linear project[3]; /* query, key, value */
    Linear out, first, second;
    Binarizer after[3]; /* of query, key, value */
    Binarizer probs; /* has no beta */
    Norm out_norm, second_norm;
} Layer;

typedef struct {
    long batch, length, width, heads, inner, bits, kernel, threads;
    long lanes;                                     /* of torch's softmax */
    long rounds_once;                               /* whether torch.addcmul does */
    long mask_example, mask_head, mask_query;       /* strides of the mask, in floats; keys are consecutive */
    float scaling, eps;                             /* of the scores; of LayerNorm */
} Sizes;

/* Memory of one thread. */
typedef struct {
    void *panel;         /* one, of weights */
    void *keys, *values; /* panels, side by side */
    int8_t *probs; /* [32][room]: codes of 32 rows of probabilities */
    float *scores; /* [32][room] */
    int32_t (*c)[LANES];
} Scratch;

/* Memory of one call, for the tokens of some examples. */
typedef struct {
    long rows, stride, inner_stride; /* tokens, rounded up to whole LANES; codes of a row, to whole STEPs */
    int8_t *input[3], *project[3], *context, *inner;
    float *y;
    Planes planes;
} Buffers;

/* One linear layer at work. */
typedef struct {
    Rows in;
    Planes *planes;
    const Linear *linear;
    long tokens, inputs, outputs;
    int kernel;
    float scale;
    int rounds_once, relu;
    Set set; /* of the codes that come out, if `codes` */
    int8_t *codes;
    long stride;
    const float *residual; /* else floats: y + residual */
    float *y;
} Product;

static void multiply(int kernel, const Rows *a, long row, long count, const Panel *p, int32_t c[LANES][LANES])
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

/* How much is added to signed codes for this kernel. */
static int32_t offset_for(int kernel) { return kernel == BYTES_KERNEL ? OFFSET : 0; }

/* 32 outputs of a linear layer. */
typedef struct {
    long first, count;
    Floats bias, beta;
} Block;

static Block make_block(const Product *p, long first)
{
    Block b = {first, p->outputs - first < LANES ? p->outputs - first : LANES, all(0), all(0)};
    if (p->linear->bias)
        b.bias = load_some(p->linear->bias + first, b.count, 0);
    if (p->codes)
        b.beta = load_some(p->set.beta + first, b.count, 0);
    return b;
}

/* Sums -> what the float model makes of them: bias + scale * sum, rounded as torch.addcmul rounds it. */
static inline Floats affine(const int32_t *c, const Product *p, const Block *b)
{
    Floats sum = from_ints(c), scale = all(p->scale);
    if (!p->linear->bias)
        return mul(sum, scale);
    return p->rounds_once ? fma32(sum, scale, b->bias) : add(mul(sum, scale), b->bias);
}

/* The rest of a linear layer for 32 outputs of some rows, and the next binarizer. Returns whether a number was none. */
static int finish(const Product *p, const Block *b, long row, long count, int32_t c[LANES][LANES])
{
    int none = 0;
    for (long r = 0; r < count; r++) {
        Floats v = affine(c[r], p, b);
        if (p->codes) {
            if (p->relu)
                v = greater(all(0), v);
            none |= some_codes(sub(v, b->beta), &p->set, p->codes + (row + r) * p->stride + b->first, b->count);
            continue;
        }
        long at = (row + r) * p->outputs + b->first;
        if (p->residual)
            v = add(v, load_some(p->residual + at, b->count, 0));
        if (b->count == LANES)
            store(p->y + at, v);
        else {
            float some[LANES];
            store(some, v);
            memcpy(p->y + at, some, (size_t)b->count * sizeof *some);
        }
    }
    return none;
}

/* One linear layer, shared by the threads of a parallel region. */
static int run(Product *p, Scratch *s)
{
    long bytes = ceil_div(p->inputs, 8);
    int none = 0;
    p->scale = (*p->linear->alpha < SMALLEST_ALPHA ? SMALLEST_ALPHA : *p->linear->alpha) * *p->linear->scale;
    if (p->kernel == POPCOUNT_KERNEL) {
#pragma omp for schedule(static)
        for (long r = 0; r < p->tokens; r++)
            row_planes(p->in.codes + r * p->in.stride, p->planes, r);
    }
#pragma omp for schedule(static)
    for (long first = 0; first < p->outputs; first += LANES) {
        const uint8_t *weight = p->linear->weight + first * bytes;
        const Block b = make_block(p, first);
        Panel panel = panel_at(s->panel, 0, p->in.steps);
        if (p->kernel == POPCOUNT_KERNEL)
            open_words(weight, bytes, b.count, p->planes, s->panel);
        else
            open_weights(weight, bytes, b.count, &panel);
        if (p->kernel == BYTES_KERNEL)
            sum_columns(&panel);
        for (long row = 0; row < p->tokens; row += LANES) {
            long count = p->tokens - row < LANES ? p->tokens - row : LANES;
            if (p->kernel == POPCOUNT_KERNEL)
                multiply_planes(p->planes, row, count, s->panel, s->c);
            else
                multiply(p->kernel, &p->in, row, count, &panel, s->c);
            none |= finish(p, &b, row, count, s->c);
        }
    }
    return none;
}

/* Attention. ----------------------------------------------------------------------------------------------------- */

/* The keys that count, [*first, *last): past them the mask is so low that their probability is exactly 0. */
static void kept_keys(const float *mask, const Sizes *n, long *first, long *last)
{
    *first = 0;
    *last = n->length;
    if (!mask || n->mask_query)
        return;
    while (*last && mask[*last - 1] < -1e30f)
        --*last;
    if (!*last || !(mask[*last - 1] > -1e4f)) { /* none counts, or hardly: then all do */
        *last = n->length;
        return;
    }
    while (mask[*first] < -1e30f)
        ++*first;
    *first = *first / LANES * LANES; /* torch's softmax adds by lanes */
}

/* One head of one example: codes of q, k, v -> codes of the context. */
static int attend(const Layer *layer, const Sizes *n, const Buffers *m, long example, long head, const float *mask,
                  Scratch *s)
{
    long width = n->width / n->heads, at = example * n->length * m->stride + head * width, first, last;
    int kernel = n->kernel == TILES_KERNEL ? TILES_KERNEL : BYTES_KERNEL, none = 0;
    if (mask)
        mask += example * n->mask_example + head * n->mask_head;
    kept_keys(mask, n, &first, &last);
    long keys = last - first, room = ceil_div(keys, STEP) * STEP, steps = ceil_div(width, STEP);
    const int8_t *k = m->project[1] + at + first * m->stride, *v = m->project[2] + at + first * m->stride;
    Set probs = make_set(layer->probs.alpha, NULL, (int)n->bits, 0, 0);
    Set after = make_set(layer->out.alpha, layer->out.beta, (int)n->bits, 1, offset_for(n->kernel));
    float q_alpha = make_set(layer->after[0].alpha, NULL, 1, 1, 0).alpha;
    float k_alpha = make_set(layer->after[1].alpha, NULL, 1, 1, 0).alpha;
    float scale = q_alpha * k_alpha * n->scaling;
    float v_scale = probs.alpha * make_set(layer->after[2].alpha, NULL, 1, 1, 0).alpha;
    for (long j = 0; j < keys; j += LANES) {
        Panel panel = panel_at(s->keys, j / LANES, steps);
        open_keys(k + j * m->stride, m->stride, keys - j, width, &panel);
        if (kernel == BYTES_KERNEL)
            sum_columns(&panel);
    }
    for (long j = 0; j < width; j += LANES) {
        Panel panel = panel_at(s->values, j / LANES, room / STEP);
        open_values(v + j, m->stride, width - j, keys, &panel);
    }
    for (long row = 0; row < n->length; row += LANES) {
        long count = n->length - row < LANES ? n->length - row : LANES;
        Rows q = {m->project[0] + at, m->stride, steps, 0};
        for (long j = 0; j < keys; j += LANES) {
            const Panel panel = panel_at(s->keys, j / LANES, steps);
            multiply(kernel, &q, row, count, &panel, s->c);
            for (long r = 0; r < count; r++) {
                Floats score = mul(from_ints(s->c[r]), all(scale));
                if (mask)
                    score = add(score, load_some(mask + (row + r) * n->mask_query + first + j, keys - j, 0));
                store(s->scores + r * room + j, score);
            }
        }
        for (long r = 0; r < count; r++) {
            float *scores = s->scores + r * room;
            int8_t *codes = s->probs + r * room;
            for (long j = keys; j < ceil_div(keys, LANES) * LANES; j++)
                scores[j] = -INFINITY;
            none |= softmax_codes(scores, keys, (int)n->lanes, n->length < n->lanes, &probs, codes);
            memset(codes + keys, 0, (size_t)(room - keys));
        }
        Rows p = {s->probs, room, room / STEP, 1};
        for (long j = 0; j < width; j += LANES) {
            const Panel panel = panel_at(s->values, j / LANES, room / STEP);
            multiply(kernel, &p, 0, count, &panel, s->c);
            long channels = width - j < LANES ? width - j : LANES;
            Floats beta = load_some(after.beta + head * width + j, channels, 0);
            for (long r = 0; r < count; r++) {
                int8_t codes[LANES];
                none |= codes_of(sub(mul(from_ints(s->c[r]), all(v_scale)), beta), &after, codes);
                memcpy(m->context + at + (row + r) * m->stride + j, codes, (size_t)channels);
            }
        }
    }
    return none;
}

/* Memory. -------------------------------------------------------------------------------------------------------- */

/* Hands out aligned pieces of one block; with a NULL block it only adds up how much is wanted. The block is the
 * caller's, who keeps one for each of its threads: pages are not asked for anew in every call. */
typedef struct {
    char *at;
    size_t used;
} Arena;

static void *take(Arena *arena, size_t size)
{
    void *piece = arena->at ? arena->at + arena->used : NULL;
    arena->used += (size + 63) / 64 * 64;
    return piece;
}

static void take_scratch(Arena *arena, Scratch *s, long length, long head, long widest)
{
    long room = ceil_div(length, STEP) * STEP;
    s->panel = take(arena, panel_size(ceil_div(widest, STEP)));
    s->keys = take(arena, (size_t)(room / LANES) * panel_size(ceil_div(head, STEP)));
    s->values = take(arena, (size_t)ceil_div(head, LANES) * panel_size(room / STEP));
    s->probs = take(arena, (size_t)(LANES * room));
    s->scores = take(arena, (size_t)(LANES * room) * sizeof(float));
    s->c = take(arena, sizeof(int32_t[LANES][LANES]));
}

static void take_planes(Arena *arena, Planes *p, long rows, long widest, int bits)
{
    long count = bits * rows;
    p->rows = rows;
    p->words = take(arena, (size_t)(count * ceil_div(widest, STEP) * 2) * sizeof(uint32_t));
    p->ones = take(arena, (size_t)count * sizeof(int32_t));
}

static void take_buffers(Arena *arena, Buffers *m, const Sizes *n, long tokens)
{
    long rows = ceil_div(tokens, LANES) * LANES;
    m->rows = rows;
    m->stride = ceil_div(n->width, STEP) * STEP;
    m->inner_stride = ceil_div(n->inner, STEP) * STEP;
    for (int i = 0; i < 3; i++) {
        m->input[i] = take(arena, (size_t)(rows * m->stride));
        m->project[i] = take(arena, (size_t)(rows * m->stride + STEP)); /* the last head is read to a whole step */
    }
    m->context = take(arena, (size_t)(rows * m->stride));
    m->inner = take(arena, (size_t)(rows * m->inner_stride));
    m->y = take(arena, (size_t)((tokens + ROWS) * n->width) * sizeof(float));
    if (n->kernel == POPCOUNT_KERNEL)
        take_planes(arena, &m->planes, rows, n->width > n->inner ? n->width : n->inner, (int)n->bits);
}

static int thread_number(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* Layers. -------------------------------------------------------------------------------------------------------- */

static void set_planes(Planes *p, const Product *product, int bits, int is_signed)
{
    p->planes = bits;
    p->stride = product->in.steps * 2;
    p->width = product->inputs;
    p->sign = bits == 1 && is_signed;
    p->is_signed = is_signed;
}

/* A product as it is before it says what it reads and writes. */
static Product make_product(const Linear *linear, const Sizes *n, long tokens, const int8_t *codes, long inputs,
                            long outputs, int is_unsigned)
{
    Product p = {0};
    long stride = ceil_div(inputs, STEP) * STEP;
    p.in = (Rows){codes, stride, stride / STEP, is_unsigned};
    p.linear = linear;
    p.tokens = tokens;
    p.inputs = inputs;
    p.outputs = outputs;
    p.kernel = (int)n->kernel;
    p.rounds_once = (int)n->rounds_once;
    return p;
}

static int run_planes(Product *p, Planes *planes, const Sizes *n, Scratch *s)
{
    Planes mine = *planes; /* each thread its own description of the shared memory */
    set_planes(&mine, p, (int)n->bits, !p->in.is_unsigned);
    p->planes = &mine;
    return run(p, s);
}

/* LayerNorm of y (if there is one) into x, and the codes of x for up to three layers that follow. */
static int rows_between(const Norm *norm, const Linear *const *next, int count, const Sizes *n, const Buffers *m,
                        long tokens, float *x)
{
    int none = 0;
    Set sets[3];
    for (int i = 0; i < count; i++)
        sets[i] = make_set(next[i]->alpha, next[i]->beta, (int)n->bits, 1, offset_for((int)n->kernel));
#pragma omp for schedule(static)
    for (long row = 0; row < tokens; row += ROWS) {
        long rows = tokens - row < ROWS ? tokens - row : ROWS;
        if (norm && rows == ROWS)
            layer_norm(m->y + row * n->width, x + row * n->width, n->width, norm->weight, norm->bias, n->eps);
        else if (norm) { /* y has room for whole ROWS, x has not */
            layer_norm(m->y + row * n->width, m->y + row * n->width, n->width, norm->weight, norm->bias, n->eps);
            memcpy(x + row * n->width, m->y + row * n->width, (size_t)(rows * n->width) * sizeof *x);
        }
        for (long r = row; r < row + rows; r++)
            for (int i = 0; i < count; i++)
                none |= row_codes(x + r * n->width, &sets[i], n->width, m->input[i] + r * m->stride, m->stride);
    }
    return none;
}

/* All layers over the tokens of `examples` examples, by all threads of a parallel region. */
static int encode(const Layer *layers, long count, const Sizes *n, Buffers *m, long examples, float *x,
                  const float *mask, Scratch *s)
{
    long tokens = examples * n->length, bits = n->bits;
    int none = 0, attention = n->kernel == TILES_KERNEL ? TILES_KERNEL : BYTES_KERNEL;
    for (long i = 0; i < count; i++) {
        const Layer *layer = layers + i;
        const Linear *three[3] = {&layer->project[0], &layer->project[1], &layer->project[2]};
        none |= rows_between(i ? &layer[-1].second_norm : NULL, three, 3, n, m, tokens, x);
        for (int j = 0; j < 3; j++) {
            Product p = make_product(three[j], n, tokens, m->input[j], n->width, n->width, 0);
            p.set = make_set(layer->after[j].alpha, layer->after[j].beta, (int)bits, 1, j ? 0 : offset_for(attention));
            p.codes = m->project[j];
            p.stride = m->stride;
            none |= run_planes(&p, &m->planes, n, s);
        }
#pragma omp for schedule(static) collapse(2)
        for (long example = 0; example < examples; example++)
            for (long head = 0; head < n->heads; head++)
                none |= attend(layer, n, m, example, head, mask, s);
        Product out = make_product(&layer->out, n, tokens, m->context, n->width, n->width, 0);
        out.residual = x;
        out.y = m->y;
        none |= run_planes(&out, &m->planes, n, s);
        const Linear *next[1] = {&layer->first};
        none |= rows_between(&layer->out_norm, next, 1, n, m, tokens, x);
        Product first = make_product(&layer->first, n, tokens, m->input[0], n->width, n->inner, 0);
        first.relu = 1;
        first.set = make_set(layer->second.alpha, layer->second.beta, (int)bits, 0, 0);
        first.codes = m->inner;
        first.stride = m->inner_stride;
        none |= run_planes(&first, &m->planes, n, s);
        Product second = make_product(&layer->second, n, tokens, m->inner, n->inner, n->width, 1);
        second.residual = x;
        second.y = m->y;
        none |= run_planes(&second, &m->planes, n, s);
    }
    if (count)
        rows_between(&layers[count - 1].second_norm, NULL, 0, n, m, tokens, x);
    return none;
}

/* Entry points. -------------------------------------------------------------------------------------------------- */

static int has_kernel(long kernel)
{
#ifdef TILES
    if (kernel == TILES_KERNEL)
        return have_tiles();
#endif
    return kernel == BYTES_KERNEL || kernel == POPCOUNT_KERNEL;
}

static int within(long value, long least, long most) { return value >= least && value <= most; }

/* Sizes that make sense, whose sums of codes are exact in float, and whose products are no overflow. */
static int sane(const Sizes *n)
{
    const long most = 1 << 23;
    return within(n->batch, 0, most) && within(n->length, 0, most) && within(n->width, 1, most) &&
           within(n->inner, 1, most) && within(n->heads, 1, n->width) && n->width % n->heads == 0 &&
           n->batch * n->length <= (long)1 << 36 && within(n->threads, 1, 4096) &&
           (n->bits == 1 || n->bits == 2 || n->bits == 4 || n->bits == 8) &&
           (n->lanes == 4 || n->lanes == 8 || n->lanes == 16) && has_kernel(n->kernel);
}

/* A thread's registers belong to the program around: what the tiles were set to is put back at the end. */
#ifdef TILES
typedef TileConfig State;
#else
typedef int State;
#endif

static void begin(const Sizes *n, State *before)
{
#ifdef TILES
    if (n->kernel == TILES_KERNEL)
        tiles_begin(before);
#endif
    (void)n, (void)before;
}

static void end(const Sizes *n, const State *before)
{
#ifdef TILES
    if (n->kernel == TILES_KERNEL)
        tiles_end(before);
#endif
    (void)n, (void)before;
}

#define GROUP 512 /* tokens that go through all layers together: their codes stay in the second cache */

/* Everything that a call needs: what its threads share, and their own. */
typedef struct {
    Buffers shared;
    int8_t *codes; /* of a linear layer alone */
    char *own;
    size_t each, size;
    long group;
} Plan;

static void own_scratch(const Plan *plan, const Sizes *n, int encoder, Arena *arena, Scratch *s)
{
    long widest = encoder && n->inner > n->width ? n->inner : n->width;
    *arena = (Arena){plan->own ? plan->own + (size_t)thread_number() * plan->each : NULL, 0};
    take_scratch(arena, s, encoder ? n->length : 1, encoder ? n->width / n->heads : 1, widest);
}

/* Lays the memory out; size alone if memory is NULL. */
static Plan make_plan(const Sizes *n, int encoder, void *memory)
{
    Plan plan = {0};
    Arena arena = {memory, 0}, own;
    Scratch s;
    if (encoder) {
        plan.group = n->length && GROUP / n->length > 1 ? GROUP / n->length : 1;
        plan.group = plan.group < n->batch ? plan.group : n->batch;
        take_buffers(&arena, &plan.shared, n, plan.group * n->length);
    } else {
        plan.group = n->length < GROUP ? n->length : GROUP;
        long rows = ceil_div(plan.group, LANES) * LANES;
        plan.codes = take(&arena, (size_t)(rows * ceil_div(n->width, STEP) * STEP));
        take_planes(&arena, &plan.shared.planes, rows, n->width, (int)n->bits);
    }
    own_scratch(&plan, n, encoder, &own, &s);
    plan.each = own.used;
    plan.size = arena.used + (size_t)n->threads * plan.each;
    plan.own = memory ? (char *)memory + arena.used : NULL;
    return plan;
}

/* Bytes that bitlab_encoder (or bitlab_linear) needs for these sizes; BAD_SIZES if they make no sense. */
int64_t bitlab_room(const Sizes *n, int encoder) { return sane(n) ? (int64_t)make_plan(n, encoder, NULL).size : BAD_SIZES; }

/* An encoder's layers over x [batch][length][width], in place. mask: additive, see Sizes, or NULL. memory: `room`
 * bytes, 64-byte aligned. Returns DONE, or NO_NUMBER if codes would have to say so (x is spoilt then), or BAD_SIZES. */
int bitlab_encoder(const Layer *layers, long count, const Sizes *n, float *x, const float *mask, void *memory,
                   int64_t room)
{
    int64_t needed = bitlab_room(n, 1);
    if (count < 0 || needed < 0 || room < needed)
        return BAD_SIZES;
    if (!n->batch || !n->length)
        return DONE;
    Plan plan = make_plan(n, 1, memory);
    Buffers *m = &plan.shared;
    memset(m->inner, 0, (size_t)(m->rows * m->inner_stride)); /* the padding of a row is the code 0 */
    memset(m->context, offset_for((int)n->kernel), (size_t)(m->rows * m->stride));
    int none = 0;
#pragma omp parallel num_threads((int)n->threads) if (n->threads > 1) reduction(| : none)
    {
        Arena arena;
        Scratch mine;
        State before;
        own_scratch(&plan, n, 1, &arena, &mine);
        begin(n, &before);
        for (long first = 0; first < n->batch; first += plan.group) {
            long examples = n->batch - first < plan.group ? n->batch - first : plan.group;
            float *from = x + first * n->length * n->width;
            none |= encode(layers, count, n, m, examples, from, mask ? mask + first * n->mask_example : NULL, &mine);
        }
        end(n, &before);
    }
    return none ? NO_NUMBER : DONE;
}

/* One linear layer: x [tokens][inputs] -> y [tokens][outputs]; `n` holds tokens as length, inputs as width, outputs as
 * inner. Memory and result as bitlab_encoder. */
int bitlab_linear(const Linear *linear, const Sizes *n, int is_signed, const float *x, float *y, void *memory,
                  int64_t room)
{
    int64_t needed = bitlab_room(n, 0);
    if (needed < 0 || room < needed)
        return BAD_SIZES;
    Plan plan = make_plan(n, 0, memory);
    const Set set = make_set(linear->alpha, linear->beta, (int)n->bits, is_signed, offset_for((int)n->kernel));
    long stride = ceil_div(n->width, STEP) * STEP;
    int none = 0;
#pragma omp parallel num_threads((int)n->threads) if (n->threads > 1) reduction(| : none)
    {
        Arena arena;
        Scratch mine;
        State before;
        own_scratch(&plan, n, 0, &arena, &mine);
        begin(n, &before);
        for (long first = 0; first < n->length; first += plan.group) {
            long tokens = n->length - first < plan.group ? n->length - first : plan.group;
#pragma omp for schedule(static)
            for (long r = 0; r < tokens; r++)
                none |= row_codes(x + (first + r) * n->width, &set, n->width, plan.codes + r * stride, stride);
            Product p = make_product(linear, n, tokens, plan.codes, n->width, n->inner, !is_signed);
            p.y = y + first * n->inner;
            none |= run_planes(&p, &plan.shared.planes, n, &mine);
        }
        end(n, &before);
    }
    return none ? NO_NUMBER : DONE;
}

/* Rows `ids` of a table of bits [count][ceil(width / 8)], as -1 and +1 times a scale for each row. Returns DONE, or
 * BAD_SIZES if an id is none of the table's. */
int bitlab_rows(const int64_t *ids, long tokens, const uint8_t *table, const float *scales, long count, long width,
                float *out)
{
    long bytes = ceil_div(width, 8);
    for (long t = 0; t < tokens; t++) {
        if (ids[t] < 0 || ids[t] >= count)
            return BAD_SIZES;
        const uint8_t *row = table + ids[t] * bytes;
        float scale = scales[ids[t]], *y = out + t * width;
        for (long i = 0; i < width; i++)
            y[i] = row[i / 8] >> i % 8 & 1 ? scale : -scale;
    }
    return DONE;
}

/* Whether a kernel (0 tiles, 1 bytes, 2 popcount) was built and may run here. */
int bitlab_has_kernel(int kernel) { return has_kernel(kernel); }

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
