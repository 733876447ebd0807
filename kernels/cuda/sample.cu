// Adjustments, the likeliest token, seeded draws from truncated distributions, and log probabilities. Counterpart:
// kernels/src/cpu/sample.rs.
//
// Logits are f32, [rows][stride] with `vocab` elements per row. A chain of two launches, or four if candidates are needed:
//   sample_scan    a thread block per CHUNK of each row: adjusts it in place, finds its largest two logits and sums of weights,
//                  and counts the logits in each bucket of 1/16
//   sample_decide  a thread block per row: chooses if no token is dropped; else finds the bucket from which on candidates are needed
//   sample_gather  as sample_scan: lists the candidates, counts logits larger than the choice
//   sample_choose  a thread block per row: sorts the candidates and draws from what top-k, top-p and min-p leave
// If there are more candidates than a list holds, sample_gather weighs flat buckets instead: BUCKETS equal parts of the range of the row's
// logits that have weight, so that a bucket holds few tokens however flat the row is. sample_choose then searches for each boundary (top-k,
// top-p, the draw) in its bucket alone.
// A row whose token is given is scored: log probability and rank of that token, and the likeliest.
// Masses of dropped and drawn tokens are integers, 2^40 for the likeliest, so that the order of additions changes no bit; a token 2^40
// times less likely than the likeliest has mass zero. Tokens equal those of the CPU up to rounding at a boundary.
#include "common.cuh"

constexpr uint32_t NONE = ~0u;
constexpr float LOG2E = 1.44269504088896341f;
constexpr float INF = __builtin_huge_valf();
// Replaces a logit that is NaN or positive infinity. No logit is as large, so it marks a row that is not a distribution.
constexpr float BROKEN = 3.402823466e38f;

constexpr int SCAN_THREADS = 256, SCAN_NUMBERS = 16, CHUNK = SCAN_THREADS * SCAN_NUMBERS;
constexpr int MAX_CHUNKS = 128;
constexpr int DECIDE_THREADS = 256, CHOOSE_THREADS = 512;
// Buckets cover logits of -64 to 64; logits outside are clamped.
constexpr int BUCKETS = 2048, BUCKETS_A_THREAD = BUCKETS / DECIDE_THREADS;
constexpr float BUCKETS_A_UNIT = 16.f, LOWEST = -64.f;
constexpr int MAX_CANDIDATES = 4096, CANDIDATES_A_THREAD = MAX_CANDIDATES / CHOOSE_THREADS;
constexpr float ONE_MASS = 1099511627776.f;

static_assert(MAX_CHUNKS <= DECIDE_THREADS, "a thread for each chunk");
static_assert(CHUNK == DECIDE_THREADS * SCAN_NUMBERS, "sample_decide goes through one chunk");

constexpr uint32_t ACTIVE = 1, LOGPROBS = 2, GIVEN = 4;

struct Adjustment {
    uint32_t token;
    float bias, repetition, subtract;
};

// Parameters of a row. Adjustments ascend by token; its likeliest tokens are written from `first_likely` on.
struct Request {
    const Adjustment *adjustments;
    double uniform;
    uint32_t num_adjustments;
    float temperature;
    uint32_t top_k;
    float top_p, min_p;
    uint32_t num_top, flags, given, first_likely, unused;
};
static_assert(sizeof(Request) == 56, "as in sample.rs");

// Statistics of a chunk: the largest logit and its token, the second largest, the lowest, and sums of e^(l - first) and e^((l - first) /
// temperature).
struct Part {
    float first, second;
    uint32_t token;
    float lowest, log_sum, draw_sum;
};
static_assert(sizeof(Part) == 24, "as in sample.rs");

// Results of sample_decide for the next two launches. A draw is open while `token` is NONE.
struct Progress {
    double total;
    float largest, log_total, chosen_logit;
    uint32_t token;
    uint32_t needed;
    int bucket;
    uint32_t num_candidates;
    float flat_buckets_a_unit;
};
static_assert(sizeof(Progress) == 40, "as in sample.rs");
constexpr uint32_t DRAW_LISTED = 1, DRAW_SLOWLY = 2, TOP_LISTED = 4, TOP_SLOWLY = 8, RANK = 16;
constexpr uint32_t LISTED = DRAW_LISTED | TOP_LISTED, SLOWLY = DRAW_SLOWLY | TOP_SLOWLY;

struct Choice {
    uint32_t token;
    float margin, logprob;
    uint32_t rank;
};

struct Likely {
    uint32_t token;
    float logprob;
};

__device__ __forceinline__ bool is_greedy(const Request &r) { return r.temperature <= 0.f; }
__device__ __forceinline__ bool is_truncated(const Request &r) {
    return !is_greedy(r) && (r.top_k || r.top_p < 1.f || r.min_p > 0.f);
}
__device__ __forceinline__ bool is_counted(const Request &r) { return is_truncated(r) || ((r.flags & LOGPROBS) && r.num_top); }

// Returns the bucket of a logit, in ascending order.
__device__ __forceinline__ int bucket_of(float logit) {
    return (int)fminf(fmaxf((logit - LOWEST) * BUCKETS_A_UNIT, 0.f), BUCKETS - 1.f);
}

// Returns the flat bucket of a logit; the last one holds the largest.
__device__ __forceinline__ int flat_bucket_of(float logit, float largest, float buckets_a_unit) {
    return BUCKETS - 1 - (int)fminf(fmaxf((largest - logit) * buckets_a_unit, 0.f), BUCKETS - 1.f);
}

// Returns the number of flat buckets per unit: they cover the row, or the part of it that has weight in a draw.
__device__ __forceinline__ float flat_buckets_a_unit(const Request &r, float largest, float lowest) {
    constexpr float LN_ONE_MASS = 27.8f, WIDEST = 128.f;
    float range = fminf(largest - lowest, is_greedy(r) ? WIDEST : LN_ONE_MASS * r.temperature);
    return range > 0.f ? (BUCKETS - 1) / range : 0.f;
}

// Returns an integer in the order of f32's total order.
__device__ __forceinline__ uint32_t key_of(float logit) {
    uint32_t bits = __float_as_uint(logit);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
// Returns the largest key of an equal logit: zeros of either sign are equal.
__device__ __forceinline__ uint32_t highest_key_of(float logit) { return key_of(logit == 0.f ? 0.f : logit); }
__device__ __forceinline__ float logit_of(uint32_t key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// Returns e^((logit - largest) / temperature), where scale is log2(e) / temperature; 1 for the largest even if that is infinite.
__device__ __forceinline__ float weight(float logit, float largest, float scale) {
    return logit == largest ? 1.f : exp2f((logit - largest) * scale);
}
__device__ __forceinline__ uint64_t mass(float logit, float largest, float scale) {
    return __float2ull_rn(weight(logit, largest, scale) * ONE_MASS);
}

struct Top {
    float first, second;
    uint32_t token;
};

// Merges the maxima of two sets of tokens; the smallest token wins among equals.
__device__ __forceinline__ Top merge(Top a, Top b) {
    bool takes_b = b.first > a.first || (b.first == a.first && b.token < a.token);
    Top winner = takes_b ? b : a;
    winner.second = fmaxf(winner.second, takes_b ? a.first : b.first);
    return winner;
}

__device__ __forceinline__ Top warp_merge(Top top) {
#pragma unroll
    for (int offset = 16; offset; offset /= 2) {
        Top other = {__shfl_xor_sync(~0u, top.first, offset), __shfl_xor_sync(~0u, top.second, offset),
                     __shfl_xor_sync(~0u, top.token, offset)};
        top = merge(top, other);
    }
    return top;
}

// Sums over the threads before this one, up to it, and over all. `upto` is bitwise equal to the `before` of the next thread.
template <class T> struct Running {
    T before, upto, all;
};

// Computes a prefix sum over the thread block; `scratch` has 33 elements.
template <class T> __device__ __forceinline__ Running<T> running_sum(T x, T *scratch) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
    T sum = x;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        T before = __shfl_up_sync(~0u, sum, offset);
        if (lane >= offset) sum += before;
    }
    T before = __shfl_up_sync(~0u, sum, 1);
    __syncthreads();
    if (lane == 31) scratch[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        T base = 0;
        for (int i = 0; i < num_warps; i++) {
            T next = base + scratch[i];
            scratch[i] = base;
            base = next;
        }
        scratch[32] = base;
    }
    __syncthreads();
    return {lane ? scratch[warp] + before : scratch[warp], scratch[warp] + sum, scratch[32]};
}

// Element j of a thread is token `chunk_token(j)`; there is none if that is `vocab` or more.
__device__ __forceinline__ int chunk_token(int j) {
    return blockIdx.x * CHUNK + 4 * ((j / 4) * SCAN_THREADS + threadIdx.x) + j % 4;
}

__device__ __forceinline__ bool is_on_16_bytes(const float *row) { return (uintptr_t)row % 16 == 0; }

__device__ __forceinline__ void load_chunk(const float *row, int vocab, float *logits) {
    bool by_four = is_on_16_bytes(row);
#pragma unroll
    for (int j = 0; j < SCAN_NUMBERS; j += 4) {
        int token = chunk_token(j);
        if (by_four && token + 4 <= vocab) {
            float4 four = *(const float4 *)(row + token);
            logits[j] = four.x, logits[j + 1] = four.y, logits[j + 2] = four.z, logits[j + 3] = four.w;
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) logits[j + i] = token + i < vocab ? row[token + i] : -INF;
        }
    }
}

// Returns the first adjustment of `token` or a later token.
__device__ __forceinline__ uint32_t lower_bound(const Request &r, uint32_t token) {
    uint32_t low = 0, high = r.num_adjustments;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (r.adjustments[middle].token < token) low = middle + 1;
        else high = middle;
    }
    return low;
}

// Adjusts the tokens of this block's chunk. Each is written by one thread, and read after the barrier.
__device__ __forceinline__ void adjust(const Request &r, float *row, int vocab) {
    uint32_t chunk_end = min((blockIdx.x + 1) * CHUNK, vocab);
    uint32_t from = lower_bound(r, blockIdx.x * CHUNK), end = lower_bound(r, chunk_end);
    for (uint32_t i = from + threadIdx.x; i < end; i += blockDim.x) {
        Adjustment a = r.adjustments[i];
        float logit = row[a.token] + a.bias;
        // Not contracted to one operation: the host rounds twice.
        logit = logit > 0.f ? __fdiv_rn(logit, a.repetition) : __fmul_rn(logit, a.repetition);
        row[a.token] = __fsub_rn(logit, a.subtract);
    }
    __syncthreads();
}

// Sets the logits of tokens that may not follow to -inf. Grid (vocab / blockDim, masked rows); `masks` is [masked rows][num_words], a bit a
// token, and tokens beyond it may not follow; `rows` names the row of each mask. Goes before sample_scan.
extern "C" __global__ void sample_mask(float *logits, size_t stride, int vocab, const uint32_t *masks, const uint32_t *rows, uint32_t num_words) {
    uint32_t token = blockIdx.x * blockDim.x + threadIdx.x;
    if (token >= (uint32_t)vocab) return;
    uint32_t word = token / 32 < num_words ? masks[size_t(blockIdx.y) * num_words + token / 32] : 0;
    if (!(word >> (token % 32) & 1)) logits[rows[blockIdx.y] * stride + token] = -INF;
}

// Grid (chunks, rows), SCAN_THREADS threads. `histogram` is [rows][BUCKETS], zero before.
extern "C" __global__ void __launch_bounds__(SCAN_THREADS) sample_scan(float *all_logits, size_t stride, int vocab,
                                                                       const Request *requests, Part *parts, uint32_t *histogram) {
    __shared__ Top tops[SCAN_THREADS / 32];
    __shared__ uint32_t lowest_keys[SCAN_THREADS / 32];
    __shared__ float scratch[32];
    __shared__ uint32_t counts[BUCKETS];
    Request r = requests[blockIdx.y];
    if (!(r.flags & ACTIVE)) return;
    float *row = all_logits + blockIdx.y * stride;
    if (r.num_adjustments) adjust(r, row, vocab);
    float logits[SCAN_NUMBERS];
    load_chunk(row, vocab, logits);
#pragma unroll
    for (int j = 0; j < SCAN_NUMBERS; j++) {
        if (!(logits[j] < INF)) logits[j] = row[chunk_token(j)] = BROKEN;
    }
    if (is_counted(r)) {
        for (int i = threadIdx.x; i < BUCKETS; i += SCAN_THREADS) counts[i] = 0;
    }
    Top top = {-INF, -INF, NONE};
    float lowest = INF;
#pragma unroll
    for (int j = 0; j < SCAN_NUMBERS; j++) {
        bool is_larger = logits[j] > top.first;
        top.second = is_larger ? top.first : fmaxf(top.second, logits[j]);
        if (is_larger) top.first = logits[j], top.token = chunk_token(j);
        lowest = fminf(lowest, chunk_token(j) < vocab ? logits[j] : INF);
    }
    top = warp_merge(top);
    // Integers in the order of floats; their minimum takes one instruction.
    uint32_t lowest_key = __reduce_min_sync(~0u, key_of(lowest));
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top, lowest_keys[threadIdx.x / 32] = lowest_key;
    __syncthreads();
    top = tops[0], lowest_key = lowest_keys[0];
#pragma unroll
    for (int i = 1; i < SCAN_THREADS / 32; i++) top = merge(top, tops[i]), lowest_key = min(lowest_key, lowest_keys[i]);
    Part part = {top.first, top.second, top.token, logit_of(lowest_key), 0.f, 0.f};
    if (top.first > -INF) {
        if (r.flags & LOGPROBS) {
            float sum = 0.f;
#pragma unroll
            for (int j = 0; j < SCAN_NUMBERS; j++) sum += weight(logits[j], top.first, LOG2E);
            part.log_sum = block_sum(sum, scratch);
        }
        if (!is_greedy(r)) {
            float sum = 0.f, scale = LOG2E / r.temperature;
#pragma unroll
            for (int j = 0; j < SCAN_NUMBERS; j++) sum += weight(logits[j], top.first, scale);
            part.draw_sum = block_sum(sum, scratch);
        }
    }
    if (threadIdx.x == 0) parts[blockIdx.y * gridDim.x + blockIdx.x] = part;
    if (!is_counted(r)) return;
#pragma unroll
    for (int j = 0; j < SCAN_NUMBERS; j++) {
        if (chunk_token(j) < vocab) atomicAdd(&counts[bucket_of(logits[j])], 1);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BUCKETS; i += SCAN_THREADS) {
        if (counts[i]) atomicAdd(&histogram[blockIdx.y * BUCKETS + i], counts[i]);
    }
}

// Returns the token at which the weights, in the order of tokens, exceed `uniform` of their sum: first finds its chunk, then the token in
// it. `shares` are the chunks' sums.
__device__ uint32_t draw_from_all(const Request &r, const float *row, int vocab, float largest, const double *shares,
                                  int num_chunks, double total) {
    __shared__ double scratch[33], rest;
    __shared__ int chunk;
    __shared__ uint32_t found, last;
    if (threadIdx.x == 0) {
        double target = r.uniform * total, sum = 0, before = 0;
        chunk = 0;
        for (int i = 0; i < num_chunks; i++) {
            if (shares[i] > 0) chunk = i, before = sum;
            sum += shares[i];
            if (sum > target) break;
        }
        rest = target - before;
        found = NONE, last = 0;
    }
    __syncthreads();
    int first_token = chunk * CHUNK + threadIdx.x * SCAN_NUMBERS;
    float scale = LOG2E / r.temperature, weights[SCAN_NUMBERS];
    double sum = 0;
#pragma unroll
    for (int j = 0; j < SCAN_NUMBERS; j++) {
        weights[j] = first_token + j < vocab ? weight(row[first_token + j], largest, scale) : 0.f;
        sum += weights[j];
    }
    Running<double> running = running_sum(sum, scratch);
    if (sum > 0) {
        bool is_here = running.before <= rest && rest < running.upto, is_past = false;
        uint32_t token = 0;
#pragma unroll
        for (int j = 0; j < SCAN_NUMBERS; j++) {
            if (weights[j] > 0 && !is_past) token = first_token + j;
            running.before += weights[j];
            is_past |= is_here && running.before > rest;
        }
        if (is_here) found = token;
        atomicMax(&last, token);
    }
    __syncthreads();
    return found == NONE ? last : found;
}

// Finds the bucket from which on candidates are needed. Each bound is the last bucket preceded by at most vocab - k tokens (so that at
// least k are from there on), or by less than 1 - top_p of the mass.
struct Bounds {
    uint32_t draw_count, top_count;
    float mass;
};

struct Buckets {
    int draw, top, mass;
};

// Reads a row of the histogram and zeroes it for the next step.
__device__ __forceinline__ void take_counts(uint32_t *histogram, uint32_t *counts) {
    uint4 *from = (uint4 *)(histogram + (size_t)blockIdx.x * BUCKETS) + threadIdx.x * (BUCKETS_A_THREAD / 4);
#pragma unroll
    for (int i = 0; i < BUCKETS_A_THREAD; i += 4) {
        uint4 four = from[i / 4];
        counts[i] = four.x, counts[i + 1] = four.y, counts[i + 2] = four.z, counts[i + 3] = four.w;
        from[i / 4] = make_uint4(0, 0, 0, 0);
    }
}

// Sets what else is needed of the row: candidates from a bucket on, or none because they are too many.
__device__ void bound_candidates(const Request &r, uint32_t *histogram, int vocab, double total, float largest,
                                 Progress &progress) {
    __shared__ uint32_t count_scratch[33], num_before[BUCKETS];
    __shared__ float mass_scratch[33];
    __shared__ Buckets last;
    bool truncated = is_truncated(r), wants_top = (r.flags & LOGPROBS) && r.num_top;
    uint32_t counts[BUCKETS_A_THREAD], count = 0;
    take_counts(histogram, counts);
    int first_bucket = threadIdx.x * BUCKETS_A_THREAD;
    float scale = LOG2E / r.temperature, sum = 0.f, masses[BUCKETS_A_THREAD];
#pragma unroll
    for (int i = 0; i < BUCKETS_A_THREAD; i++) {
        // No logit of a bucket exceeds its upper end, except by rounding and in the last bucket, which has none.
        float upper = first_bucket + i == BUCKETS - 1 ? INF : (first_bucket + i + 1) / BUCKETS_A_UNIT + LOWEST + 1e-4f;
        masses[i] = truncated && counts[i] ? counts[i] * weight(fminf(upper, largest), largest, scale) : 0.f;
        sum += masses[i];
        count += counts[i];
    }
    if (threadIdx.x == 0) last = {0, 0, 0};
    uint32_t before = running_sum(count, count_scratch).before;
    float mass_before = running_sum(sum, mass_scratch).before;
    uint32_t draw_bound = vocab - min(max(r.top_k, 1u), vocab), top_bound = vocab - min(max(r.num_top, 1u), vocab);
    float mass_bound = (1.f - r.top_p) * (float)total * 0.9999f;
    Buckets mine = {0, 0, 0};
#pragma unroll
    for (int i = 0; i < BUCKETS_A_THREAD; i++) {
        num_before[first_bucket + i] = before;
        if (before <= draw_bound) mine.draw = first_bucket + i;
        if (before <= top_bound) mine.top = first_bucket + i;
        if (mass_before <= mass_bound) mine.mass = first_bucket + i;
        before += counts[i];
        mass_before += masses[i];
    }
    atomicMax(&last.draw, mine.draw);
    atomicMax(&last.top, mine.top);
    atomicMax(&last.mass, mine.mass);
    __syncthreads();
    int draw = last.draw;
    if (!r.top_k) {
        int least = r.min_p > 0.f ? bucket_of(largest + r.temperature * logf(r.min_p)) - 1 : 0;
        draw = min(bucket_of(largest), max(r.top_p < 1.f ? last.mass : 0, least));
    }
    bool draw_fits = truncated && vocab - num_before[draw] <= MAX_CANDIDATES;
    bool top_fits = wants_top && vocab - num_before[last.top] <= MAX_CANDIDATES;
    progress.needed |= truncated ? (draw_fits ? DRAW_LISTED : DRAW_SLOWLY) : 0;
    progress.needed |= wants_top ? (top_fits ? TOP_LISTED : TOP_SLOWLY) : 0;
    progress.bucket = draw_fits && top_fits ? min(draw, last.top) : draw_fits ? draw : last.top;
    progress.num_candidates = draw_fits || top_fits ? vocab - num_before[progress.bucket] : 0;
}

// Grid (rows), DECIDE_THREADS threads; num_chunks <= MAX_CHUNKS.
extern "C" __global__ void __launch_bounds__(DECIDE_THREADS) sample_decide(const float *all_logits, size_t stride, int vocab,
                                                                           const Request *requests, const Part *all_parts,
                                                                           int num_chunks, uint32_t *histogram, Progress *all_progress,
                                                                           Choice *choices) {
    __shared__ Top tops;
    __shared__ float lowest;
    __shared__ double shares[MAX_CHUNKS], log_shares[MAX_CHUNKS], totals[2];
    Request r = requests[blockIdx.x];
    if (!(r.flags & ACTIVE)) return;
    const Part *parts = all_parts + blockIdx.x * num_chunks;
    if (threadIdx.x < 32) {
        Top top = {-INF, -INF, NONE};
        uint32_t lowest_key = NONE;
        for (int i = threadIdx.x; i < num_chunks; i += 32) {
            top = merge(top, {parts[i].first, parts[i].second, parts[i].token});
            lowest_key = min(lowest_key, key_of(parts[i].lowest));
        }
        top = warp_merge(top);
        lowest_key = __reduce_min_sync(~0u, lowest_key);
        if (threadIdx.x == 0) tops = top, lowest = logit_of(lowest_key);
    }
    __syncthreads();
    Top top = tops;
    if (top.token == NONE) top.token = 0;
    const float *row = all_logits + blockIdx.x * stride;
    bool greedy = is_greedy(r), logprobs = r.flags & LOGPROBS, given = r.flags & GIVEN;
    if (threadIdx.x < num_chunks && (logprobs || !greedy)) {
        Part part = parts[threadIdx.x];
        shares[threadIdx.x] = greedy ? 0 : (double)part.draw_sum * weight(part.first, top.first, LOG2E / r.temperature);
        log_shares[threadIdx.x] = (double)part.log_sum * weight(part.first, top.first, LOG2E);
    }
    __syncthreads();
    if (threadIdx.x == 0 && (logprobs || !greedy)) {
        double total = 0, log_total = 0;
        for (int i = 0; i < num_chunks; i++) total += shares[i], log_total += log_shares[i];
        totals[0] = total, totals[1] = log_total;
    }
    __syncthreads();
    Progress progress = {};
    progress.largest = top.first;
    progress.total = greedy ? 0 : totals[0];
    progress.log_total = logprobs ? (float)log(totals[1]) : 0.f;
    progress.token = NONE;
    progress.flat_buckets_a_unit = flat_buckets_a_unit(r, top.first, lowest);
    if (greedy) progress.token = given ? r.given : top.token;
    else if (!is_truncated(r)) progress.token = draw_from_all(r, row, vocab, top.first, shares, num_chunks, totals[0]);
    progress.chosen_logit = progress.token == NONE ? 0.f : row[progress.token];
    if (logprobs && (given || !greedy) && progress.token != NONE) progress.needed = RANK;
    if (is_counted(r)) bound_candidates(r, histogram, vocab, progress.total, top.first, progress);
    if (threadIdx.x) return;
    all_progress[blockIdx.x] = progress;
    // sample_choose writes what is open here. The margin of a row that is not a distribution is NaN, also if no token is allowed.
    float margin = top.first == BROKEN ? __int_as_float(0x7fc00000) : top.first - top.second;
    choices[blockIdx.x] = {progress.token, margin, progress.chosen_logit - top.first - progress.log_total, 1};
}

// Adds counts and masses of each flat bucket of a chunk to those of its row.
__device__ void weigh_buckets(const float *logits, int vocab, float largest, float scale, float buckets_a_unit, uint32_t *histogram,
                              unsigned long long *row_masses) {
    __shared__ uint32_t counts[BUCKETS];
    __shared__ unsigned long long masses[BUCKETS];
    for (int i = threadIdx.x; i < BUCKETS; i += SCAN_THREADS) counts[i] = 0, masses[i] = 0;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < SCAN_NUMBERS; j++) {
        if (chunk_token(j) >= vocab) continue;
        int bucket = flat_bucket_of(logits[j], largest, buckets_a_unit);
        unsigned long long one = mass(logits[j], largest, scale);
        atomicAdd(&counts[bucket], 1);
        if (one) atomicAdd(&masses[bucket], one);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BUCKETS; i += SCAN_THREADS) {
        if (counts[i]) atomicAdd(&histogram[i], counts[i]);
        if (masses[i]) atomicAdd(&row_masses[i], masses[i]);
    }
}

// Grid (chunks, rows), SCAN_THREADS threads. `candidates` is [rows][MAX_CANDIDATES], `histogram` and `bucket_masses` are [rows][BUCKETS];
// all but the candidates, and the counters, are zero before.
extern "C" __global__ void __launch_bounds__(SCAN_THREADS)
    sample_gather(const float *all_logits, size_t stride, int vocab, const Request *requests, const Part *parts,
                  const Progress *all_progress, uint64_t *candidates, uint32_t *num_gathered, uint32_t *num_larger,
                  uint32_t *histogram, unsigned long long *bucket_masses) {
    if (!(requests[blockIdx.y].flags & ACTIVE)) return;
    Progress progress = all_progress[blockIdx.y];
    float first = parts[blockIdx.y * gridDim.x + blockIdx.x].first;
    bool lists = (progress.needed & LISTED) && bucket_of(first) >= progress.bucket;
    bool ranks = (progress.needed & RANK) && first > progress.chosen_logit;
    if (!lists && !ranks && !(progress.needed & SLOWLY)) return;
    __shared__ uint32_t scratch[33], start;
    float logits[SCAN_NUMBERS];
    load_chunk(all_logits + blockIdx.y * stride, vocab, logits);
    if (progress.needed & SLOWLY) {
        size_t row = (size_t)blockIdx.y * BUCKETS;
        weigh_buckets(logits, vocab, progress.largest, LOG2E / requests[blockIdx.y].temperature, progress.flat_buckets_a_unit,
                      histogram + row, bucket_masses + row);
    }
    uint32_t num_listed = 0, larger = 0;
    auto is_listed = [&](int j) { return lists && chunk_token(j) < vocab && bucket_of(logits[j]) >= progress.bucket; };
#pragma unroll
    for (int j = 0; j < SCAN_NUMBERS; j++) {
        num_listed += is_listed(j);
        larger += logits[j] > progress.chosen_logit;
    }
    if (ranks) {
        larger = __reduce_add_sync(~0u, larger);
        if (threadIdx.x % 32 == 0) atomicAdd(&num_larger[blockIdx.y], larger);
    }
    if (!lists) return;
    Running<uint32_t> running = running_sum(num_listed, scratch);
    if (threadIdx.x == 0) start = atomicAdd(&num_gathered[blockIdx.y], running.all);
    __syncthreads();
    // Chunks in any order: the list is sorted before it is read.
    uint64_t *to = candidates + (size_t)blockIdx.y * MAX_CANDIDATES + start + running.before;
#pragma unroll
    for (int j = 0; j < SCAN_NUMBERS; j++) {
        if (is_listed(j)) *to++ = (uint64_t)key_of(logits[j]) << 32 | ~(uint32_t)chunk_token(j);
    }
}

// Sorts in descending order; `num` is a power of two.
__device__ void sort(uint64_t *list, int num) {
    for (int run = 2; run <= num; run *= 2) {
        for (int gap = run / 2; gap; gap /= 2) {
            for (int i = threadIdx.x; i < num / 2; i += blockDim.x) {
                int low = 2 * i - (i & (gap - 1)), high = low + gap;
                uint64_t a = list[low], b = list[high];
                if ((a < b) == !(low & run)) list[low] = b, list[high] = a;
            }
            __syncthreads();
        }
    }
}

// Returns the mass that a draw must reach. The mass that top-k, top-p and min-p leave is the minimum of what each leaves alone, since each
// keeps a prefix of the same order.
__device__ __forceinline__ uint64_t draw_target(const Request &r, uint64_t kept) {
    return min((uint64_t)(r.uniform * (double)kept) + 1, kept);
}
__device__ __forceinline__ uint64_t top_p_target(const Request &r, uint64_t total) {
    return max((uint64_t)ceil((double)r.top_p * (double)total), (uint64_t)1);
}

// Draws from sorted candidates, which contain all that top-k, top-p and min-p leave.
__device__ uint32_t draw_from_list(const Request &r, const uint64_t *list, int num, double total, float largest) {
    __shared__ uint64_t scratch[33], kept[3];
    __shared__ uint32_t found;
    float scale = LOG2E / r.temperature;
    uint64_t masses[CANDIDATES_A_THREAD], sum = 0, least = __float2ull_ru(r.min_p * ONE_MASS);
    int a_thread = (num + CHOOSE_THREADS - 1) / CHOOSE_THREADS, first = threadIdx.x * a_thread;
#pragma unroll
    for (int i = 0; i < CANDIDATES_A_THREAD; i++) {
        masses[i] = i < a_thread && first + i < num ? mass(logit_of(list[first + i] >> 32), largest, scale) : 0;
        sum += masses[i];
    }
    Running<uint64_t> running = running_sum(sum, scratch);
    if (threadIdx.x == 0) kept[0] = kept[1] = running.all, kept[2] = masses[0], found = 0;
    __syncthreads();
    int top_k = min(r.top_k, num);
    uint64_t reached = running.before;
#pragma unroll
    for (int i = 0; i < CANDIDATES_A_THREAD; i++) {
        reached += masses[i];
        if (i < a_thread && first + i == top_k - 1) kept[0] = reached;
    }
    __syncthreads();
    uint64_t target = top_p_target(r, top_k ? kept[0] : (uint64_t)(total * (double)ONE_MASS));
    reached = running.before;
#pragma unroll
    for (int i = 0; i < CANDIDATES_A_THREAD; i++) {
        uint64_t next = reached + masses[i];
        if (r.top_p < 1.f && reached < target && next >= target) kept[1] = next;
        bool is_last = masses[i] >= least && masses[i] > 0 &&
                       (first + i + 1 >= num || mass(logit_of(list[first + i + 1] >> 32), largest, scale) < least);
        if (i < a_thread && first + i < num && is_last) atomicMax((unsigned long long *)&kept[2], next);
        reached = next;
    }
    __syncthreads();
    target = draw_target(r, min(kept[0], min(kept[1], r.min_p > 0.f ? kept[2] : running.all)));
    reached = running.before;
#pragma unroll
    for (int i = 0; i < CANDIDATES_A_THREAD; i++) {
        uint64_t next = reached + masses[i];
        if (reached < target && next >= target) found = ~(uint32_t)list[first + i];
        reached = next;
    }
    __syncthreads();
    return found;
}

// A row too flat for a list of candidates, with counts and masses of its flat buckets, and room for a list.
struct FlatRow {
    const float *logits;
    int vocab;
    float largest, scale, buckets_a_unit;
    uint32_t *counts;
    unsigned long long *masses;
    uint64_t *list;

    __device__ __forceinline__ int bucket_of(float logit) const { return flat_bucket_of(logit, largest, buckets_a_unit); }

    // Calls `f(token, logit)` for all tokens, distributed over the threads of the block: sixteen loads at a time if the row is aligned.
    template <class F> __device__ __forceinline__ void for_each(F f) const {
        int done = 0;
        if (is_on_16_bytes(logits)) {
            constexpr int VECTORS = 4;
            const float4 *vectors = (const float4 *)logits;
            int num_vectors = vocab / 4;
            for (int first = threadIdx.x; first < num_vectors; first += VECTORS * CHOOSE_THREADS) {
                float4 four[VECTORS];
#pragma unroll
                for (int i = 0; i < VECTORS; i++) {
                    int at = first + i * CHOOSE_THREADS;
                    if (at < num_vectors) four[i] = vectors[at];
                }
#pragma unroll
                for (int i = 0; i < VECTORS; i++) {
                    int at = first + i * CHOOSE_THREADS;
                    if (at >= num_vectors) continue;
                    f(4 * at, four[i].x), f(4 * at + 1, four[i].y), f(4 * at + 2, four[i].z), f(4 * at + 3, four[i].w);
                }
            }
            done = 4 * num_vectors;
        }
        for (int token = done + threadIdx.x; token < vocab; token += CHOOSE_THREADS) f(token, logits[token]);
    }
};

// Sums counts or masses of the tokens whose keys are at least each of the ascending `pivots`.
template <int NUM> __device__ void sum_from(const FlatRow &row, bool by_mass, const uint32_t *pivots, uint64_t *sums) {
    __shared__ uint64_t scratch[CHOOSE_THREADS / 32][NUM];
#pragma unroll
    for (int i = 0; i < NUM; i++) sums[i] = 0;
    row.for_each([&](int, float logit) {
        uint32_t key = key_of(logit);
        if (key < pivots[0]) return;
        uint64_t measure = by_mass ? mass(logit, row.largest, row.scale) : 1;
#pragma unroll
        for (int i = 0; i < NUM; i++) sums[i] += key >= pivots[i] ? measure : 0;
    });
    __syncthreads();
#pragma unroll
    for (int i = 0; i < NUM; i++) {
        for (int offset = 16; offset; offset /= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], offset);
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32][i] = sums[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < NUM; i++) {
        sums[i] = 0;
        for (int warp = 0; warp < CHOOSE_THREADS / 32; warp++) sums[i] += scratch[warp][i];
    }
}

__device__ __forceinline__ uint64_t sum_from(const FlatRow &row, bool by_mass, uint32_t pivot) {
    uint64_t sum;
    sum_from<1>(row, by_mass, &pivot, &sum);
    return sum;
}

// A token in descending order, and the mass of all tokens up to it.
struct Place {
    uint32_t key, token;
    uint64_t mass;
};

// A bucket, and the count or mass above it.
struct Level {
    int bucket;
    uint32_t count_above;
    uint64_t mass_above;
};

// Finds the bucket in which the count, or the mass, in descending order reaches `target`.
__device__ Level find_level(const FlatRow &row, bool by_mass, uint64_t target) {
    constexpr int A_THREAD = BUCKETS / CHOOSE_THREADS;
    __shared__ uint32_t count_scratch[33];
    __shared__ uint64_t mass_scratch[33];
    __shared__ Level level;
    int first = BUCKETS - 1 - threadIdx.x * A_THREAD;
    uint32_t count = 0;
    if (threadIdx.x == 0) level = {0, 0, 0};
    uint64_t sum = 0;
    for (int i = 0; i < A_THREAD; i++) count += row.counts[first - i], sum += row.masses[first - i];
    Level here = {first, running_sum(count, count_scratch).before, running_sum(sum, mass_scratch).before};
    for (int i = 0; i < A_THREAD; i++, here.bucket--) {
        uint32_t next_count = here.count_above + row.counts[here.bucket];
        uint64_t next_mass = here.mass_above + row.masses[here.bucket];
        bool is_here = by_mass ? here.mass_above < target && next_mass >= target : here.count_above < target && next_count >= target;
        if (is_here) level = here;
        here.count_above = next_count, here.mass_above = next_mass;
    }
    __syncthreads();
    return level;
}

// Sorts the bucket's tokens in descending order and searches them, starting from the count or mass above the bucket.
__device__ Place find_in_list(const FlatRow &row, bool by_mass, uint64_t target, Level level, int num) {
    __shared__ uint64_t scratch[33];
    __shared__ int num_listed;
    __shared__ Place found;
    if (threadIdx.x == 0) num_listed = 0;
    __syncthreads();
    row.for_each([&](int token, float logit) {
        if (row.bucket_of(logit) == level.bucket) {
            row.list[atomicAdd(&num_listed, 1)] = (uint64_t)key_of(logit) << 32 | ~(uint32_t)token;
        }
    });
    int padded = 2;
    while (padded < num) padded *= 2;
    for (int i = num + threadIdx.x; i < padded; i += CHOOSE_THREADS) row.list[i] = 0;
    __syncthreads();
    sort(row.list, padded);
    uint64_t masses[CANDIDATES_A_THREAD], sum = 0;
    int a_thread = (num + CHOOSE_THREADS - 1) / CHOOSE_THREADS, first = threadIdx.x * a_thread;
#pragma unroll
    for (int i = 0; i < CANDIDATES_A_THREAD; i++) {
        masses[i] = i < a_thread && first + i < num ? mass(logit_of(row.list[first + i] >> 32), row.largest, row.scale) : 0;
        sum += masses[i];
    }
    uint64_t reached = level.mass_above + running_sum(sum, scratch).before;
#pragma unroll
    for (int i = 0; i < CANDIDATES_A_THREAD; i++) {
        uint64_t next = reached + masses[i];
        bool is_here = by_mass ? reached < target && next >= target : level.count_above + first + i + 1 == target;
        if (i < a_thread && first + i < num && is_here) {
            found = {(uint32_t)(row.list[first + i] >> 32), ~(uint32_t)row.list[first + i], next};
        }
        reached = next;
    }
    __syncthreads();
    return found;
}

// Returns the smallest key in `bucket` or above.
__device__ uint32_t first_key(const FlatRow &row, int bucket) {
    uint32_t low = key_of(-INF), high = key_of(INF);
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (row.bucket_of(logit_of(middle)) >= bucket) high = middle;
        else low = middle + 1;
    }
    return low;
}

// Returns the token with index `place`, from 1 on, among those of equal key.
__device__ uint32_t token_at(const FlatRow &row, uint32_t key, uint64_t place) {
    __shared__ uint32_t scratch[33], found;
    uint32_t num = 0;
    if (threadIdx.x == 0) found = 0;
    for (int start = 0; num < place && start < row.vocab; start += blockDim.x) {
        int token = start + threadIdx.x;
        uint32_t is_equal = token < row.vocab && key_of(row.logits[token]) == key;
        Running<uint32_t> running = running_sum(is_equal, scratch);
        if (is_equal && num + running.upto == place) found = token;
        num += running.all;
    }
    __syncthreads();
    return found;
}

// Searches a bucket of too many tokens for a list, by repeatedly summing what is above seven pivots.
__device__ Place find_by_pivots(const FlatRow &row, bool by_mass, uint64_t target, int bucket) {
    uint32_t low = first_key(row, bucket), high = highest_key_of(row.largest);
    if (bucket < BUCKETS - 1) high = min(high, first_key(row, bucket + 1) - 1);
    while (low < high) {
        uint32_t pivots[7];
        uint64_t sums[7], width = high - low;
#pragma unroll
        for (int i = 0; i < 7; i++) pivots[i] = low + (uint32_t)((width * (i + 1) + 7) / 8);
        sum_from<7>(row, by_mass, pivots, sums);
        uint32_t next_low = low, next_high = pivots[0] - 1;
#pragma unroll
        for (int i = 0; i < 7; i++) {
            if (sums[i] >= target) next_low = pivots[i], next_high = i == 6 ? high : pivots[min(i + 1, 6)] - 1;
        }
        // In a narrow range some pivots are equal; the last of them decides.
        low = next_low, high = next_high;
    }
    uint64_t one = mass(logit_of(low), row.largest, row.scale), measure = by_mass ? one : 1;
    uint64_t place = (target - sum_from(row, by_mass, low + 1) + measure - 1) / measure;
    return {low, token_at(row, low, place), sum_from(row, true, low + 1) + place * one};
}

// Finds the first token in descending order at which the count, or the mass, reaches `target`, which is at least 1 and at most the total.
__device__ Place find_place(const FlatRow &row, bool by_mass, uint64_t target) {
    Level level = find_level(row, by_mass, target);
    int num = row.counts[level.bucket];
    return num <= MAX_CANDIDATES ? find_in_list(row, by_mass, target, level, num) : find_by_pivots(row, by_mass, target, level.bucket);
}

__device__ uint32_t draw_slowly(const Request &r, const FlatRow &row) {
    __shared__ uint64_t scratch[33];
    uint64_t sum = 0;
    for (int i = threadIdx.x; i < BUCKETS; i += CHOOSE_THREADS) sum += row.masses[i];
    uint64_t kept = running_sum(sum, scratch).all;
    if (r.top_k) kept = find_place(row, false, min(r.top_k, row.vocab)).mass;
    if (r.top_p < 1.f) kept = min(kept, find_place(row, true, min(kept, top_p_target(r, kept))).mass);
    if (r.min_p > 0.f) {
        // Smallest key with enough mass: masses ascend with keys.
        uint64_t least = __float2ull_ru(r.min_p * ONE_MASS);
        uint32_t low = key_of(-INF), high = highest_key_of(row.largest);
        while (low < high) {
            uint32_t middle = low + (high - low) / 2;
            if (mass(logit_of(middle), row.largest, row.scale) >= least) high = middle;
            else low = middle + 1;
        }
        kept = min(kept, sum_from(row, true, low));
    }
    return find_place(row, true, draw_target(r, kept)).token;
}

__device__ uint32_t num_larger_in(const uint64_t *list, int num, float logit) {
    __shared__ uint32_t scratch[33];
    uint32_t larger = 0;
    for (int i = threadIdx.x; i < num; i += blockDim.x) larger += logit_of(list[i] >> 32) > logit;
    return running_sum(larger, scratch).all;
}

__device__ uint32_t num_larger_in(const FlatRow &row, float logit) {
    return sum_from(row, false, highest_key_of(logit) + 1);
}

// Writes the likeliest tokens, from the sorted list if it contains them.
__device__ void name_likeliest(const Request &r, const FlatRow &row, const Progress &progress, Likely *likely) {
    auto name = [&](int i, Likely one) {
        one.logprob = one.logprob - progress.largest - progress.log_total;
        likely[i] = one;
    };
    int num_named = min(r.num_top, row.vocab);
    if (progress.needed & TOP_LISTED) {
        for (int i = threadIdx.x; i < num_named; i += CHOOSE_THREADS) name(i, {~(uint32_t)row.list[i], logit_of(row.list[i] >> 32)});
    } else {
        for (int i = 0; i < num_named; i++) {
            Place place = find_place(row, false, i + 1);
            if (threadIdx.x == 0) name(i, {place.token, logit_of(place.key)});
        }
    }
    for (int i = num_named + threadIdx.x; i < r.num_top; i += CHOOSE_THREADS) name(i, {NONE, 0.f});
}

// Grid (rows), CHOOSE_THREADS threads. Leaves counters and buckets zero.
extern "C" __global__ void __launch_bounds__(CHOOSE_THREADS, 1)
    sample_choose(const float *all_logits, size_t stride, int vocab, const Request *requests, const Progress *all_progress,
                  const uint64_t *candidates, uint32_t *num_gathered, uint32_t *num_larger, Choice *choices, Likely *likely,
                  uint32_t *histogram, unsigned long long *bucket_masses) {
    __shared__ uint64_t list[MAX_CANDIDATES];
    Request r = requests[blockIdx.x];
    if (!(r.flags & ACTIVE)) return;
    Progress progress = all_progress[blockIdx.x];
    if (!progress.needed) return;
    size_t first_bucket = (size_t)blockIdx.x * BUCKETS;
    FlatRow row = {all_logits + blockIdx.x * stride, vocab, progress.largest, LOG2E / r.temperature, progress.flat_buckets_a_unit,
                   histogram + first_bucket, bucket_masses + first_bucket, list};
    int num = progress.num_candidates, padded = 2;
    if (progress.needed & LISTED) {
        while (padded < num) padded *= 2;
        const uint64_t *from = candidates + (size_t)blockIdx.x * MAX_CANDIDATES;
        for (int i = threadIdx.x; i < padded; i += CHOOSE_THREADS) list[i] = i < num ? from[i] : 0;
        __syncthreads();
        sort(list, padded);
    }
    uint32_t token = progress.token, rank = 1 + num_larger[blockIdx.x];
    if (progress.needed & DRAW_LISTED) {
        token = draw_from_list(r, list, num, progress.total, progress.largest);
        if (r.flags & LOGPROBS) rank = 1 + num_larger_in(list, num, row.logits[token]);
    }
    if (progress.needed & (TOP_LISTED | TOP_SLOWLY)) name_likeliest(r, row, progress, likely + r.first_likely);
    __syncthreads();
    // Last, because its lists overwrite the candidates.
    if (progress.needed & DRAW_SLOWLY) {
        token = draw_slowly(r, row);
        if (r.flags & LOGPROBS) rank = 1 + num_larger_in(row, row.logits[token]);
    }
    __syncthreads();
    if (progress.needed & SLOWLY) {
        for (int i = threadIdx.x; i < BUCKETS; i += CHOOSE_THREADS) row.counts[i] = 0, row.masses[i] = 0;
    }
    if (threadIdx.x) return;
    choices[blockIdx.x].token = token;
    choices[blockIdx.x].logprob = row.logits[token] - progress.largest - progress.log_total;
    choices[blockIdx.x].rank = rank;
    num_gathered[blockIdx.x] = num_larger[blockIdx.x] = 0;
}
