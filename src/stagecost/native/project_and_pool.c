/* The head's pooling of an early state behind a projection: Σ_pixels relu(w·x̂ + b), and its gradient.

   What is normalised are values r = W·p of the pixels p that a stride picks; x̂ = (r − mean)/√(variance + eps).
   Pixels are first centred, q = p − mean(p), so that W·q is r − mean. Of one image, q, W·q and their gradients fit
   into the nearest cache: the gradient computes them again instead of keeping them.

   Compiled with REAL as float or double. `in` and `out` are numbers of channels; rows of channels and
   numbers of pixels are filled up with zeros to whole vectors and tiles. */

#include "vectors.h"

enum { ROWS = 8, ROUND = 16 };

typedef struct {
    long batch, height, width, in, out; /* of the pixels that are picked */
} shape;

typedef struct {
    long image, channel, row, column; /* from one to the next, in values */
} strides;

INLINE long up(long size) { return (size + ROUND - 1) / ROUND * ROUND; }

/* out[i][·] (+)= Σ_k in[i·row + k·step]·weights[k][·], for ROWS rows and some vectors of columns. */
INLINE void tile(int columns, const real *in, long row, long step, long depth, const real *weights, long width,
                 real *out, int add) {
    vector sum[ROWS][2];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
        for (int j = 0; j < columns; j++) sum[i][j] = (vector){0};
    for (long k = 0; k < depth; k++)
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
            for (int j = 0; j < columns; j++)
                sum[i][j] += in[i * row + k * step] * *(const vector *)(weights + k * width + j * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
        for (int j = 0; j < columns; j++) {
            if (add) sum[i][j] += *(vector *)(out + i * width + j * LANES);
            *(vector *)(out + i * width + j * LANES) = sum[i][j];
        }
}

/* out (rows × width) (+)= in (rows × depth, with strides) · weights (depth × width). */
static void product(const real *in, long rows, long row, long step, long depth, const real *weights, long width,
                    real *out, int add) {
    for (long j = 0; j < width;) {
        int columns = width - j >= 2 * LANES ? 2 : 1;
        for (long i = 0; i < rows; i += ROWS) {
            const real *from = in + i * row;
            real *to = out + i * width + j;
            if (columns == 2)
                tile(2, from, row, step, depth, weights + j, width, to, add);
            else
                tile(1, from, row, step, depth, weights + j, width, to, add);
        }
        j += columns * LANES;
    }
}

/* Copy W (out × in) with rows that are filled up, as it is or transposed. */
static void copy_matrix(const real *matrix, shape s, int transposed, real *copy) {
    long rows = transposed ? s.in : s.out, columns = transposed ? s.out : s.in, width = up(columns);
    memset(copy, 0, up(rows) * width * sizeof(real));
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j++) copy[i * width + j] = transposed ? matrix[j * s.in + i] : matrix[i * s.in + j];
}

/* Copy the picked pixels of an image, less the centre. */
static void pick(const real *x, shape s, strides by, const real *centre, real *q) {
    long width = up(s.in), pixels = s.height * s.width;
    memset(q, 0, up(pixels) * width * sizeof(real));
    for (long h = 0; h < s.height; h++)
        for (long w = 0; w < s.width; w++, q += width) {
            const real *from = x + h * by.row + w * by.column;
            if (by.channel == 1)
                for (long c = 0; c < s.in; c++) q[c] = from[c] - centre[c];
            else
                for (long c = 0; c < s.in; c++) q[c] = from[c * by.channel] - centre[c];
        }
}

/* Add the gradients of an image's picked pixels to those of the state. */
static void add_picked(const real *q, shape s, strides by, real *x) {
    for (long h = 0; h < s.height; h++)
        for (long w = 0; w < s.width; w++, q += up(s.in)) {
            real *to = x + h * by.row + w * by.column;
            if (by.channel == 1)
                for (long c = 0; c < s.in; c++) to[c] += q[c];
            else
                for (long c = 0; c < s.in; c++) to[c * by.channel] += q[c];
        }
}

/* Return how many values of scratch memory, aligned to 64 bytes, the functions below need. */
long scratch_size(const shape *s, int threads) {
    long in = up(s->in), out = up(s->out), pixels = up(s->height * s->width);
    long forward = in * out + in + 2 * out + s->batch * (in + out + pixels * (in + out));
    long backward = 2 * in * out + 4 * out + in + threads * (2 * pixels * in + (pixels + in + 1) * out);
    return forward > backward ? forward : backward;
}

/* Compute sums, and number and Σ x̂ of the pixels where the ReLU is open, (batch × out); mean and variance of
   the batch, (out); and the centre of the pixels, (in). */
void project_and_pool(const shape *shape_, const strides *by, const real *x, const real *matrix, const real *weight,
                      const real *bias, double eps, int threads, real *scratch, real *summed, real *count,
                      real *moment, real *mean, real *variance, real *centre) {
    const shape s = *shape_;
    const long in = up(s.in), out = up(s.out), pixels = s.height * s.width, rows = up(pixels);
    const double samples = (double)s.batch * pixels;
    real *w = scratch, *filled = w + in * out, *scale = filled + in, *shift = scale + out;
    real *sums = shift + out, *squares = sums + s.batch * in;
    real *q = squares + s.batch * out, *r = q + s.batch * rows * in;
    copy_matrix(matrix, s, 1, w);
    memset(filled, 0, (in + 2 * out) * sizeof(real));
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long b = 0; b < s.batch; b++) {
            real *of = q + b * rows * in;
            pick(x + b * by->image, s, *by, filled, of);
            for (long c = 0; c < in; c += LANES) {
                vector sum = {0};
                for (long p = 0; p < pixels; p++) sum += *(vector *)(of + p * in + c);
                *(vector *)(sums + b * in + c) = sum;
            }
        }
#pragma omp single
        {
            double total[in];
            column_sums(sums, s.batch, in, total);
            for (long c = 0; c < s.in; c++) filled[c] = centre[c] = total[c] / samples;
        }
#pragma omp for schedule(static)
        for (long b = 0; b < s.batch; b++) {
            real *of = q + b * rows * in, *to = r + b * rows * out;
            for (long p = 0; p < pixels; p++)
                for (long c = 0; c < in; c += LANES) *(vector *)(of + p * in + c) -= *(vector *)(filled + c);
            product(of, rows, in, 1, s.in, w, out, to, 0);
            for (long c = 0; c < out; c += LANES) {
                vector sum = {0};
                for (long p = 0; p < pixels; p++) {
                    vector value = *(vector *)(to + p * out + c);
                    sum += value * value;
                }
                *(vector *)(squares + b * out + c) = sum;
            }
        }
#pragma omp single
        {
            double total[out];
            column_sums(squares, s.batch, out, total);
            for (long c = 0; c < s.out; c++) {
                double middle = 0, var = total[c] / samples;
                for (long i = 0; i < s.in; i++) middle += (double)matrix[c * s.in + i] * centre[i];
                mean[c] = middle;
                variance[c] = var;
                scale[c] = weight[c] / sqrt(var + eps);
                shift[c] = bias[c];
            }
        }
#pragma omp for schedule(static)
        for (long b = 0; b < s.batch; b++)
            for (long c = 0; c < out; c += LANES) {
                vector a = *(vector *)(scale + c), z = *(vector *)(shift + c);
                vector number = {0}, sum = {0}, one = number + 1;
                for (long p = 0; p < pixels; p++) {
                    vector value = *(vector *)(r + (b * rows + p) * out + c);
                    mask open = value * a + z > 0;
                    number += only(open, one);
                    sum += only(open, value);
                }
                for (long l = 0, to = b * s.out + c; l < LANES && c + l < s.out; l++, to++) {
                    count[to] = number[l];
                    moment[to] = sum[l] / sqrt(variance[c + l] + eps);
                    summed[to] = sum[l] * a[l] + number[l] * z[l];
                }
            }
    }
}

/* Differentiate: add the gradient of the pixels to that of the state, and set those of matrix, weight and bias.
   `grad` is that of the sums, (batch × out); the rest is what `project_and_pool` took and gave. */
void project_and_pool_gradient(const shape *shape_, const strides *by, const real *x, const real *matrix,
                               const real *weight, const real *bias, double eps, int threads, real *scratch,
                               const real *grad, const real *count, const real *moment, const real *variance,
                               const real *centre, const strides *by_grad, real *grad_x, real *grad_matrix,
                               real *grad_weight, real *grad_bias) {
    const shape s = *shape_;
    const long in = up(s.in), out = up(s.out), pixels = s.height * s.width, rows = up(pixels);
    const double samples = (double)s.batch * pixels;
    real *w = scratch, *back = w + in * out, *filled = back + in * out;
    real *scale = filled + in, *shift = scale + out, *constant = shift + out, *slope = constant + out;
    real *own = slope + out;
    const long size = 2 * rows * in + (rows + in + 1) * out;
    copy_matrix(matrix, s, 1, w);
    copy_matrix(matrix, s, 0, back);
    memset(filled, 0, (in + 4 * out) * sizeof(real));
    memcpy(filled, centre, s.in * sizeof(real));
    double of_weight[out], of_bias[out];
    memset(of_weight, 0, sizeof of_weight);
    memset(of_bias, 0, sizeof of_bias);
    for (long i = 0; i < s.batch * s.out;)
        for (long c = 0; c < s.out; c++, i++) {
            of_weight[c] += (double)grad[i] * moment[i];
            of_bias[c] += (double)grad[i] * count[i];
        }
    for (long c = 0; c < s.out; c++) {
        double inverse = 1 / sqrt(variance[c] + eps);
        grad_weight[c] = of_weight[c];
        grad_bias[c] = of_bias[c];
        scale[c] = weight[c] * inverse;
        shift[c] = bias[c];
        constant[c] = scale[c] * of_bias[c] / samples;
        slope[c] = scale[c] * inverse * of_weight[c] / samples;
    }
    for (int t = 0; t < threads; t++) memset(own + (t + 1) * size - in * out, 0, in * out * sizeof(real));
#pragma omp parallel num_threads(threads)
    {
        real *q = own + omp_get_thread_num() * size, *grad_q = q + rows * in, *r = grad_q + rows * in;
        real *spread = r + rows * out, *sum = spread + out;
        memset(spread, 0, out * sizeof(real));
#pragma omp for schedule(static)
        for (long b = 0; b < s.batch; b++) {
            pick(x + b * by->image, s, *by, filled, q);
            product(q, rows, in, 1, s.in, w, out, r, 0);
            for (long c = 0; c < s.out; c++) spread[c] = grad[b * s.out + c] * scale[c];
            for (long c = 0; c < out; c += LANES) {
                vector a = *(vector *)(scale + c), z = *(vector *)(shift + c), g = *(vector *)(spread + c);
                vector first = *(vector *)(constant + c), second = *(vector *)(slope + c);
                for (long p = 0; p < pixels; p++) {
                    vector *value = (vector *)(r + p * out + c);
                    *value = only(*value * a + z > 0, g) - first - *value * second;
                }
            }
            product(r, rows, out, 1, s.out, back, in, grad_q, 0);
            product(q, in, 1, in, pixels, r, out, sum, 1);
            add_picked(grad_q, s, *by_grad, grad_x + b * by_grad->image);
        }
    }
    for (long c = 0; c < s.out; c++)
        for (long i = 0; i < s.in; i++) {
            double sum = 0;
            for (int t = 0; t < threads; t++) sum += own[t * size + 2 * rows * in + (rows + 1 + i) * out + c];
            grad_matrix[c * s.in + i] = sum;
        }
}
