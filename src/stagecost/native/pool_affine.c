/* What the head makes of a state in eval mode: the mean over the pixels of relu(scale·x + shift), in one reading.
   x is (batch × pixels × channels), that is, channels last. No image has a part in the result of another. */

#include "vectors.h"

enum { UNROLL = 4, PIECE = 256 }; /* pixels whose sum is added up in one go */

/* The `count` values that begin here, filled up with zeros; `count` is at most LANES. */
INLINE vector some(const real *from, long count) {
    if (count == LANES) return load(from);
    vector values = {0};
    memcpy(&values, from, count * sizeof(real));
    return values;
}

/* Not `> 0`: what is not a number stays what it is, as in torch. */
INLINE vector relu(vector values) { return only(~(values <= (vector){0}), values); }

/* Pool `count` channels of an image, which are `step` values apart from one pixel to the next. */
INLINE void pool(const real *x, long pixels, long step, long count, const real *scale, const real *shift, real *to) {
    vector a = some(scale, count), z = some(shift, count), total = {0};
    for (long p = 0; p < pixels;) {
        long end = p + PIECE < pixels ? p + PIECE : pixels;
        vector sum[UNROLL] = {{0}};
        for (; p + UNROLL <= end; p += UNROLL)
#pragma GCC unroll 4
            for (int u = 0; u < UNROLL; u++) sum[u] += relu(some(x + (p + u) * step, count) * a + z);
        for (; p < end; p++) sum[0] += relu(some(x + p * step, count) * a + z);
        total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    total /= (vector){0} + (real)pixels;
    memcpy(to, &total, count * sizeof(real));
}

void pool_affine(long batch, long pixels, long channels, int threads, const real *x, const real *scale,
                 const real *shift, real *pooled) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long b = 0; b < batch; b++) {
        const real *image = x + b * pixels * channels;
        real *to = pooled + b * channels;
        long c = 0;
        for (; c + LANES <= channels; c += LANES)
            pool(image + c, pixels, channels, LANES, scale + c, shift + c, to + c);
        if (c < channels) pool(image + c, pixels, channels, channels - c, scale + c, shift + c, to + c);
    }
}
