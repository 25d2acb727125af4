// An event-driven convolution: its multiplications follow the non-zero entries of the input. One thread, float32.
//
// Layout: x (B, H, W, Cin), y (B, OH, OW, Cout). First every pixel's non-zero channels are written into a list. Then
// every output pixel adds one row of weights for each entry under its kernel, and is written once. The entries of a
// kernel's row lie in one piece of the list, so that a 3×3 kernel takes three loops a pixel and not nine.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

static const int64_t LANES = 16, TILE = 4;  // floats of a vector; vectors of Cout that stay in registers at once
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(alignof(float)), may_alias));

struct Geometry {
    int64_t B, H, W, Cin, OH, OW, Cout, groups, kh, kw, sh, sw, ph, pw, dh, dw;
};

// where: column · Cin + channel, a place in the row of pixels. first: (B·H·W + 1) each pixel's entries in the list.
struct Events {
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

static void list_events(const Geometry &g, const float *x, Events &events) {
    const int64_t pixels = g.B * g.H * g.W;
    events.first.resize(pixels + 1);
    events.where.resize(pixels * g.Cin + LANES);
    events.value.resize(pixels * g.Cin + LANES);
    int64_t end = 0;
    for (int64_t p = 0; p < pixels; ++p) {
        events.first[p] = end;
        end += compress(x + p * g.Cin, g.Cin, int32_t(p % g.W * g.Cin), &events.where[end], &events.value[end]);
    }
    events.first[pixels] = end;
}

// Calls visit(begin, end, tap, column) for the pieces of the list under an output pixel: entries begin..end, whose first
// possible one is that of ``column``, where the kernel's tap number ``tap`` lies. Pieces hold up to ``run`` columns.
template <typename Visit>
INLINE void under(const Geometry &g, const int64_t *first, int64_t b, int64_t oh, int64_t ow, int64_t run, Visit visit) {
    for (int64_t i = 0; i < g.kh; ++i) {
        const int64_t h = oh * g.sh - g.ph + i * g.dh;
        if (h < 0 || h >= g.H) continue;
        const int64_t *row = first + (b * g.H + h) * g.W;
        for (int64_t j = 0; j < g.kw; j += run) {
            const int64_t w = ow * g.sw - g.pw + j * g.dw;
            const int64_t left = std::max<int64_t>(w, 0), right = std::min(w + run, g.W);
            if (left < right) visit(row[left], row[right], i * g.kw + j, w);
        }
    }
}

// V vectors of Cout, of which ``width`` floats are there. weight: (kh, kw, Cin, V·LANES). bias, y: at their first float.
template <int V>
static void tile(const Geometry &g, const Events &events, const float *weight, const float *bias, float *y, int64_t width) {
    const int CHAINS = TILE / V;  // sums side by side, for additions wait for each other
    const int64_t run = g.dw == 1 ? g.kw : 1;
    const int32_t *where = events.where.data();
    const float *value = events.value.data();
    for (int64_t b = 0; b < g.B; ++b)
        for (int64_t oh = 0; oh < g.OH; ++oh)
            for (int64_t ow = 0; ow < g.OW; ++ow, y += g.Cout) {
                Lanes sum[CHAINS][V] = {};
                for (int k = 0; k < V; ++k) sum[0][k] = ((const Lanes *)bias)[k];
                auto add = [&](int64_t begin, int64_t end, int64_t tap, int64_t column) {
                    const float *rows = weight + (tap - column) * g.Cin * V * LANES;
                    int64_t e = begin;
                    for (; e + CHAINS <= end; e += CHAINS)
                        for (int u = 0; u < CHAINS; ++u) {
                            const Lanes *row = (const Lanes *)(rows + where[e + u] * V * LANES);
                            for (int k = 0; k < V; ++k) sum[u][k] += value[e + u] * row[k];
                        }
                    for (; e < end; ++e) {
                        const Lanes *row = (const Lanes *)(rows + where[e] * V * LANES);
                        for (int k = 0; k < V; ++k) sum[0][k] += value[e] * row[k];
                    }
                };
                under(g, events.first.data(), b, oh, ow, run, add);
                for (int u = 1; u < CHAINS; ++u)
                    for (int k = 0; k < V; ++k) sum[0][k] += sum[u][k];
                if (width == V * LANES) {
                    for (int k = 0; k < V; ++k) ((Lanes *)y)[k] = sum[0][k];
                } else {
                    Lanes last[V];
                    for (int k = 0; k < V; ++k) last[k] = sum[0][k];
                    std::memcpy(y, last, width * sizeof(float));
                }
            }
}

// weight: one block (kh, kw, Cin, ≤ TILE·LANES) after the other, Cout filled up with zeros to whole vectors.
static void whole(const Geometry &g, const Events &events, const float *weight, const float *bias, float *y) {
    for (int64_t done = 0; done < g.Cout; done += TILE * LANES) {
        const int64_t width = std::min(g.Cout - done, TILE * LANES), vectors = (width + LANES - 1) / LANES;
        auto run = vectors == 1 ? tile<1> : vectors == 2 ? tile<2> : vectors == 3 ? tile<3> : tile<4>;
        run(g, events, weight, bias + done, y + done, width);
        weight += g.kh * g.kw * g.Cin * vectors * LANES;
    }
}

// For each place of an axis of the input: the kernel's taps that carry it to an output, and which one that is.
using Reach = std::vector<std::vector<std::pair<int64_t, int64_t>>>;

static Reach reach(int64_t inputs, int64_t outputs, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
    Reach found(inputs);
    for (int64_t o = 0; o < outputs; ++o)
        for (int64_t i = 0; i < taps; ++i) {
            const int64_t at = o * stride - pad + i * dilation;
            if (at >= 0 && at < inputs) found[at].push_back({i, o});
        }
    return found;
}

// Depthwise and grouped: every entry is added to the outputs that it reaches, few of a pixel. Gathered per output pixel
// as above, the loops over a few entries for each tap took most of the time. weight: (Cin, kh, kw, Cout/groups).
template <bool DEPTHWISE>
static void grouped(const Geometry &g, const Events &events, const float *weight, const float *bias, float *y) {
    const int64_t inputs = g.Cin / g.groups, outputs = DEPTHWISE ? 1 : g.Cout / g.groups, taps = g.kh * g.kw;
    const Reach rows = reach(g.H, g.OH, g.kh, g.sh, g.ph, g.dh), columns = reach(g.W, g.OW, g.kw, g.sw, g.pw, g.dw);
    std::vector<std::pair<int64_t, int64_t>> reached(taps);  // place in a channel's weights, place in y
    const int32_t *where = events.where.data();
    const float *value = events.value.data();
    const int64_t *first = events.first.data();
    int64_t begun = 0;  // rows of y that hold the bias: no sooner than they are needed, so that they stay in cache
    auto begin_until = [&](int64_t row) {
        for (int64_t p = begun * g.OW; p < row * g.OW; ++p) std::memcpy(y + p * g.Cout, bias, g.Cout * sizeof(float));
        begun = std::max(begun, row);
    };
    for (int64_t b = 0; b < g.B; ++b)
        for (int64_t h = 0; h < g.H; ++h) {
            if (!rows[h].empty()) begin_until(b * g.OH + rows[h].back().second + 1);
            for (int64_t w = 0; w < g.W; ++w, ++first) {
                if (first[0] == first[1]) continue;
                auto *end = reached.data();
                for (auto [i, oh] : rows[h])
                    for (auto [j, ow] : columns[w])
                        *end++ = {(i * g.kw + j) * outputs, ((b * g.OH + oh) * g.OW + ow) * g.Cout};
                for (int64_t e = first[0]; e < first[1]; ++e) {
                    const int64_t c = where[e] - w * g.Cin;
                    const float *own = weight + c * taps * outputs, v = value[e];
                    float *out = y + (DEPTHWISE ? c : c / inputs * outputs);
                    if (DEPTHWISE && end - reached.data() == 9) {
#pragma GCC unroll 9
                        for (int t = 0; t < 9; ++t) out[reached[t].second] += v * own[reached[t].first];
                        continue;
                    }
                    for (auto *at = reached.data(); at != end; ++at)
                        for (int64_t k = 0; k < outputs; ++k) out[at->second + k] += v * own[at->first + k];
                }
            }
        }
    begin_until(g.B * g.OH);
}

// bias: filled up to whole vectors of Cout.
extern "C" void event_convolution(const Geometry *g, const float *x, const float *weight, const float *bias, float *y) {
    static Events events;  // kept for the next call, as PyTorch's memory is
    list_events(*g, x, events);
    const bool depthwise = g->groups == g->Cin && g->groups == g->Cout;
    (g->groups == 1 ? whole : depthwise ? grouped<true> : grouped<false>)(*g, events, weight, bias, y);
}
