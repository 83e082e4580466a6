/* Products of bytes on AMX tiles: 16 x 64 codes times 64 x 16 weights in one instruction.
 *
 * Four tiles of sums (32 rows, 32 columns), two of codes, two of a panel. The compiler does not know what tile
 * instructions read and write, so barriers keep its stores before and its loads after them.
 */
#if defined(__AMX_INT8__) && defined(QUADS) && defined(__linux__) && !defined(NO_TILES)
#define TILES 1
#include <sys/syscall.h>
#include <unistd.h>

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileConfig;

#define BARRIER() __asm__ volatile("" ::: "memory")

/* Linux lends the tiles to a process that asks for them (ARCH_REQ_XCOMP_PERM, feature 18); some sandboxes refuse. */
static int have_tiles(void)
{
    static int asked; /* 1: yes, 2: no. Two threads may ask at once: they get the same answer */
    if (!asked)
        asked = syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? 1 : 2;
    return asked == 1;
}

/* Configure this thread's tiles; `before` takes what was there, since the thread belongs to somebody else. */
static void tiles_begin(TileConfig *before)
{
    static const TileConfig all = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_storeconfig(before);
    BARRIER();
    _tile_loadconfig(&all);
}

static void tiles_end(const TileConfig *before)
{
    BARRIER();
    if (before->palette)
        _tile_loadconfig(before);
    else
        _tile_release();
}

/* The tiles of sums += those of codes (two times 16 rows, `below` bytes apart) times those of weights. */
ALWAYS void tiles_step(const int8_t *a, long below, const int8_t *w, int is_unsigned)
{
    _tile_stream_loadd(4, a, STEP);
    _tile_loadd(6, w, 64);
    _tile_loadd(7, w + 16 * 64, 64);
    _tile_stream_loadd(5, a + below, STEP);
    if (is_unsigned) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    } else {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
}

ALWAYS void tiles_zero(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* Sums from 32 rows of `stride` numbers. */
ALWAYS void tiles_load(const int32_t *c, long stride)
{
    _tile_loadd(0, c, stride * 4);
    _tile_loadd(1, c + 16, stride * 4);
    _tile_loadd(2, c + TALL * stride, stride * 4);
    _tile_loadd(3, c + TALL * stride + 16, stride * 4);
}

/* And to them. */
ALWAYS void tiles_store(int32_t *c, long stride)
{
    _tile_stored(0, c, stride * 4);
    _tile_stored(1, c + 16, stride * 4);
    _tile_stored(2, c + TALL * stride, stride * 4);
    _tile_stored(3, c + TALL * stride + 16, stride * 4);
    BARRIER();
}

static void multiply_tiles(const Codes *a, long row, const Panel *p, int32_t *c, long stride, int adds)
{
    const int8_t *at = codes_at(a, row, 0), *w = p->bytes;
    const long below = a->width * TALL * STEP;
    BARRIER();
    if (adds)
        tiles_load(c, stride);
    else
        tiles_zero();
    for (long step = 0; step < p->steps; step++, at += TALL * STEP, w += STEP * LANES)
        tiles_step(at, below, w, a->is_unsigned);
    tiles_store(c, stride);
}
#endif
