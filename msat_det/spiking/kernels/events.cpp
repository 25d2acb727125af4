// An event-driven convolution without groups: its multiplications follow the non-zero entries of the input. float32.
//
// Layout: x (B, H, W, Cin), y (B, OH, OW, Cout). A task is a band of output rows. It first lists the non-zero channels of
// the pixels under the band; then every output pixel adds one row of weights for each entry under its kernel, 64 channels
// at a time in registers, and is written once. The entries under one row of the kernel lie together in the list, so that
// a 3×3 kernel takes three loops a pixel and not nine.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

static const int64_t LANES = 16, TILE = 4;  // floats of a vector; vectors of Cout that stay in registers at once
static const int64_t LISTED = 1 << 15;      // entries of x in a task, a size that the second-level cache holds
static const int64_t AHEAD = 1024, PIXELS_AHEAD = 4;  // so many floats of x and pixels of y are asked for early
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(alignof(float)), may_alias));

struct Geometry {
    int64_t B, H, W, Cin, OH, OW, Cout, kh, kw, sh, sw, ph, pw, dh, dw, bands;
};

// Of the input rows from ``top`` on. where: column · Cin + channel, a place in the row. first: each pixel's entries.
struct Events {
    int64_t top;
    std::vector<int64_t> first;
    std::vector<int32_t> where;
    std::vector<float> value;
};

// The non-zero ones of n values, counted from place ``base``; returns their number. Writes up to LANES entries too many.
INLINE int64_t compress(const float *x, int64_t n, int32_t base, int32_t *where, float *value) {
    int64_t found = 0, c = 0;
#ifdef __AVX512F__
    const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; c < n; c += LANES) {
        const __mmask16 inside = n - c < LANES ? (1u << (n - c)) - 1 : 0xffff;
        const __m512 some = _mm512_maskz_loadu_ps(inside, x + c);
        const __mmask16 fired = _mm512_cmp_ps_mask(some, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        const __m512i places = _mm512_add_epi32(count, _mm512_set1_epi32(base + int32_t(c)));
        // through a register: compressing straight into memory is microcode on AMD
        _mm512_storeu_si512(where + found, _mm512_maskz_compress_epi32(fired, places));
        _mm512_storeu_ps(value + found, _mm512_maskz_compress_ps(fired, some));
        found += __builtin_popcount(fired);
    }
#else
    for (; c < n; ++c) {
        where[found] = base + int32_t(c);
        value[found] = x[c];
        found += x[c] != 0.f;
    }
#endif
    return found;
}

// Lists the input rows top..bottom of image b.
static void list_events(const Geometry &g, const float *x, int64_t b, int64_t top, int64_t bottom, Events &events) {
    const int64_t pixels = std::max<int64_t>(bottom - top, 0) * g.W;
    events.top = top;
    if (int64_t(events.first.size()) < pixels + 1) events.first.resize(pixels + 1);
    if (int64_t(events.where.size()) < pixels * g.Cin + LANES) {
        events.where.resize(pixels * g.Cin + LANES);
        events.value.resize(pixels * g.Cin + LANES);
    }
    x += (b * g.H + top) * g.W * g.Cin;
    int64_t end = 0;
    for (int64_t p = 0; p < pixels; ++p) {
        events.first[p] = end;
        for (int64_t c = 0; c < g.Cin; c += LANES) __builtin_prefetch(x + p * g.Cin + c + AHEAD);
        end += compress(x + p * g.Cin, g.Cin, int32_t(p % g.W * g.Cin), &events.where[end], &events.value[end]);
    }
    events.first[pixels] = end;
}

// V vectors of Cout, of which ``width`` floats are there, of the output rows begin..end of image b.
// weight: (kh, kw, Cin, V·LANES). bias, y: at their first float. Where bias is null, sums are added to y.
template <int V>
static void tile(const Geometry &g, const Events &events, const float *weight, const float *bias, float *y,
                 int64_t width, int64_t b, int64_t begin, int64_t end) {
    const int CHAINS = TILE / V;  // sums side by side, for additions wait for each other
    const int64_t run = g.dw == 1 ? g.kw : 1;
    const int32_t *where = events.where.data();
    const float *value = events.value.data();
    y += (b * g.OH + begin) * g.OW * g.Cout;
    for (int64_t oh = begin; oh < end; ++oh)
        for (int64_t ow = 0; ow < g.OW; ++ow, y += g.Cout) {
            Lanes sum[CHAINS][V] = {};
            int64_t found = 0;
            for (int k = 0; k < V; ++k) {
                if (bias) sum[0][k] = ((const Lanes *)bias)[k];
                __builtin_prefetch(y + PIXELS_AHEAD * g.Cout + k * LANES, 1);
            }
            for (int64_t i = 0; i < g.kh; ++i) {
                const int64_t h = oh * g.sh - g.ph + i * g.dh;
                if (h < 0 || h >= g.H) continue;
                const int64_t *row = events.first.data() + (h - events.top) * g.W;
                for (int64_t j = 0; j < g.kw; j += run) {  // pieces of the list, of ``run`` columns
                    const int64_t column = ow * g.sw - g.pw + j * g.dw;
                    const int64_t left = std::max<int64_t>(column, 0), right = std::min(column + run, g.W);
                    if (left >= right) continue;
                    const float *rows = weight + (i * g.kw + j - column) * g.Cin * V * LANES;
                    int64_t e = row[left];
                    found += row[right] - e;
                    for (; e + CHAINS <= row[right]; e += CHAINS)
                        for (int u = 0; u < CHAINS; ++u) {
                            const Lanes *taps = (const Lanes *)(rows + where[e + u] * V * LANES);
                            for (int k = 0; k < V; ++k) sum[u][k] += value[e + u] * taps[k];
                        }
                    for (; e < row[right]; ++e) {
                        const Lanes *taps = (const Lanes *)(rows + where[e] * V * LANES);
                        for (int k = 0; k < V; ++k) sum[0][k] += value[e] * taps[k];
                    }
                }
            }
            if (!bias && !found) continue;
            for (int u = 1; u < CHAINS; ++u)
                for (int k = 0; k < V; ++k) sum[0][k] += sum[u][k];
            if (width == V * LANES) {
                for (int k = 0; k < V; ++k) ((Lanes *)y)[k] = bias ? sum[0][k] : ((Lanes *)y)[k] + sum[0][k];
            } else {
                float last[V * LANES];
                std::memcpy(last, sum[0], sizeof(last));
                for (int64_t c = 0; c < width; ++c) y[c] = bias ? last[c] : y[c] + last[c];
            }
        }
}

extern "C" {

// weight: one block (kh, kw, Cin, ≤ TILE·LANES) after the other, Cout filled up with zeros to whole vectors; so is bias.
// Without bias, null, the convolution is added to y. Every image's output rows are cut into ``bands`` tasks.
void event_convolution(const Geometry *geometry, const float *x, const float *weight, const float *bias, float *y) {
    const Geometry g = *geometry;
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < g.B * g.bands; ++task) {
        static thread_local Events events;  // kept for the next call
        const int64_t b = task / g.bands, band = task % g.bands;
        const int64_t begin = band * g.OH / g.bands, end = (band + 1) * g.OH / g.bands;
        const int64_t top = std::max<int64_t>(begin * g.sh - g.ph, 0);
        list_events(g, x, b, top, std::min((end - 1) * g.sh - g.ph + (g.kh - 1) * g.dh + 1, g.H), events);
        const float *block = weight;
        for (int64_t done = 0; done < g.Cout; done += TILE * LANES) {
            const int64_t width = std::min(g.Cout - done, TILE * LANES), vectors = (width + LANES - 1) / LANES;
            auto run = vectors == 1 ? tile<1> : vectors == 2 ? tile<2> : vectors == 3 ? tile<3> : tile<4>;
            run(g, events, block, bias ? bias + done : nullptr, y + done, width, b, begin, end);
            block += g.kh * g.kw * g.Cin * vectors * LANES;
        }
    }
}

// Tasks that an image is best cut into: lists that stay in cache, and work for every thread.
int64_t event_bands(const Geometry *g, int64_t threads) {
    const int64_t lists = (g->H * g->W * g->Cin + LISTED - 1) / LISTED, share = (4 * threads + g->B - 1) / g->B;
    return std::max<int64_t>(1, std::min(g->OH, std::max(lists, share)));
}

// Non-zero ones among the C channels of every ``step``-th pixel.
int64_t events_among(const float *x, int64_t pixels, int64_t C, int64_t step) {
    int64_t found = 0;
    for (int64_t p = 0; p < pixels; p += step)
        for (int64_t c = 0; c < C; ++c) found += x[p * C + c] != 0.f;
    return found;
}

}  // extern "C"
