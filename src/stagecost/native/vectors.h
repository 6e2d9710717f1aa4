/* Vectors as wide as the processor's, of REAL values: float or double, as the file is compiled. */

#include <math.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#endif

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

typedef REAL real;
typedef real vector __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));
typedef __typeof__((vector){0} > (vector){0}) mask;

enum { LANES = BYTES / sizeof(real) };

#define INLINE static inline __attribute__((always_inline))

INLINE vector load(const real *from) { return *(const vector *)from; }

INLINE void store(real *to, vector values) { *(vector *)to = values; }

INLINE vector only(mask where, vector values) { return (vector)(where & (mask)values); }

/* Set sums to those of the columns of (batch × width) values, in double precision. */
INLINE void column_sums(const real *values, long batch, long width, double *sums) {
    for (long c = 0; c < width; c++) sums[c] = 0;
    for (long b = 0; b < batch; b++)
        for (long c = 0; c < width; c++) sums[c] += values[b * width + c];
}
