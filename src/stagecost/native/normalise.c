/* How a pre-activation block begins, relu(w1·x̂ + b1), and what the head pools of the same state,
   Σ_pixels relu(w·x̂ + b); with their gradients. The torch twins are in stagecost/kernels.py.

   States are channels last, (batch × pixels × channels), the channels a multiple of the vectors' length and the
   pixels of UNROLL. An image stays in a near cache, so its mean and squares cost one reading of memory. */

#include "vectors.h"

enum { UNROLL = 4 };

typedef struct {
    long batch, pixels, channels;
    double eps, head_eps;
    int pools, threads; /* whether the head pools, too */
} task;

int lanes(void) { return LANES; }

/* Mean and Σ (x − mean)² of an image's channels. */
INLINE void of_image(const real *x, task t, real *mean, real *squares) {
    for (long c = 0; c < t.channels; c += LANES) {
        vector sum[UNROLL] = {{0}}, square[UNROLL] = {{0}};
        for (long p = 0; p < t.pixels; p += UNROLL)
#pragma GCC unroll 4
            for (int u = 0; u < UNROLL; u++) sum[u] += load(x + (p + u) * t.channels + c);
        vector middle = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / (real)t.pixels;
        for (long p = 0; p < t.pixels; p += UNROLL)
#pragma GCC unroll 4
            for (int u = 0; u < UNROLL; u++) {
                vector value = load(x + (p + u) * t.channels + c) - middle;
                square[u] += value * value;
            }
        store(mean + c, middle);
        store(squares + c, (square[0] + square[1]) + (square[2] + square[3]));
    }
}

/* Compute relu(w1·x̂ + b1), mean and variance; and, if the head pools, sums, number and Σ x̂ of the open pixels,
   (batch × channels). `scratch` holds (2·batch + 2) rows of channels. */
void normalise(const task *task_, const real *x, const real *weight, const real *bias, const real *head_weight,
               const real *head_bias, real *scratch, real *y, real *mean, real *variance, real *summed, real *count,
               real *moment) {
    const task t = *task_;
    const long channels = t.channels, size = t.pixels * channels;
    real *squares = scratch + t.batch * channels, *scale = squares + t.batch * channels, *head_scale = scale + channels;
#pragma omp parallel for schedule(static) num_threads(t.threads)
    for (long b = 0; b < t.batch; b++) of_image(x + b * size, t, scratch + b * channels, squares + b * channels);
    double middle[channels], sum[channels]; /* the batch's from the images', as Chan, Golub and LeVeque (1983) do */
    column_sums(scratch, t.batch, channels, middle);
    column_sums(squares, t.batch, channels, sum);
    for (long c = 0; c < channels; c++) middle[c] /= t.batch;
    for (long b = 0; b < t.batch; b++)
        for (long c = 0; c < channels; c++) {
            double distance = scratch[b * channels + c] - middle[c];
            sum[c] += t.pixels * distance * distance;
        }
    for (long c = 0; c < channels; c++) {
        mean[c] = middle[c];
        variance[c] = sum[c] / ((double)t.batch * t.pixels);
        scale[c] = weight[c] / sqrt(variance[c] + t.eps);
        head_scale[c] = t.pools ? head_weight[c] / sqrt(variance[c] + t.head_eps) : 0;
    }
#pragma omp parallel for schedule(static) num_threads(t.threads)
    for (long b = 0; b < t.batch; b++)
        for (long c = 0; c < channels; c += LANES) {
            vector middle = load(mean + c), a = load(scale + c), z = load(bias + c), zero = {0};
            vector head = load(head_scale + c), number = zero, sum = zero;
            vector shift = t.pools ? load(head_bias + c) : zero;
            for (long p = b * size + c; p < (b + 1) * size; p += channels) {
                vector value = load(x + p) - middle, affine = value * a + z;
                store(y + p, only(affine > 0, affine));
                if (!t.pools) continue;
                mask open = value * head + shift > 0;
                number += only(open, zero + 1);
                sum += only(open, value);
            }
            for (long l = 0, to = b * channels + c; t.pools && l < LANES; l++, to++) {
                count[to] = number[l];
                moment[to] = sum[l] / sqrt(variance[c + l] + t.head_eps);
                summed[to] = sum[l] * head[l] + number[l] * shift[l];
            }
        }
}

/* Differentiate: set grad_x to `other` and the gradient through both; and those of weights and biases. `grad` is
   that of y; grad_summed, count and moment are of the head. `scratch` holds (3·batch + 6) rows of channels. */
void normalise_gradient(const task *task_, const real *x, const real *weight, const real *bias,
                        const real *head_weight, const real *head_bias, real *scratch, const real *grad,
                        const real *other, const real *mean, const real *variance, const real *grad_summed,
                        const real *count, const real *moment, real *grad_x, real *grad_weight, real *grad_bias,
                        real *grad_head_weight, real *grad_head_bias) {
    const task t = *task_;
    const long channels = t.channels, size = t.pixels * channels, table = t.batch * channels;
    const double samples = (double)t.batch * t.pixels;
    real *biases = scratch, *weights = biases + table, *spread = weights + table, *scale = spread + table;
    real *constant = scale + channels, *slope = constant + channels, *head_scale = slope + channels;
    for (long c = 0; c < channels; c++) scale[c] = weight[c] / sqrt(variance[c] + t.eps);
#pragma omp parallel for schedule(static) num_threads(t.threads)
    for (long b = 0; b < t.batch; b++)
        for (long c = 0; c < channels; c += LANES) {
            vector middle = load(mean + c), a = load(scale + c), z = load(bias + c), sum = {0}, product = {0};
            for (long p = b * size + c; p < (b + 1) * size; p += channels) {
                vector value = load(x + p) - middle, arriving = only(value * a + z > 0, load(grad + p));
                sum += arriving;
                product += arriving * value;
            }
            store(biases + b * channels + c, sum);
            store(weights + b * channels + c, product);
        }
    double of_bias[channels], of_weight[channels], of_head_bias[channels], of_head_weight[channels];
    column_sums(biases, t.batch, channels, of_bias);
    column_sums(weights, t.batch, channels, of_weight);
    memset(of_head_bias, 0, sizeof of_head_bias);
    memset(of_head_weight, 0, sizeof of_head_weight);
    for (long c = 0; c < channels; c++)
        head_scale[c] = t.pools ? head_weight[c] / sqrt(variance[c] + t.head_eps) : 0;
    for (long i = 0; t.pools && i < table;)
        for (long c = 0; c < channels; c++, i++) {
            of_head_bias[c] += (double)grad_summed[i] * count[i];
            of_head_weight[c] += (double)grad_summed[i] * moment[i];
            spread[i] = grad_summed[i] * head_scale[c];
        }
    for (long c = 0; c < channels; c++) {
        double inverse = 1 / sqrt(variance[c] + t.eps), head = 1 / sqrt(variance[c] + t.head_eps);
        grad_bias[c] = of_bias[c];
        grad_weight[c] = of_weight[c] * inverse;
        double flat = scale[c] * of_bias[c] + head_scale[c] * of_head_bias[c];
        double steep = scale[c] * inverse * grad_weight[c] + head_scale[c] * head * of_head_weight[c];
        if (t.pools) {
            grad_head_bias[c] = of_head_bias[c];
            grad_head_weight[c] = of_head_weight[c];
        }
        constant[c] = flat / samples;
        slope[c] = steep / samples;
    }
#pragma omp parallel for schedule(static) num_threads(t.threads)
    for (long b = 0; b < t.batch; b++)
        for (long c = 0; c < channels; c += LANES) {
            vector middle = load(mean + c), a = load(scale + c), z = load(bias + c), zero = {0};
            vector first = load(constant + c), second = load(slope + c), head = load(head_scale + c);
            vector shift = t.pools ? load(head_bias + c) : zero;
            vector part = t.pools ? load(spread + b * channels + c) : zero;
            for (long p = b * size + c; p < (b + 1) * size; p += channels) {
                vector value = load(x + p) - middle, arriving = only(value * a + z > 0, load(grad + p));
                vector sum = load(other + p) + arriving * a - first - value * second;
                if (t.pools) sum += only(value * head + shift > 0, part);
                store(grad_x + p, sum);
            }
        }
}
