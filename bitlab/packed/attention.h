/* Attention on codes: scores, softmax and context, one head of one example at a time. */

typedef struct {
    const float *alpha, *beta;
} Binarizer;

typedef struct {
    long batch, length, width, heads, inner, bits, kernel, threads;
    long lanes;                               /* of torch's softmax */
    long rounds_once;                         /* whether torch.addcmul does */
    long mask_example, mask_head, mask_query; /* strides of the mask, in floats; keys are consecutive */
    float scaling, eps;                       /* of the scores; of LayerNorm */
} Sizes;

/* What one attention reads and writes. */
typedef struct {
    Codes query, key, value; /* each example's rows begin a tile, each head a step */
    Codes context;           /* one row a token, heads side by side */
    float score_scale, context_scale;
    Set probs, after;
    const float *mask; /* additive, or NULL */
    int kernel;
} Attention;

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

/* The codes of `count` rows of probabilities, from `row` on, over the keys [first, first + keys). */
static int probabilities(const Attention *a, const Sizes *n, const Codes *query, long at, long row, long count,
                         long first, long keys, const float *mask, Scratch *s, const Codes *probs)
{
    const long room = rounded(keys, LANES);
    const Floats scale = all(a->score_scale);
    for (long j = 0; j < keys; j += LANES) {
        const Panel panel = panel_at(s->keys, j / LANES, query->steps);
        multiply(a->kernel, query, at + row, count, &panel, s->products + j, room, 0);
    }
    for (long r = 0; r < count; r++) {
        float *scores = s->scores + r * room;
        for (long j = 0; j < keys; j += LANES) {
            Floats score = mul(from_ints(s->products + r * room + j), scale);
            if (mask)
                score = add(score, load_some(mask + (row + r) * n->mask_query + first + j, keys - j, 0));
            store(scores + j, score);
        }
        for (long j = keys; j < room; j++)
            scores[j] = -INFINITY;
    }
    return softmax_codes(s->scores, count, keys, (int)n->lanes, n->length < n->lanes, a->probs, probs);
}

/* Codes of up to 32 channels of a row's context, which begin anywhere. */
static int context_codes(const Attention *a, const int32_t *sums, Floats beta, long row, long channel, long count)
{
    int8_t codes[LANES];
    int none = codes_of(sub(mul(from_ints(sums), all(a->context_scale)), beta), a->after, codes, LANES);
    for (long i = 0; i < count; i++, channel++)
        in_tile(codes_at(&a->context, row, 0), channel / LANES * LANES)[place(channel % LANES)] = codes[place((int)i)];
    return none;
}

/* One head of one example. */
static int attend(const Attention *a, const Sizes *n, long example, long head, Scratch *s)
{
    long width = n->width / n->heads, at = example * rounded(n->length, TALL), first, last;
    const float *mask = a->mask ? a->mask + example * n->mask_example + head * n->mask_head : NULL;
    int none = 0;
    kept_keys(mask, n, &first, &last);
    long keys = last - first, key_steps = ceil_div(keys, STEP);
    Codes query = a->query, key = a->key, value = a->value, probs = codes_in(s->probs, key_steps, 1, 1);
    const Product context = {.scale = a->context_scale, .least = -INFINITY, .rounds_once = 1, .set = a->after, .out = a->context};
    query.first = key.first = value.first = head * query.steps;
    for (long j = 0; j < keys; j += LANES) {
        Panel panel = panel_at(s->keys, j / LANES, key.steps);
        open_keys(&key, at + first + j, keys - j, width, &panel);
        if (a->kernel == BYTES_KERNEL)
            sum_columns(&panel);
    }
    for (long j = 0; j < width; j += LANES) {
        Panel panel = panel_at(s->values, j / LANES, key_steps);
        open_values(&value, at + first, keys, j, width - j, &panel);
    }
    for (long row = 0; row < n->length; row += LANES) {
        long count = n->length - row < LANES ? n->length - row : LANES;
        none |= probabilities(a, n, &query, at, row, count, first, keys, mask, s, &probs);
        for (long j = 0; j < width; j += LANES) {
            const Panel panel = panel_at(s->values, j / LANES, key_steps);
            const long channel = head * width + j, channels = width - j < LANES ? width - j : LANES;
            const Block block = {channel, channels, channel, all(0), load_some(a->after.beta + channel, channels, 0)};
            multiply(a->kernel, &probs, 0, count, &panel, s->c[0], LANES, 0);
            if (width % LANES == 0)
                none |= finish_codes(&context, &block, example * n->length + row, count, s->c);
            else
                for (long r = 0; r < count; r++)
                    none |= context_codes(a, s->c[r], block.beta, example * n->length + row + r, channel, channels);
        }
    }
    return none;
}
