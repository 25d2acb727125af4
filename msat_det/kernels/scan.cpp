// The neuron step of msat_det/neurons.py, fused over a chunk of timesteps: the input is read once, the output written
// once, and the state stays in registers or first-level cache in between. No Python, no PyTorch headers: plain pointers.
//
// Layout: x and y are (K, B, N), N the neurons of one image in whatever memory order; state is (B, N). x may be constant in
// time (x_step = 0), and y may be x.

#include <cmath>
#include <cstdint>
#include <cstring>

#define INLINE static inline __attribute__((always_inline))  // a call left in the loop would undo its vectors

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
    float gamma, offset, margin, upper;             // upper: of a ReLU6-like activation, infinity elsewhere
    float slope, low, high;                         // tracking: f(x) = clamp(max(x, slope·x), low, high)
    float alpha, k_a, k_i, C, tau_mp, tau_det, rest;
    int32_t is_signed, bounded, normalised, depolarisation, dtt, det, rest_is_max;
};

}  // extern "C"

static const float SMALLEST = 1e-38f;  // θ(t)
static const int GROUP = 256;      // neurons that run through a chunk together
static const int64_t UNIT = 4096;  // neurons of one task: whole groups, few enough to balance threads

// e^x, relative error below 3e-7 from -87 to 88; no more than e^88, and below -87 a number near 0. A NaN becomes a
// number, too, but not where it counts: the potential that it comes from. x = k ln 2 + r: adding MAGIC rounds to a whole
// number, which then stands in the lowest bits of the sum. The clamp works on bits: of comparisons GCC makes branches.
INLINE float exp_(float x) {
    const uint32_t SIGN = 1u << 31, LARGEST = 0x42b00000;  // 88
    const float MAGIC = 12582912.f;
    uint32_t bits, size, exponent;
    std::memcpy(&bits, &x, 4);
    size = bits & ~SIGN;
    size = size < LARGEST ? size : LARGEST;
    bits = (bits & SIGN) | size;
    std::memcpy(&x, &bits, 4);
    const float shifted = std::fma(x, 1.44269504088896f, MAGIC), k = shifted - MAGIC;
    const float r = std::fma(k, 2.12194440e-4f, std::fma(k, -0.693359375f, x)), r2 = r * r;
    const float a = std::fma(r, 9.999997054e-1f, 1.f), b = std::fma(r, 1.666764007e-1f, 4.999914615e-1f);
    float p = std::fma(r, 8.290228764e-3f, 4.189839041e-2f);
    p = std::fma(r2, std::fma(r2, p, b), a);
    std::memcpy(&exponent, &shifted, 4);
    std::memcpy(&bits, &p, 4);
    bits += exponent << 23;
    std::memcpy(&p, &bits, 4);
    return p;
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
INLINE float softplus_(float z, float decay) { return (z > 0.f ? z : 0.f) + log1p_(decay); }

// Soft-reset IF, reset-to-zero IF, tracking of a piecewise linear function, leaky ReLU with imbalanced threshold.
enum Family { SPIKE, RESET, TRACK, LEAKY };

enum Threshold { CONSTANT, ADAPTIVE, USUAL };  // USUAL: adaptive with DTT and DET, driven by the current

// What the adaptive threshold is divided by, for W neurons before they see x: 1 + e^-level. A dead neuron gets 1.
// One exponential a loop: several in a row would leave the processor waiting for each of them.
template <int W, int THRESHOLD>
INLINE void divisors(const Scan &c, const float *x, const float *bias, const float *v, const float *mean,
                     const float *before, const float *unit, const float *rest, const float *alive, float *divisor) {
    const float per_k_i = 1.f / c.k_i, per_C = 1.f / c.C;
    float level[W];
    if (THRESHOLD == USUAL || c.dtt) {
#pragma omp simd
        for (int j = 0; j < W; j++) level[j] = exp_(-std::fabs((v[j] - mean[j]) * unit[j] * per_k_i));
#pragma omp simd
        for (int j = 0; j < W; j++) {
            const float delta = (v[j] - mean[j]) * unit[j], z = delta * per_k_i;
            level[j] = c.tau_mp * (c.alpha * delta + rest[j] + c.k_a * softplus_(z, level[j]));
        }
    } else {
        for (int j = 0; j < W; j++) level[j] = 0.f;
    }
    if (THRESHOLD == USUAL || c.det) {
#pragma omp simd
        for (int j = 0; j < W; j++) {
            float drive = x[j] + bias[j];
            if (THRESHOLD == ADAPTIVE && c.depolarisation) drive = v[j] + drive - before[j];
            level[j] += c.tau_det * exp_(-(drive * unit[j]) * per_C);
        }
    }
#pragma omp simd
    for (int j = 0; j < W; j++) divisor[j] = 1.f + alive[j] * exp_(-level[j]);
}

// W neighbouring neurons over the whole chunk. Keeps NaN: every comparison lets it through.
template <int W, int FAMILY, bool OUTPUT, int THRESHOLD>
INLINE void group(const Scan &c, int64_t b, int64_t i, double *counts) {
    const int64_t at = b * c.N + i, plane = c.B * c.N, p = i % c.period;
    const float upper = c.bounded ? c.upper : INFINITY, margin = c.is_signed ? c.margin : INFINITY;
    float v[W], o[W], sum[W], mean[W], before[W], theta[W], start[W], bias[W], count[W], fired[W], unit[W], rest[W];
    float alive[W], divisor[W], per_theta[W];
    for (int j = 0; j < W; j++) {
        v[j] = c.v[at + j];
        theta[j] = c.theta[p + j];
        start[j] = c.start[p + j];
        bias[j] = c.bias ? c.bias[p + j] : 0.f;
        count[j] = fired[j] = 0.f;
        if (OUTPUT) o[j] = c.o[at + j];
        if (OUTPUT) per_theta[j] = 1.f / theta[j];
        if (FAMILY == TRACK) sum[j] = c.sum[at + j];
        if (THRESHOLD) mean[j] = c.mean[at + j], divisor[j] = 1.f;
        if (THRESHOLD == ADAPTIVE) before[j] = c.depolarisation ? c.before[at + j] : 0.f;
        if (THRESHOLD) unit[j] = c.normalised ? 1.f / theta[j] : 1.f;
        if (THRESHOLD) alive[j] = c.theta_max[p + j] > 0.f ? 1.f : 0.f;
        if (THRESHOLD) rest[j] = c.rest_is_max ? -c.theta_max[p + j] : c.rest;
    }
    for (int64_t k = 0; k < c.K; k++) {
        const float *x = c.x + k * c.x_step + at;
        float *y = c.y + k * plane + at;
        const int64_t t = c.t0 + k;
        const float n = (float)(t + 1), stage = c.stage[k], inverse = 1.f / n, per_stage = 1.f / stage;
        if (THRESHOLD && t > 0) divisors<W, THRESHOLD>(c, x, bias, v, mean, before, unit, rest, alive, divisor);
#pragma omp simd
        for (int j = 0; j < W; j++) {
            float in = x[j] + bias[j], up;
            if (FAMILY == TRACK) {
                sum[j] += in;
                float a = sum[j] / n, f = c.slope * a;
                f = a > f ? a : f;
                f = f < c.low ? c.low : f;
                f = f > c.high ? c.high : f;
                up = n * f - o[j];
            } else {
                up = v[j] + in;
            }
            float th = theta[j];
            if (THRESHOLD) th /= divisor[j];
            if (THRESHOLD) th = th < SMALLEST ? SMALLEST : th;  // a tiny θ over e^88 would be 0
            th *= stage;
            float goal = up;
            if (FAMILY < TRACK && OUTPUT) {
                const float most = n * upper - o[j] + start[j];
                goal = most < goal ? most : goal;
            }
            float s = std::floor(goal / th + c.offset), least = 0.f;
            if (FAMILY == LEAKY) s = goal < 0.f ? -std::floor(-goal * c.slope / th) : s;
            if (FAMILY >= TRACK) {
                least = -c.gamma;
            } else if (OUTPUT) {  // no division: 1e-4 is more than what it would round off
                float per = per_theta[j] * per_stage * (THRESHOLD ? divisor[j] : 1.f);
                per = per > 1.f / SMALLEST ? 1.f / SMALLEST : per;
                float given = std::floor(o[j] * per + 1e-4f);
                given = given > c.gamma ? c.gamma : given;
                least = goal - start[j] < -margin * th ? -given : 0.f;
            }
            s = s < least ? least : s;
            s = s > c.gamma ? c.gamma : s;
            float out = s * th;
            if (FAMILY < TRACK && OUTPUT) out = out < -o[j] ? -o[j] : out;
            const float charge = FAMILY == LEAKY && s < 0.f ? out / c.slope : out;
            v[j] = FAMILY == RESET ? (s > 0.f || s < 0.f ? 0.f : up) : up - charge;
            if (OUTPUT) o[j] += out;
            if (THRESHOLD) mean[j] += (v[j] - mean[j]) * inverse;
            if (THRESHOLD == ADAPTIVE) before[j] = up;
            y[j] = out;
            float size = std::fabs(s);
            count[j] += size;
            fired[j] += size > 1.f ? 1.f : size;  // a NaN stays one
        }
    }
    for (int j = 0; j < W; j++) {
        c.v[at + j] = v[j];
        if (OUTPUT) c.o[at + j] = o[j];
        if (FAMILY == TRACK) c.sum[at + j] = sum[j];
        if (THRESHOLD) c.mean[at + j] = mean[j];
        if (THRESHOLD == ADAPTIVE && c.depolarisation) c.before[at + j] = before[j];
        const double fanout = c.fanout[i + j];
        counts[0] += count[j];
        counts[1] += count[j] * fanout;
        counts[2] += fired[j];
        counts[3] += fired[j] * fanout;
    }
}

template <int FAMILY, bool OUTPUT, int THRESHOLD>
static void scan(const Scan &c) {
    const int64_t units = (c.N + UNIT - 1) / UNIT;
#pragma omp parallel for schedule(static)
    for (int64_t u = 0; u < c.B * units; u++) {
        const int64_t b = u % c.B, unit = u / c.B, first = unit * UNIT;  // images in turn: their parameters are the same
        const int64_t end = first + UNIT < c.N ? first + UNIT : c.N;
        double counts[4] = {0, 0, 0, 0};
        int64_t i = first;
        for (; i + GROUP <= end; i += GROUP) group<GROUP, FAMILY, OUTPUT, THRESHOLD>(c, b, i, counts);
        for (; i < end; i++) group<1, FAMILY, OUTPUT, THRESHOLD>(c, b, i, counts);
        std::memcpy(c.counts + 4 * (b * units + unit), counts, sizeof counts);
    }
}

template <int FAMILY, bool OUTPUT>
static void dispatch(const Scan &c, bool adaptive) {
    if (!adaptive) return scan<FAMILY, OUTPUT, CONSTANT>(c);
    if (FAMILY == SPIKE && c.dtt && c.det && !c.depolarisation) return scan<SPIKE, OUTPUT, USUAL>(c);
    scan<FAMILY, OUTPUT, ADAPTIVE>(c);
}

template <int FAMILY>
static void dispatch(const Scan &c, bool output, bool adaptive) {
    return output ? dispatch<FAMILY, true>(c, adaptive) : dispatch<FAMILY, false>(c, adaptive);
}

extern "C" {

int64_t scan_units(int64_t N) { return (N + UNIT - 1) / UNIT; }

int64_t scan_group() { return GROUP; }

int64_t scan_struct_size() { return sizeof(Scan); }

void scan_chunk(const Scan *c, int32_t family, int32_t output, int32_t adaptive) {
    switch (family) {
        case RESET: return dispatch<RESET>(*c, output, adaptive);
        case TRACK: return dispatch<TRACK, true>(*c, adaptive);  // its output sum is part of its state
        case LEAKY: return dispatch<LEAKY>(*c, output, adaptive);
        default: return dispatch<SPIKE>(*c, output, adaptive);
    }
}

// Adds |x| to per-channel histograms over the leading bits of a float (see convert/observe.py) and to the maxima.
// Element (o, c, i) of x lies at (o·C + c)·I + i: O = images and I = pixels, or O = images·pixels and I = 1.
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
