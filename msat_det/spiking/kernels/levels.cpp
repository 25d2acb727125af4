// One timestep of neurons under delta coding (msat_det/spiking/delta.py), fused: what is sent of each error, the new output sum,
// and the counts. The arithmetic is that of levels.quantise, operation by operation.
//
// Layout as in scan.cpp: x, o and y are (B, N), N the neurons of one image in whatever memory order; o may be x.

#include "lanes.h"

extern "C" {

struct Correct {
    int64_t B, N, period;
    const float *x;             // input sums
    float *o, *y;               // output sums, and what is sent of them now; y null where nobody asks
    const float *theta, *bias;  // of neuron i at i mod period, and on for GROUP more; dead channels huge; bias may be null
    const float *fanout;        // (N,) multiply-adds that a spike reaches
    double *counts;             // (units, 4): spikes, spikes·fanout, Σ[s≠0], Σ[s≠0]·fanout
    float slope, low, high;     // f(x) = clamp(max(x, slope·x), low, high)
    float stage, zone, gamma, overflow, per_ratio;  // overflow: errors from there on are sent whole
    int32_t bits, terms, first;  // bits 0: bursts; first: o is 0 and not read
};

}  // extern "C"

static const uint32_t SIGN = 1u << 31;

// ±2^k for k = clamp(⌊log₂ size⌋ + 1, 0, top), with the sign of rest; 0 where |rest| <= zone. A float's exponent is
// ⌊log₂⌋ + 127.
INLINE float term(float rest, float zone, float per_ratio, int32_t top) {
    const float size = std::fabs(rest);
    int32_t k = (int32_t)(to_bits(size * per_ratio) >> 23) - 126;
    k = k > 0 ? k : 0;
    k = k < top ? k : top;
    const float power = to_float((uint32_t)(k + 127) << 23 | (to_bits(rest) & SIGN));
    return size > zone ? power : 0.f;
}

// Whether any of W errors is beyond a bound, or NaN.
template <int W>
INLINE bool beyond(const float *rest, float bound) {
    uint32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int j = 0; j < W; j++) any |= !(std::fabs(rest[j]) <= bound);
    return any;
}

template <int W, bool BURST>
INLINE void group(const Correct &c, int64_t b, int64_t i, double (*counts)[LANES]) {
    const int64_t at = b * c.N + i, p = i % c.period;
    const int32_t top = c.bits - 1;
    float rest[W], sum[W], theta[W], sent[W], spikes[W], events[W];
    fetch<W, false>(c.x + at + 4 * W);
    fetch<W, true>(c.o + at + 4 * W);
    std::memcpy(rest, c.x + at, sizeof(rest));
    if (c.bias) {  // a choice in the loop below would gather
#pragma omp simd
        for (int j = 0; j < W; j++) rest[j] += c.bias[p + j];
    }
    c.first ? std::memset(sum, 0, sizeof(sum)) : std::memcpy(sum, c.o + at, sizeof(sum));
#pragma omp simd
    for (int j = 0; j < W; j++) {
        float f = c.slope * rest[j];
        f = rest[j] > f ? rest[j] : f;
        f = f < c.low ? c.low : f;
        f = f > c.high ? c.high : f;
        theta[j] = c.theta[p + j] * c.stage;
        rest[j] = (f - sum[j]) / theta[j];
    }
    if (!beyond<W>(rest, c.zone)) {  // they stay as they are: what many groups do once the first timesteps are over
        if (c.first) std::memset(c.o + at, 0, sizeof(sum));
        if (c.y) std::memset(c.y + at, 0, sizeof(sent));
        return;
    }
#pragma omp simd
    for (int j = 0; j < W; j++) sent[j] = spikes[j] = rest[j] - rest[j];  // 0, and NaN of ∞ and NaN
    if (BURST) {
#pragma omp simd
        for (int j = 0; j < W; j++) {
            const float whole = std::floor(std::fabs(rest[j]) + .5f);
            float size = whole < c.gamma ? whole : c.gamma;
            size = std::fabs(rest[j]) < c.overflow ? size : whole;
            size = std::fabs(rest[j]) > c.zone ? size : 0.f;
            sent[j] += to_float(to_bits(size) | (to_bits(rest[j]) & SIGN));
            spikes[j] += size;
        }
    } else {
        const float highest = (float)(1 << top), per_highest = 1.f / highest;
        const float huge = std::nextafter(c.overflow, 0.f);  // errors beyond it are sent whole
        if (c.terms > 0 && beyond<W>(rest, huge)) {
#pragma omp simd
            for (int j = 0; j < W; j++) {
                const float size = std::fabs(rest[j]);
                float times = std::floor(size * per_highest + .5f);
                times = size >= c.overflow && size > c.zone ? times : 0.f;
                const float part = to_float(to_bits(times * highest) | (to_bits(rest[j]) & SIGN));
                rest[j] -= part;
                sent[j] += part;
                spikes[j] += times;
            }
        }
        for (int32_t m = 0; m < c.terms && (m == 0 || beyond<W>(rest, c.zone)); m++) {
#pragma omp simd
            for (int j = 0; j < W; j++) {
                const float part = term(rest[j], c.zone, c.per_ratio, top);
                rest[j] -= part;
                sent[j] += part;
                spikes[j] += part != 0.f ? 1.f : 0.f;
            }
        }
    }
#pragma omp simd
    for (int j = 0; j < W; j++) {
        sent[j] *= theta[j];
        c.o[at + j] = sum[j] + sent[j];
        events[j] = spikes[j] > 0.f ? 1.f : spikes[j];  // NaN stays
    }
    if (c.y) std::memcpy(c.y + at, sent, sizeof(sent));
    add_up<W>(spikes, events, c.fanout + i, counts);
}

template <bool BURST>
static void correct(const Correct &c) {
    over_units(c.B, c.N, c.counts, [&c](auto width, int64_t b, int64_t i, double (*counts)[LANES]) {
        group<width.value, BURST>(c, b, i, counts);
    });
}

extern "C" {

int64_t correct_units(int64_t N) { return units_of(N); }

int64_t correct_group() { return GROUP; }

int64_t correct_struct_size() { return sizeof(Correct); }

// The binary digits that are 1 in |y|/(stage·θ), y (B, N) whole multiples of it and θ as in Correct, the top one of
// ``bits`` as often as it takes; counts: (B, 4) as there.
void count_digits(const float *y, int64_t B, int64_t N, int64_t period, const float *theta, float stage, int32_t bits,
                  const float *fanout, double *counts) {
    const uint32_t below = (1u << (bits - 1)) - 1;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < B; b++) {
        double spikes = 0., reached = 0., events = 0., event_reach = 0.;
#pragma omp simd reduction(+ : spikes, reached, events, event_reach)
        for (int64_t i = 0; i < N; i++) {
            const uint32_t size = (uint32_t)(std::fabs(y[b * N + i]) / (theta[i % period] * stage) + .5f);
            const uint32_t number = (size >> (bits - 1)) + __builtin_popcount(size & below);
            const double digits = number, event = size ? 1. : 0., reach = fanout[i];
            spikes += digits;
            reached += digits * reach;
            events += event;
            event_reach += event * reach;
        }
        double *row = counts + 4 * b;
        row[0] = spikes, row[1] = reached, row[2] = events, row[3] = event_reach;
    }
}

void correct_step(const Correct *c) { c->bits ? correct<false>(*c) : correct<true>(*c); }

}  // extern "C"
