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
    uint8_t *awake;             // (B, ⌈N / GROUP⌉): whether a whole group had something to send in its last timestep
    float slope, low, high;     // f(x) = clamp(max(x, slope·x), low, high)
    float stage, zone, gamma, overflow, per_ratio;  // overflow: errors from there on are sent whole
    int32_t bits, terms, first;  // bits 0: bursts; first: o is 0 and not read
    int32_t same;                // nothing but o may differ from the timestep before: who slept sleeps on
};

}  // extern "C"

static const uint32_t SIGN = 1u << 31, EXPONENT = 0xffu << 23;
static const float ZEROS[GROUP] = {};
enum { BURST = 0, MANY = 3 };  // what a neuron may send: a burst, 1 or 2 terms, or MANY: c.terms
#if defined(__AVX512F__)  // floats of a vector: GCC does not cut the choices of wider ones into parts
static const int WIDE = 16;
#elif defined(__AVX__)
static const int WIDE = 8;
#else
static const int WIDE = 4;
#endif
typedef float Floats __attribute__((vector_size(WIDE * sizeof(float)), aligned(alignof(float)), may_alias));
typedef int32_t Whole __attribute__((vector_size(WIDE * sizeof(int32_t))));
typedef uint32_t Bits __attribute__((vector_size(WIDE * sizeof(uint32_t))));

INLINE float with_sign_of(float x, float size) { return to_float(to_bits(size) | (to_bits(x) & SIGN)); }

// 2^clamp(⌊log₂ size⌋, 0, log₂ highest).
INLINE float power(float size, float highest) {
    uint32_t bits = to_bits(size);
    bits = bits > to_bits(1.f) ? bits : to_bits(1.f);
    bits = bits < to_bits(highest) ? bits : to_bits(highest);
    return to_float(bits & EXPONENT);
}

// The ±2^k, up to the highest, that is nearest to what is left of an error.
INLINE float nearest(const Correct &c, float rest, float highest) {
    return with_sign_of(rest, power(std::fabs(rest) * (2 * c.per_ratio), highest));
}

// How often the highest level is sent of an error beyond c.overflow, before all else.
INLINE float times_highest(const Correct &c, float rest, float highest) {
    const float size = std::fabs(rest), times = std::floor(size * (1.f / highest) + .5f);
    return size >= c.overflow && size > c.zone && c.terms > 0 ? times : 0.f;
}

// Adds up to c.terms terms of V vectors of errors to what they give and how many they are. All errors take a term before
// any takes the next one, which has to wait for the one before: that many are side by side in registers.
template <int V>
INLINE void by_terms(const Correct &c, float highest, const Floats *error, Floats *given, Floats *count) {
    const Bits lowest = (Bits)(Floats{} + 1.f), top = (Bits)(Floats{} + highest);
    Floats rest[V], sum[V];
    Whole terms[V] = {};
    for (int v = 0; v < V; v++) rest[v] = error[v], sum[v] = given[v];
    for (int32_t m = 0; m < c.terms; m++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {  // as ``nearest``
            const Bits size = (Bits)rest[v] & ~SIGN, sign = (Bits)rest[v] & SIGN;
            const Whole due = (Floats)size > c.zone;
            Bits power = (Bits)((Floats)size * (2 * c.per_ratio));
            power = power > lowest ? power : lowest;
            power = power < top ? power : top;
            const Floats part = (Floats)((Bits)due & ((power & EXPONENT) | sign));
            rest[v] -= part;
            sum[v] += part;
            terms[v] -= due;
        }
    for (int v = 0; v < V; v++) given[v] = sum[v], count[v] += __builtin_convertvector(terms[v], Floats);
}

// Sends what is due of W errors, in units of their thresholds. LARGE: some of them are beyond c.overflow, or NaN.
template <int W, int TERMS, bool LARGE>
INLINE void send(const Correct &c, int64_t at, float *error, const float *theta, const float *sum,
                 const float *fanout, double (*counts)[LANES]) {
    const float highest = TERMS ? (float)(1 << (c.bits - 1)) : 1.f;
    const int V = (W + WIDE - 1) / WIDE;
    float left[V * WIDE] = {}, sent[V * WIDE] = {}, spikes[V * WIDE] = {}, events[W];
#pragma omp simd
    for (int j = 0; j < W; j++) {
        float rest = error[j], given = LARGE ? rest - rest : 0.f, count = given;  // NaN of ∞ and NaN
        if (TERMS != BURST && LARGE) {
            const float times = times_highest(c, rest, highest), part = with_sign_of(rest, times * highest);
            rest -= part;
            given += part;
            count += times;
        }
        if (TERMS == BURST) {
            const float size = std::fabs(rest), whole = std::floor(size + .5f);
            float part = whole < c.gamma ? whole : c.gamma;
            if (LARGE) part = size < c.overflow ? part : whole;
            part = size > c.zone ? part : 0.f;
            given += with_sign_of(rest, part);
            count += part;
        }
        bool due = true;
#pragma GCC unroll 2
        for (int m = 0; m < TERMS && TERMS < MANY; m++) {
            const float part = nearest(c, rest, highest);
            due = due && std::fabs(rest) > c.zone;
            given += due ? part : 0.f;
            count += due ? 1.f : 0.f;
            rest -= part;
        }
        left[j] = rest;
        sent[j] = given;
        spikes[j] = count;
    }
    if (TERMS == MANY) by_terms<V>(c, highest, (Floats *)left, (Floats *)sent, (Floats *)spikes);
#pragma omp simd
    for (int j = 0; j < W; j++) {
        sent[j] *= theta[j] * c.stage;
        c.o[at + j] = sum[j] + sent[j];
        events[j] = spikes[j] > 0.f ? 1.f : spikes[j];  // NaN stays
    }
    if (c.y) std::memcpy(c.y + at, sent, W * sizeof(float));
    add_up<W>(spikes, events, fanout, counts);
}

template <int W, int TERMS>
INLINE void group(Correct c, int64_t b, int64_t i, double (*counts)[LANES]) {
    const int64_t at = b * c.N + i, p = i % c.period;
    const float *sum = c.first ? ZEROS : c.o + at, *bias = c.bias ? c.bias + p : ZEROS, *theta = c.theta + p;
    uint8_t *awake = c.awake + b * ((c.N + GROUP - 1) / GROUP) + i / GROUP;
    if (W == GROUP && c.same && !*awake) {
        if (c.y) std::memset(c.y + at, 0, W * sizeof(float));
        return;
    }
    float error[W];
    uint32_t due = 0, large = 0;
    fetch<W, false>(c.x + at + 4 * W);
    fetch<W, true>(c.o + at + 4 * W);
    if (c.y) fetch<W, true>(c.y + at + 4 * W);
#pragma omp simd reduction(| : due, large)
    for (int j = 0; j < W; j++) {
        const float x = c.x[at + j] + bias[j];
        float f = c.slope * x;
        f = x > f ? x : f;
        f = f < c.low ? c.low : f;
        f = f > c.high ? c.high : f;
        error[j] = (f - sum[j]) / (theta[j] * c.stage);
        due |= !(std::fabs(error[j]) <= c.zone);
        large |= !(std::fabs(error[j]) < c.overflow);
    }
    *awake = due != 0;
    if (!due) {  // they stay as they are: what many groups do once the first timesteps are over
        if (c.first) std::memset(c.o + at, 0, sizeof(error));
        if (c.y) std::memset(c.y + at, 0, sizeof(error));
        return;
    }
    if (large)
        send<W, TERMS, true>(c, at, error, theta, sum, c.fanout + i, counts);
    else
        send<W, TERMS, false>(c, at, error, theta, sum, c.fanout + i, counts);
}

template <int TERMS>
static void correct(const Correct &c) {
    over_units(c.B, c.N, c.counts, [&c](auto width, int64_t b, int64_t i, double (*counts)[LANES]) {
        group<width.value, TERMS>(c, b, i, counts);
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

void correct_step(const Correct *c) {
    const auto run = !c->bits ? correct<BURST> : c->terms == 1 ? correct<1> : c->terms == 2 ? correct<2> : correct<MANY>;
    run(*c);
}

}  // extern "C"
