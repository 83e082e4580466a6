/* Packed encoders: layers from codes to codes on one-bit weights. C99; built at first use by kernel.py.
 *
 * A binarizer's output is a small integer, its code, in a byte; a weight is a bit. A linear layer is an exact sum of
 * codes with signs, and its epilogue goes straight on to the codes of the next binarizer: floats live in the residual
 * stream, LayerNorm and softmax only (floats.h). Weights are read as they lie in the file, 32 outputs at a time, and
 * multiplied in one of four ways:
 *
 *     tiles     opened to bytes, on AMX tiles                               tiles.h
 *     bytes     opened to bytes, on dot products of bytes (VNNI or plain)   bytes.h
 *     popcount  left as bits, with XOR or AND and popcount                  bits.h
 *     lookup    four bits as an index into the sums of four codes           lookup.h
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

#include "codes.h"
#include "floats.h"
#include "bytes.h"
#include "tiles.h"
#include "bits.h"
#include "lookup.h"
#include "linear.h"
#include "attention.h"

enum { DONE = 0, NO_NUMBER = 1, BAD_SIZES = -1 };

typedef struct {
    const float *weight, *bias;
} Norm;

typedef struct {
    Linear project[3]; /* query, key, value */
    Linear out, first, second;
    Binarizer after[3]; /* of query, key, value */
    Binarizer probs;    /* has no beta */
    Norm out_norm, second_norm;
} Layer;

/* Memory. -------------------------------------------------------------------------------------------------------- */

#define GROUP 128 /* tokens that go through all layers together: their codes stay in the second cache */

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

/* What the threads of a call share, and where each one's own memory begins. */
typedef struct {
    long group;      /* examples (of a linear layer alone: tokens) at a time */
    Codes input[3];  /* of q, k, v; the first one also of the FFN, or of a linear layer alone */
    Codes project[3], context, inner;
    int32_t *place;  /* [tokens]: the row of a token where each example begins a tile */
    Planes planes;
    Tables tables;
    char *own;
    size_t each, size;
} Plan;

static void take_planes(Arena *arena, Planes *p, long rows, long widest, int bits)
{
    p->rows = rows;
    p->words = take(arena, (size_t)(bits * rows * ceil_div(widest, STEP) * 2) * sizeof(uint32_t));
    p->ones = take(arena, (size_t)(bits * rows) * sizeof(int32_t));
}

static void take_tables(Arena *arena, Tables *t, long rows, long widest)
{
    t->bytes = take(arena, (size_t)(rows * ceil_div(widest, STEP) * 4 * TABLES));
    t->sums = take(arena, (size_t)rows * sizeof(int32_t));
}

/* What else this kernel makes of codes. */
static void take_factors(Arena *arena, Plan *plan, const Sizes *n, long rows, long widest)
{
    if (n->kernel == POPCOUNT_KERNEL)
        take_planes(arena, &plan->planes, rows, widest, (int)n->bits);
    if (n->kernel == LOOKUP_KERNEL)
        take_tables(arena, &plan->tables, rows, widest);
}

static Codes take_codes(Arena *arena, long rows, long width, long heads, int is_unsigned)
{
    long steps = ceil_div(width, STEP);
    return codes_in(take(arena, (size_t)(rows * steps * heads * STEP)), steps, heads, is_unsigned);
}

static void take_encoder(Arena *arena, Plan *plan, const Sizes *n)
{
    long tokens = plan->group * n->length, rows = rounded(tokens, LANES);
    long apart = rounded(plan->group * rounded(n->length, TALL) + TALL, LANES); /* 32 rows are read, from any tile on */
    for (int i = 0; i < 3; i++) {
        plan->input[i] = take_codes(arena, rows, n->width, 1, 0);
        plan->project[i] = take_codes(arena, apart, n->width / n->heads, n->heads, 0);
    }
    plan->context = take_codes(arena, rows, n->width, 1, 0);
    plan->inner = take_codes(arena, rows, n->inner, 1, 1);
    plan->place = take(arena, (size_t)tokens * sizeof(int32_t));
    take_factors(arena, plan, n, rows, n->width > n->inner ? n->width : n->inner);
}

static void take_scratch(Arena *arena, Scratch *s, long rows, long length, long head, long widest)
{
    long room = rounded(length, STEP);
    s->panel = take(arena, panel_size(ceil_div(widest, STEP)));
    s->keys = take(arena, (size_t)(room / LANES) * panel_size(ceil_div(head, STEP)));
    s->values = take(arena, (size_t)ceil_div(head, LANES) * panel_size(room / STEP));
    s->probs = take(arena, (size_t)(LANES * room));
    s->products = take(arena, (size_t)(LANES * room) * sizeof(int32_t));
    s->scores = take(arena, (size_t)(LANES * room) * sizeof(float));
    s->c = take(arena, (size_t)rounded(rows, LANES) * sizeof *s->c);
}

static int thread_number(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static size_t own_scratch(const Plan *plan, const Sizes *n, int encoder, Scratch *s)
{
    long widest = encoder && n->inner > n->width ? n->inner : n->width;
    Arena arena = {plan->own ? plan->own + (size_t)thread_number() * plan->each : NULL, 0};
    take_scratch(&arena, s, plan->group * (encoder ? n->length : 1), encoder ? n->length : 1, encoder ? n->width / n->heads : 1, widest);
    return arena.used;
}

/* So many examples make enough rows for what opening the weights costs. */
static long group_of(const Sizes *n) { return n->length && GROUP / n->length > 1 ? GROUP / n->length : 1; }

/* Lays the memory out; only adds up its size if memory is NULL. */
static Plan make_plan(const Sizes *n, int encoder, void *memory)
{
    Plan plan = {0};
    Arena arena = {memory, 0};
    Scratch s;
    if (encoder) {
        plan.group = group_of(n) < n->batch ? group_of(n) : n->batch;
        take_encoder(&arena, &plan, n);
    } else {
        plan.group = n->length < GROUP ? n->length : GROUP;
        long rows = rounded(plan.group, LANES);
        plan.input[0] = take_codes(&arena, rows, n->width, 1, 0);
        take_factors(&arena, &plan, n, rows, n->width);
    }
    plan.each = own_scratch(&plan, n, encoder, &s);
    plan.size = arena.used + (size_t)n->threads * plan.each;
    plan.own = memory ? (char *)memory + arena.used : NULL;
    return plan;
}

/* Layers. -------------------------------------------------------------------------------------------------------- */

/* A linear layer before it says what becomes of its sums. */
static Product make_product(const Linear *linear, const Sizes *n, long tokens, const Codes *in, long inputs,
                            long outputs)
{
    Product p = {0};
    p.linear = linear;
    p.in = *in;
    p.tokens = tokens;
    p.inputs = inputs;
    p.outputs = outputs;
    p.heads = 1;
    p.threads = n->threads;
    p.kernel = (int)n->kernel;
    p.rounds_once = (int)n->rounds_once;
    p.least = -INFINITY;
    return p;
}

static int run_product(Product *p, const Plan *plan, const Sizes *n, Scratch *s)
{
    Planes planes = plan->planes; /* of this thread, its memory is shared */
    planes.planes = (int)n->bits;
    planes.stride = p->in.steps * 2;
    planes.width = p->inputs;
    planes.is_signed = !p->in.is_unsigned;
    planes.sign = n->bits == 1 && planes.is_signed;
    p->planes = &planes;
#ifdef LOOKUP
    Tables tables = tables_of(&plan->tables, p->in.steps, n->bits, !p->in.is_unsigned);
    p->tables = &tables;
#endif
    return run(p, s);
}

static Set set_of(const float *alpha, const float *beta, const Sizes *n, int is_signed, int kernel)
{
    return make_set(alpha, beta, (int)n->bits, is_signed, offset_for(kernel));
}

/* LayerNorm of x (if there is one), and the codes of x for up to three layers that follow. */
static int rows_between(const Norm *norm, const Linear *next, int count, const Sizes *n, const Plan *plan, long tokens,
                        float *x)
{
    int none = 0;
    Set sets[3];
    for (int i = 0; i < count; i++)
        sets[i] = set_of(next[i].alpha, next[i].beta, n, 1, (int)n->kernel);
#pragma omp for schedule(static)
    for (long row = 0; row < tokens; row += ROWS) {
        long rows = tokens - row < ROWS ? tokens - row : ROWS;
        if (norm)
            layer_norm(x + row * n->width, rows, n->width, norm->weight, norm->bias, n->eps);
        for (long r = row; r < row + rows; r++)
            for (int i = 0; i < count; i++)
                none |= row_codes(x + r * n->width, sets[i], n->width, &plan->input[i], r);
    }
    return none;
}

static int self_attention(const Layer *layer, const Sizes *n, const Plan *plan, long examples, const float *mask,
                          Scratch *s)
{
    const Binarizer *after = layer->after;
    Attention a = {plan->project[0], plan->project[1], plan->project[2], plan->context, 0, 0, {0}, {0}, mask, 0};
    int none = 0;
    a.kernel = n->kernel == TILES_KERNEL ? TILES_KERNEL : BYTES_KERNEL;
    for (int j = 0; j < 3; j++) {
        Product p = make_product(&layer->project[j], n, examples * n->length, &plan->input[j], n->width, n->width);
        p.then = j < 2 ? layer->project[j + 1].weight : layer->out.weight;
        p.set = set_of(after[j].alpha, after[j].beta, n, 1, j ? -1 : a.kernel); /* keys and values come as they are */
        p.out = plan->project[j];
        p.place = plan->place;
        p.heads = n->heads;
        none |= run_product(&p, plan, n, s);
    }
    a.probs = set_of(layer->probs.alpha, NULL, n, 0, a.kernel);
    a.after = set_of(layer->out.alpha, layer->out.beta, n, 1, (int)n->kernel);
    float q = set_of(after[0].alpha, NULL, n, 1, 0).alpha, k = set_of(after[1].alpha, NULL, n, 1, 0).alpha;
    a.score_scale = q * k * n->scaling;
    a.context_scale = a.probs.alpha * set_of(after[2].alpha, NULL, n, 1, 0).alpha;
#pragma omp for schedule(static) collapse(2)
    for (long example = 0; example < examples; example++)
        for (long head = 0; head < n->heads; head++)
            none |= attend(&a, n, example, head, s);
    return none;
}

/* All layers over the tokens of `examples` examples, by all threads of a parallel region. */
static int encode(const Layer *layers, long count, const Sizes *n, const Plan *plan, long examples, float *x,
                  const float *mask, Scratch *s)
{
    long tokens = examples * n->length;
    int none = 0;
    for (const Layer *layer = layers; layer < layers + count; layer++) {
        none |= rows_between(layer > layers ? &layer[-1].second_norm : NULL, layer->project, 3, n, plan, tokens, x);
        none |= self_attention(layer, n, plan, examples, mask, s);
        Product out = make_product(&layer->out, n, tokens, &plan->context, n->width, n->width);
        out.then = layer->first.weight;
        out.y = x;
        out.adds = 1;
        none |= run_product(&out, plan, n, s);
        none |= rows_between(&layer->out_norm, &layer->first, 1, n, plan, tokens, x);
        Product first = make_product(&layer->first, n, tokens, &plan->input[0], n->width, n->inner);
        first.then = layer->second.weight;
        first.least = 0;
        first.set = set_of(layer->second.alpha, layer->second.beta, n, 0, (int)n->kernel);
        first.out = plan->inner;
        none |= run_product(&first, plan, n, s);
        Product second = make_product(&layer->second, n, tokens, &plan->inner, n->inner, n->width);
        second.then = layer < layers + count - 1 ? layer[1].project[0].weight : NULL;
        second.y = x;
        second.adds = 1;
        none |= run_product(&second, plan, n, s);
    }
    if (count)
        rows_between(&layers[count - 1].second_norm, NULL, 0, n, plan, tokens, x);
    return none;
}

/* Entry points. -------------------------------------------------------------------------------------------------- */

static int has_kernel(long kernel)
{
#ifdef TILES
    if (kernel == TILES_KERNEL)
        return have_tiles();
#endif
#ifdef LOOKUP
    if (kernel == LOOKUP_KERNEL)
        return 1;
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
           (n->lanes == 4 || n->lanes == 8 || n->lanes == 16) && has_kernel(n->kernel) &&
           (n->kernel != LOOKUP_KERNEL || n->bits <= 4);
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

/* Whether there are groups of examples for every thread: each takes its share through all layers, and waits for none. */
static int is_shared(const Sizes *n) { return n->threads > 1 && n->batch >= n->threads * group_of(n); }

static Sizes share_of(const Sizes *n)
{
    Sizes share = *n;
    share.threads = 1;
    share.batch = ceil_div(n->batch, n->threads);
    return share;
}

/* Bytes that bitlab_encoder (or bitlab_linear) needs for these sizes; BAD_SIZES if they make no sense. */
int64_t bitlab_room(const Sizes *n, int encoder)
{
    if (!sane(n))
        return BAD_SIZES;
    const Sizes share = share_of(n);
    int shared = encoder && is_shared(n);
    return (int64_t)make_plan(shared ? &share : n, encoder, NULL).size * (shared ? n->threads : 1);
}

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
    int none = 0;
    if (is_shared(n)) {
#pragma omp parallel for num_threads((int)n->threads) schedule(static) reduction(| : none)
        for (long thread = 0; thread < n->threads; thread++) {
            Sizes share = share_of(n);
            long first = thread * share.batch, left = n->batch > first ? n->batch - first : 0, each = needed / n->threads;
            share.batch = left < share.batch ? left : share.batch;
            none |= bitlab_encoder(layers, count, &share, x + first * n->length * n->width,
                                   mask ? mask + first * n->mask_example : NULL, (char *)memory + thread * each, each);
        }
        return none;
    }
    const Plan plan = make_plan(n, 1, memory);
    const Codes *context = &plan.context, *inner = &plan.inner; /* the padding of their rows is the code 0 */
    long rows = rounded(plan.group * n->length, LANES);
    memset(context->codes, offset_for((int)n->kernel), (size_t)(rows * context->width * STEP));
    memset(inner->codes, 0, (size_t)(rows * inner->width * STEP));
    for (long i = 0; i < plan.group * n->length; i++)
        plan.place[i] = (int32_t)(i / n->length * rounded(n->length, TALL) + i % n->length);
#pragma omp parallel num_threads((int)n->threads) if (n->threads > 1) reduction(| : none)
    {
        Scratch mine;
        State before;
        own_scratch(&plan, n, 1, &mine);
        begin(n, &before);
        for (long first = 0; first < n->batch; first += plan.group) {
            long examples = n->batch - first < plan.group ? n->batch - first : plan.group;
            const float *masked = mask ? mask + first * n->mask_example : NULL;
            none |= encode(layers, count, n, &plan, examples, x + first * n->length * n->width, masked, &mine);
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
    plan.input[0].is_unsigned = !is_signed;
    int none = 0;
#pragma omp parallel num_threads((int)n->threads) if (n->threads > 1) reduction(| : none)
    {
        Scratch mine;
        State before;
        own_scratch(&plan, n, 0, &mine);
        begin(n, &before);
        const Set set = set_of(linear->alpha, linear->beta, n, is_signed, (int)n->kernel);
        for (long first = 0; first < n->length; first += plan.group) {
            long tokens = n->length - first < plan.group ? n->length - first : plan.group;
#pragma omp for schedule(static)
            for (long r = 0; r < tokens; r++)
                none |= row_codes(x + (first + r) * n->width, set, n->width, &plan.input[0], r);
            Product p = make_product(linear, n, tokens, &plan.input[0], n->width, n->inner);
            p.y = y + first * n->inner;
            none |= run_product(&p, &plan, n, &mine);
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
        float scale = scales[ids[t]], *restrict y = out + t * width;
        for (long i = 0; i < width / 8 * 8; i += 8)
            for (int bit = 0; bit < 8; bit++) /* a constant: one vector */
                y[i + bit] = row[i / 8] >> bit & 1 ? scale : -scale;
        for (long i = width / 8 * 8; i < width; i++)
            y[i] = row[i / 8] >> i % 8 & 1 ? scale : -scale;
    }
    return DONE;
}

/* Whether a kernel (0 tiles, 1 bytes, 2 popcount, 3 lookup) was built and may run here. */
int bitlab_has_kernel(int kernel) { return has_kernel(kernel); }

/* The most bits of codes whose planes are counted sooner than their sums are looked up. */
int bitlab_planes(void)
{
#if !defined(LOOKUP) || defined(__AVX512VPOPCNTDQ__)
    return 2;
#elif defined(__ARM_NEON)
    return 1;
#else
    return 0; /* one word at a time */
#endif
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
