/* One step of the dynamics in the branch's memory, x_{k+1} = F_k(x_k) + S_k(x_k), and the norms of F_k(x_k) and
   x_{k+1} of each image, in one reading. The sum is, to the last bit, that of two tensors. */

#include "vectors.h"

enum { UNROLL = 4, PIECE = 4096 }; /* values that are summed in single precision, at most */

INLINE double total(vector values) {
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += values[l];
    return sum;
}

void add_and_measure(long batch, long size, int threads, const real *skipped, real *control, real *of_control,
                     real *of_following) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long b = 0; b < batch; b++) {
        const real *from = skipped + b * size;
        real *to = control + b * size;
        double before = 0, after = 0;
        long i = 0;
        while (i + UNROLL * LANES <= size) {
            vector one[UNROLL] = {{0}}, two[UNROLL] = {{0}};
            for (long end = i + PIECE; i < end && i + UNROLL * LANES <= size; i += UNROLL * LANES)
#pragma GCC unroll 4
                for (int u = 0; u < UNROLL; u++) {
                    vector value = load(to + i + u * LANES), following = value + load(from + i + u * LANES);
                    one[u] += value * value;
                    two[u] += following * following;
                    store(to + i + u * LANES, following);
                }
            for (int u = 0; u < UNROLL; u++) before += total(one[u]), after += total(two[u]);
        }
        for (; i < size; i++) {
            real value = to[i];
            before += (double)value * value;
            to[i] = value + from[i];
            after += (double)to[i] * to[i];
        }
        of_control[b] = sqrt(before);
        of_following[b] = sqrt(after);
    }
}
