// What scan.cpp and levels.cpp share: floats as bits, neurons cut into groups for vectors and into tasks for threads, and
// the counts of what they send.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define INLINE static inline __attribute__((always_inline))  // a call left in the loop would undo its vectors

static const int GROUP = 128;      // neurons that run through a chunk together: their state fits the first-level cache
static const int64_t UNIT = 4096;  // neurons of one task: whole groups, few enough to balance threads
static const int LANES = 8;        // partial sums of a count: in a single one each addition would wait for the last

// Read as whole numbers, floats of one sign keep their order. So a clamp is one instruction, where of floats GCC makes a
// comparison and a choice.
INLINE uint32_t to_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
INLINE float to_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Asks for W floats before they are needed: the arithmetic of a group is too long for the processor to look beyond it.
template <int W, bool WRITTEN>
INLINE void fetch(const float *x) {
    for (int j = 0; j < W; j += 16) __builtin_prefetch(x + j, WRITTEN);  // a cache line each
}

static int64_t units_of(int64_t N) { return (N + UNIT - 1) / UNIT; }

// Adds what W neurons have sent to sums of spikes, spikes·fanout, events and events·fanout, each in L lanes.
template <int W, int L, class Sum>
INLINE void add_up_in(const float *spikes, const float *events, const float *fanout, Sum (*sums)[L]) {
    const int lanes = W < L ? W : L;
    for (int first = 0; first < W; first += lanes) {
#pragma omp simd
        for (int j = 0; j < lanes; j++) {
            const Sum bursts = spikes[first + j], ones = events[first + j], reach = fanout[first + j];
            sums[0][j] += bursts;
            sums[1][j] += bursts * reach;
            sums[2][j] += ones;
            sums[3][j] += ones * reach;
        }
    }
}

// The same in double, by way of float where that is exact: whole numbers below 2^24 are.
template <int W>
INLINE void add_up(const float *spikes, const float *events, const float *fanout, double (*counts)[LANES]) {
    if (W > 2 * LANES) {
        float sums[4][2 * LANES] = {};
        add_up_in<W>(spikes, events, fanout, sums);
        uint32_t inexact = 0;
#pragma omp simd reduction(| : inexact)
        for (int j = 0; j < 2 * LANES; j++) inexact |= !(sums[0][j] < 1 << 24) | !(sums[1][j] < 1 << 24);
        if (!inexact) {
            for (int n = 0; n < 4; n++)
#pragma omp simd
                for (int j = 0; j < LANES; j++) counts[n][j] += (double)sums[n][j] + sums[n][j + LANES];
            return;
        }
    }
    add_up_in<W>(spikes, events, fanout, counts);
}

// group(number of neurons, image, the first one, counts) for all N neurons of B images; sums: (B, units, 4).
template <class Group>
static void over_units(int64_t B, int64_t N, double *sums, Group group) {
    const int64_t units = units_of(N);
#pragma omp parallel for schedule(static)
    for (int64_t u = 0; u < B * units; u++) {
        const int64_t b = u % B, unit = u / B, first = unit * UNIT;  // images in turn: their parameters are the same
        const int64_t end = first + UNIT < N ? first + UNIT : N;
        double counts[4][LANES] = {};
        int64_t i = first;
        for (; i + GROUP <= end; i += GROUP) group(std::integral_constant<int, GROUP>(), b, i, counts);
        for (; i < end; i++) group(std::integral_constant<int, 1>(), b, i, counts);
        for (int n = 0; n < 4; n++) {
            double &sum = sums[4 * (b * units + unit) + n] = 0.;
            for (int j = 0; j < LANES; j++) sum += counts[n][j];
        }
    }
}
