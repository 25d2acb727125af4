// The neuron step of msat_det/spiking/neurons.py, fused over a chunk of timesteps: the input is read once, the output written
// once, and the state stays in registers or first-level cache in between. No Python, no PyTorch headers: plain pointers.
//
// Layout: x and y are (K, B, N), N the neurons of one image in whatever memory order; state is (B, N). x may be constant in
// time (x_step = 0), and y may be x.

#include "lanes.h"

extern "C" {

struct Scan {
    int64_t K, B, N, period, x_step, t0;
    const float *x;
    float *y;
    float *v, *o, *sum, *mean, *before;             // state; null where the family has none
    // θ (dead channels huge), θ (dead 0), V(-1), added current: that of neuron i at i mod period, and on for GROUP more
    const float *theta, *theta_max, *start, *bias;
    const float *fanout;                            // (N,) multiply-adds that a spike reaches
    const float *stage;                             // (K,) factor on θ
    double *counts;                                 // (units, 4): Σ|s|, Σ|s|·fanout, Σ[s≠0], Σ[s≠0]·fanout
    float gamma, overflow;                          // overflow: so many spikes of height θ are sent whatever γ
    float offset, margin, upper;                    // upper: of a ReLU6-like activation, infinity elsewhere
    float slope, low, high;                         // tracking: f(x) = clamp(max(x, slope·x), low, high)
    float alpha, k_a, k_i, C, tau_mp, tau_det, rest;
    int32_t is_signed, bounded, normalised, depolarisation, dtt, det, rest_is_max;
};

}  // extern "C"

static const float SMALLEST = 1e-38f;  // θ(t)

INLINE float at_most_one(float x) {  // of x >= 0
    const uint32_t bits = to_bits(x), one = 0x3f800000;
    return to_float(bits < one ? bits : one);
}

INLINE float at_least_smallest(float x) {  // of x >= 0
    const uint32_t bits = to_bits(x), smallest = to_bits(SMALLEST);
    return to_float(bits > smallest ? bits : smallest);
}

INLINE float positive_part(float x) {
    const int32_t bits = (int32_t)to_bits(x);
    return to_float((uint32_t)(bits > 0 ? bits : 0));
}

// e^x, and e^-|x| where DECAY; relative error below 4e-7 from -87 to 88; no more than e^88, and below -87 a number near 0.
// A NaN becomes a number, too, but not where it counts: the potential that it comes from. x = k ln 2 + r: adding MAGIC
// rounds to a whole number, which then stands in the lowest bits of the sum.
template <bool DECAY = false>
INLINE float exp_(float x) {
    const uint32_t SIGN = 1u << 31;
    const int32_t LARGEST = 0x42b00000;  // 88
    const float MAGIC = 12582912.f;
    uint32_t bits = DECAY ? to_bits(x) | SIGN : to_bits(x);
    bits = bits < (SIGN | LARGEST) ? bits : SIGN | LARGEST;  // of unsigned numbers the negative floats are the largest
    if (!DECAY) bits = (int32_t)bits < LARGEST ? bits : LARGEST;
    x = to_float(bits);
    const float shifted = std::fma(x, 1.44269504088896f, MAGIC), k = shifted - MAGIC;
    const float r = std::fma(k, -0.693147182f, x);
    float p = std::fma(r, 8.290228764e-3f, 4.189839041e-2f);
    p = std::fma(r, p, 1.666764007e-1f);
    p = std::fma(r, p, 4.999914615e-1f);
    p = std::fma(r, p, 9.999997054e-1f);
    p = std::fma(r, p, 1.f);
    return to_float(to_bits(p) + (to_bits(shifted) << 23));
}

// ln(1 + u) for u in 0..1, relative error below 3e-7: u times a polynomial fitted at Chebyshev nodes.
INLINE float log1p_(float u) {
    const float u2 = u * u, u4 = u2 * u2;
    const float a = std::fma(u, -4.999944498e-1f, 9.999999659e-1f), b = std::fma(u, -2.483539899e-1f, 3.331812171e-1f);
    const float c = std::fma(u, -1.360224761e-1f, 1.907688073e-1f), d = std::fma(u, -2.907406461e-2f, 7.751608662e-2f);
    const float e = std::fma(u4, 5.126102123e-3f, std::fma(u2, d, c));
    return u * std::fma(u4, e, std::fma(u2, b, a));
}

// ln(1 + e^z), given decay = e^-|z|.
INLINE float softplus_(float z, float decay) { return positive_part(z) + log1p_(decay); }

// Soft-reset IF, reset-to-zero IF, tracking of a piecewise linear function, leaky ReLU with imbalanced threshold, and
// tracking of what comes in x: the sum that the output shall have. The potential of RESET and LEAKY is not what is still
// to be sent: they keep the sums of input and output as well.
enum Family { SPIKE, RESET, TRACK, LEAKY, GIVEN };

enum Output { FORGOTTEN, KEPT, SIGNED };  // the output sum; SIGNED: spikes may take it back

enum Threshold { CONSTANT, ADAPTIVE, USUAL };  // USUAL: DTT with k_a·τ_mp = 1, DET driven by the current

// θ(t)/θ of the adaptive threshold, sigmoid(level), for W neurons before they see x; of a dead neuron 1. per_k_i is 1/k_i
// and per_C -1/C, in the unit of Δ and of the drive, rest is -τ_mp·V_T. One exponential a loop: several in a row would
// leave the processor waiting for each of them. softplus(z) = max(z, 0) + ln(1 + u) with u = e^-|z|: where its factor is 1,
// e^-level is that of the other terms over 1 + u, and there is no logarithm to take.
template <int W, int THRESHOLD>
INLINE void shares(const Scan &c, const float *drive, const float *v, const float *mean, const float *per_k_i,
                   const float *per_C, const float *rest, const float *alive, float *share) {
    const float slope = -c.tau_mp * c.alpha * c.k_i, gain = -c.tau_mp * c.k_a;
    float z[W], below[W], under[W];  // below: -level
    for (int j = 0; j < W; j++) below[j] = 0.f, under[j] = 1.f;
    if (THRESHOLD == USUAL || c.dtt) {
#pragma omp simd
        for (int j = 0; j < W; j++) {
            z[j] = (v[j] - mean[j]) * per_k_i[j];  // Δ / k_i
            under[j] = exp_<true>(z[j]);
        }
#pragma omp simd
        for (int j = 0; j < W; j++) {
            below[j] = std::fma(slope, z[j], rest[j]);
            if (THRESHOLD == USUAL) {
                below[j] -= positive_part(z[j]);
                under[j] += 1.f;
            } else {
                below[j] = std::fma(gain, softplus_(z[j], under[j]), below[j]);
                under[j] = 1.f;
            }
        }
    }
    if (THRESHOLD == USUAL || c.det) {
#pragma omp simd
        for (int j = 0; j < W; j++) {
            below[j] = std::fma(-c.tau_det, exp_(drive[j] * per_C[j]), below[j]);
        }
    }
#pragma omp simd
    for (int j = 0; j < W; j++) share[j] = under[j] / std::fma(alive[j], exp_(below[j]), under[j]);
}

// The potential before the spike in the n-th timestep. sum: of the inputs, this one in it.
template <int FAMILY>
INLINE float charged(const Scan &c, float n, float in, float v, float sum, float o) {
    if (FAMILY == GIVEN) return in - o;
    if (FAMILY != TRACK) return v + in;
    float a = sum / n, f = c.slope * a;
    f = a > f ? a : f;
    f = f < c.low ? c.low : f;
    f = f > c.high ? c.high : f;
    return n * f - o;
}

// W neighbouring neurons over the whole chunk. Keeps NaN: every comparison lets it through.
template <int W, int FAMILY, int OUTPUT, int THRESHOLD>
INLINE void group(const Scan &c, int64_t b, int64_t i, double (*counts)[LANES]) {
    const int64_t at = b * c.N + i, plane = c.B * c.N, p = i % c.period;
    const float inverse_k_i = 1.f / c.k_i, inverse_C = 1.f / c.C;
    const float upper = c.bounded ? c.upper : INFINITY;
    const bool BOTH_SIGNS = OUTPUT == SIGNED || FAMILY >= TRACK;
    const bool FORGETS = FAMILY == RESET || FAMILY == LEAKY, SUMS = FORGETS || FAMILY == TRACK;
    float v[W], o[W], sum[W], mean[W], before[W], theta[W], start[W], bias[W], count[W], fired[W];
    float per_k_i[W], per_C[W], rest[W], alive[W], share[W], per_theta[W];
    const int64_t next = at + 2 * W;
    fetch<W, true>(c.v + next);
    if (OUTPUT) fetch<W, true>(c.o + next);
    if (SUMS) fetch<W, true>(c.sum + next);
    if (THRESHOLD) fetch<W, true>(c.mean + next);
    c.bias ? std::memcpy(bias, c.bias + p, sizeof(bias)) : std::memset(bias, 0, sizeof(bias));  // a choice would gather
    for (int j = 0; j < W; j++) {
        v[j] = c.v[at + j];
        theta[j] = c.theta[p + j];
        start[j] = c.start[p + j];
        count[j] = fired[j] = 0.f;
        if (OUTPUT) o[j] = c.o[at + j];
        per_theta[j] = 1.f / theta[j];
        if (SUMS) sum[j] = c.sum[at + j];
        if (THRESHOLD) mean[j] = c.mean[at + j], share[j] = 1.f;
        if (THRESHOLD == ADAPTIVE) before[j] = c.depolarisation ? c.before[at + j] : 0.f;
        if (THRESHOLD) per_k_i[j] = (c.normalised ? per_theta[j] : 1.f) * inverse_k_i;
        if (THRESHOLD) per_C[j] = (c.normalised ? per_theta[j] : 1.f) * -inverse_C;
        if (THRESHOLD) alive[j] = c.theta_max[p + j] > 0.f ? 1.f : 0.f;
        if (THRESHOLD) rest[j] = -c.tau_mp * (c.rest_is_max ? -c.theta_max[p + j] : c.rest);
    }
    for (int64_t k = 0; k < c.K; k++) {
        const float *x = c.x + k * c.x_step + at;
        float *y = c.y + k * plane + at;
        // each timestep lies elsewhere: fetched are the one after the next, and at the end the next neurons' first ones
        const int64_t later = k + 2 < c.K ? k + 2 : (k + 2) % c.K, from = at + (k + 2 < c.K ? 0 : W);
        fetch<W, false>(c.x + later * c.x_step + from);
        fetch<W, true>(c.y + later * plane + from);
        const int64_t t = c.t0 + k;
        const float n = (float)(t + 1), stage = c.stage[k], inverse = 1.f / n, per_stage = 1.f / stage;
        const float overflow = c.overflow * per_stage;
        if (THRESHOLD && t > 0) {
            float drive[W];
#pragma omp simd
            for (int j = 0; j < W; j++) {
                drive[j] = x[j] + bias[j];
                if (THRESHOLD == ADAPTIVE && c.depolarisation)
                    drive[j] = charged<FAMILY>(c, n, drive[j], v[j], SUMS ? sum[j] + drive[j] : 0.f, OUTPUT ? o[j] : 0.f) -
                               before[j];
            }
            shares<W, THRESHOLD>(c, drive, v, mean, per_k_i, per_C, rest, alive, share);
        }
#pragma omp simd
        for (int j = 0; j < W; j++) {
            const float in = x[j] + bias[j];
            if (SUMS) sum[j] += in;
            const float up = charged<FAMILY>(c, n, in, v[j], SUMS ? sum[j] : 0.f, OUTPUT ? o[j] : 0.f);
            float goal = up;
            if (FAMILY < TRACK && OUTPUT) {
                const float most = n * upper - o[j] + start[j];
                goal = most < goal ? most : goal;
            }
            float th = theta[j] * stage;
            bool late = false;
            if (THRESHOLD || FORGETS) {  // see _lacking in neurons.py
                float lacking = goal;
                if (FORGETS) {
                    float f = c.slope * sum[j];
                    f = sum[j] > f ? sum[j] : f;
                    lacking = (f > n * upper ? n * upper : f) - o[j] + start[j];
                }
                if (OUTPUT == SIGNED) {
                    const float least = start[j] - o[j];
                    lacking = lacking < least ? least : lacking;
                }
                late = (BOTH_SIGNS ? std::fabs(lacking) : lacking) >= overflow * th;
                if (FORGETS || BOTH_SIGNS) goal = late ? lacking : goal;
                if (THRESHOLD) {
                    const float varying = at_least_smallest(th * share[j]);  // a tiny θ over e^88 would be 0
                    th = late ? th : varying;
                }
            }
            // one over θ(t), where a neuron divides by it more than once
            const float per = THRESHOLD ? 1.f / th : per_theta[j] * per_stage;
            float s = std::floor((OUTPUT && THRESHOLD ? goal * per : goal / th) + c.offset);
            if (FAMILY == LEAKY) s = goal < 0.f && !late ? -std::floor(-goal * c.slope / th) : s;
            if (FAMILY < TRACK) {
                float least = 0.f;
                if (OUTPUT == SIGNED) {  // 1e-4 is more than what per rounds off
                    const float given = std::floor(o[j] * per + 1e-4f);
                    least = goal - start[j] < -c.margin * th ? -given : 0.f;
                }
                s = s < least ? least : s;
            }
            float held = s > c.gamma ? c.gamma : s;
            if (BOTH_SIGNS) held = held < -c.gamma ? -c.gamma : held;
            const bool all = THRESHOLD || FORGETS ? late : (BOTH_SIGNS ? std::fabs(s) : s) >= overflow;
            s = all ? s : held;
            float out = s * th;
            if (OUTPUT == SIGNED) out = out < -o[j] ? -o[j] : out;
            float charge = out;
            if (FAMILY == LEAKY) {
                const float left = goal - out;
                charge = s < 0.f ? out / c.slope : out;
                charge = late ? up - (left < 0.f ? left / c.slope : left) : charge;
            }
            v[j] = FAMILY == RESET ? (s > 0.f || s < 0.f ? 0.f : up) : up - charge;
            if (OUTPUT) o[j] += out;
            if (THRESHOLD) mean[j] = std::fma(v[j] - mean[j], inverse, mean[j]);
            if (THRESHOLD == ADAPTIVE) before[j] = up;
            y[j] = out;
            const float size = BOTH_SIGNS ? std::fabs(s) : s;
            count[j] += size;
            fired[j] += at_most_one(size);
        }
    }
    for (int j = 0; j < W; j++) {
        c.v[at + j] = v[j];
        if (OUTPUT) c.o[at + j] = o[j];
        if (SUMS) c.sum[at + j] = sum[j];
        if (THRESHOLD) c.mean[at + j] = mean[j];
        if (THRESHOLD == ADAPTIVE && c.depolarisation) c.before[at + j] = before[j];
    }
    add_up<W>(count, fired, c.fanout + i, counts);
}

template <int FAMILY, int OUTPUT, int THRESHOLD>
static void scan(const Scan &c) {
    over_units(c.B, c.N, c.counts, [&c](auto width, int64_t b, int64_t i, double (*counts)[LANES]) {
        group<width.value, FAMILY, OUTPUT, THRESHOLD>(c, b, i, counts);
    });
}

template <int FAMILY, int OUTPUT>
static void dispatch(const Scan &c, bool adaptive) {
    if (!adaptive) return scan<FAMILY, OUTPUT, CONSTANT>(c);
    const bool usual = c.dtt && c.k_a * c.tau_mp == 1.f && c.det && !c.depolarisation;
    if (FAMILY == SPIKE && usual) return scan<SPIKE, OUTPUT, USUAL>(c);
    scan<FAMILY, OUTPUT, ADAPTIVE>(c);
}

extern "C" {

int64_t scan_units(int64_t N) { return units_of(N); }

int64_t scan_group() { return GROUP; }

int64_t scan_struct_size() { return sizeof(Scan); }

void scan_chunk(const Scan *c, int32_t family, int32_t output, int32_t adaptive) {
    switch (family) {
        case RESET:  // the output sum is part of the state, as of the next three
            return c->is_signed ? dispatch<RESET, SIGNED>(*c, adaptive) : dispatch<RESET, KEPT>(*c, adaptive);
        case TRACK: return dispatch<TRACK, KEPT>(*c, adaptive);
        case LEAKY: return dispatch<LEAKY, KEPT>(*c, adaptive);
        case GIVEN: return dispatch<GIVEN, KEPT>(*c, adaptive);
    }
    if (!output) return dispatch<SPIKE, FORGOTTEN>(*c, adaptive);
    c->is_signed ? dispatch<SPIKE, SIGNED>(*c, adaptive) : dispatch<SPIKE, KEPT>(*c, adaptive);
}

// Where y (rows, N) is not 0: how often in each row, and the fan-out (N,) there. counts: (rows, 2).
void count_events(const float *y, int64_t rows, int64_t N, const float *fanout, double *counts) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        double events = 0., reached = 0.;
#pragma omp simd reduction(+ : events, reached)
        for (int64_t i = 0; i < N; i++) {
            const bool fired = y[row * N + i] != 0.f;
            events += fired ? 1. : 0.;
            reached += fired ? (double)fanout[i] : 0.;
        }
        counts[2 * row] = events;
        counts[2 * row + 1] = reached;
    }
}

// Adds |x| to per-channel histograms over the leading bits of a float (see methods/observe.py) and to the maxima.
// Element (o, c, i) of x lies at (o·C + c)·I + i: O = images and I = pixels, or O = images·pixels and I = 1, …
void observe_channels(const float *x, int64_t O, int64_t C, int64_t I, int32_t shift, int32_t first, int32_t bins,
                      int32_t *histogram, float *maximum) {
    const int64_t part = 8;
#pragma omp parallel for schedule(dynamic)
    for (int64_t begin = 0; begin < C; begin += part) {
        const int64_t end = begin + part < C ? begin + part : C;
        for (int64_t o = 0; o < O; o++)
            for (int64_t c = begin; c < end; c++)
                for (int64_t i = 0; i < I; i++) {
                    const float value = std::fabs(x[(o * C + c) * I + i]);
                    int32_t bits;
                    std::memcpy(&bits, &value, 4);
                    int32_t bin = (bits >> shift) - (first - 1);
                    bin = bin < 0 ? 0 : bin >= bins ? bins - 1 : bin;
                    histogram[c * bins + bin]++;
                    if (value > maximum[c] || value != value) maximum[c] = value;  // a NaN gets in and stays
                }
    }
}

void apply_exp(const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = exp_(x[i]);
}

void apply_softplus(const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = softplus_(x[i], exp_(-std::fabs(x[i])));
}

}  // extern "C"
