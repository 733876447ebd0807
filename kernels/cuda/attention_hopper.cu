// Attention of prefill on Hopper: keys and values through the copy engine (TMA), products on warpgroups (wgmma).
//
// A work item is a tile of tokens and one key head. Its rows are (token, head of the group), so that the heads that share a key head
// share one pass over the keys: 128 rows, 18 tokens of 7 heads each for example. Warpgroup 0 loads, warpgroups 1 and 2 compute 64 rows
// each, and take turns: while one multiplies, the other takes exponents (Shah et al. 2024, FlashAttention-3, sec. 3.1 and 3.2).
// Masking goes by position alone. Keys are met in ascending order, so the bits of a row do not depend on the rows beside it.
//
// Keys that the mask hides are still multiplied, by weights of zero: every number of the pool has to be finite, which holds since
// the pool starts as zeros and is only ever written with keys and values.
#include "common.cuh"

constexpr int TILE_ROWS = 128;
constexpr int TILE_KEYS = 128;
constexpr int STAGES = 2;
constexpr int THREADS = 384;
// A tile in shared memory is halves of 64 columns: rows of 128 bytes, their 16-byte chunks swizzled by row % 8.
constexpr uint32_t HALF_BYTES = 128 * 128;
constexpr uint32_t BOX_BYTES = BLOCK * 128;

struct alignas(64) TensorMap {
    uint64_t words[16];
};

struct Tile {
    uint32_t first_row, num_rows, table, kv_len;
};

struct Arguments {
    const uint32_t *positions;
    const Tile *tiles;
    const uint32_t *block_tables;
    bf16 *out;
    float *lse;
    int num_items, max_blocks, layer, num_blocks, num_heads, num_kv_heads;
    float scale;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t phase) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(barrier), "r"(phase) : "memory");
}

__device__ __forceinline__ void load_box(uint32_t to, const TensorMap *map, uint32_t barrier, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(column), "r"(row) : "memory");
}

__device__ __forceinline__ void load_box(uint32_t to, const TensorMap *map, uint32_t barrier, int column, int head, int row) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(column), "r"(head), "r"(row) : "memory");
}

// Turns of the two computing warpgroups.
__device__ __forceinline__ void turn_wait(int warpgroup) { asm volatile("barrier.cta.sync.aligned %0, 256;" ::"r"(1 + warpgroup) : "memory"); }

__device__ __forceinline__ void turn_pass(int warpgroup) { asm volatile("barrier.cta.arrive.aligned %0, 256;" ::"r"(2 - warpgroup) : "memory"); }

// Matrix descriptor (PTX ISA, "Matrix descriptor format"): 128-byte swizzle. For a K-major operand the leading offset is not used and
// the stride goes from 8 rows to the next 8; for an MN-major one the leading offset goes from 64 columns to the next 64.
__device__ __forceinline__ uint64_t descriptor(uint32_t address) {
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(HALF_BYTES >> 4) << 16 | (address & 0x3ffff) >> 4;
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving uses of registers across this point.
template <int N>
__device__ __forceinline__ void pin(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}

template <int N>
__device__ __forceinline__ void pin(uint32_t (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}

#define REGISTERS8(x, i) "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3]), "+f"(x[i + 4]), "+f"(x[i + 5]), "+f"(x[i + 6]), "+f"(x[i + 7])
#define REGISTERS32(x, i) REGISTERS8(x, i), REGISTERS8(x, i + 8), REGISTERS8(x, i + 16), REGISTERS8(x, i + 24)
#define NAMES32                                                                                                                      \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES64                                                                                                                      \
    NAMES32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// d (64 x 128) = or += a (64 x 16, shared) times b (128 x 16, shared) transposed.
template <bool ADD>
__device__ __forceinline__ void multiply_transposed(float (&d)[64], uint64_t a, uint64_t b) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES64 "}, %64, %65, add, 1, 1, 0, 0;\n}"
        : REGISTERS32(d, 0), REGISTERS32(d, 32)
        : "l"(a), "l"(b), "n"(ADD ? 1 : 0));
}

// d (64 x 128) += a (64 x 16, registers) times b (16 x 128, shared).
__device__ __forceinline__ void multiply(float (&d)[64], const uint32_t *a, uint64_t b) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES64 "}, {%64,%65,%66,%67}, %68, add, 1, 1, 1;\n}"
        : REGISTERS32(d, 0), REGISTERS32(d, 32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1));
}

// d (64 x 64) += a (64 x 16, registers) times b (16 x 64, shared).
__device__ __forceinline__ void multiply(float (&d)[32], const uint32_t *a, uint64_t b) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES32 "}, {%32,%33,%34,%35}, %36, add, 1, 1, 1;\n}"
        : REGISTERS32(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1));
}

__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Stages of a buffer in the order both sides go through them.
struct Ring {
    uint32_t stage = 0, phase = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

// Shared memory: Q, then the stages of K, then those of V, then barriers.
template <int HD>
struct Shared {
    static constexpr uint32_t TILE_BYTES = HD / 64 * HALF_BYTES;
    uint32_t base;

    __device__ uint32_t q() const { return base; }
    __device__ uint32_t k(uint32_t stage) const { return base + (1 + stage) * TILE_BYTES; }
    __device__ uint32_t v(uint32_t stage) const { return base + (1 + STAGES + stage) * TILE_BYTES; }
    __device__ uint32_t barrier(uint32_t i) const { return base + (1 + 2 * STAGES) * TILE_BYTES + i * 8; }
    __device__ uint32_t q_full() const { return barrier(0); }
    __device__ uint32_t q_empty() const { return barrier(1); }
    __device__ uint32_t k_full(uint32_t stage) const { return barrier(2 + stage); }
    __device__ uint32_t k_empty(uint32_t stage) const { return barrier(2 + STAGES + stage); }
    __device__ uint32_t v_full(uint32_t stage) const { return barrier(2 + 2 * STAGES + stage); }
    __device__ uint32_t v_empty(uint32_t stage) const { return barrier(2 + 3 * STAGES + stage); }
};

// Items of one block of threads. Items are sorted, largest first; every other round goes backwards, so that no block gets the largest
// of every round.
__device__ __forceinline__ int item_of_round(int round) {
    return round * gridDim.x + (round & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

template <int HD>
__device__ __forceinline__ void load_tiles(const Arguments &a, const TensorMap *q_map, const TensorMap *k_map, const TensorMap *v_map,
                                           const Shared<HD> &shared) {
    constexpr int HALVES = HD / 64, BLOCKS = TILE_KEYS / BLOCK;
    int lane = threadIdx.x % 32, group = a.num_heads / a.num_kv_heads;
    // Each lane copies one box: block `lane % 4` of the tile, columns from `64 (lane / 4)`.
    bool copies = lane < HALVES * BLOCKS;
    uint32_t offset = lane / BLOCKS * HALF_BYTES + lane % BLOCKS * BOX_BYTES;
    int column = lane / BLOCKS * 64;
    uint32_t q_bytes = HALVES * (TILE_ROWS / group * group) * 128, q_phase = 0;
    Ring k_ring, v_ring;
    for (int round = 0;; round++) {
        int item = item_of_round(round);
        if (item >= a.num_items) break;
        Tile tile = a.tiles[item / a.num_kv_heads];
        int kv_head = item % a.num_kv_heads;
        const uint32_t *table = a.block_tables + (size_t)tile.table * a.max_blocks;
        uint32_t last_block = (tile.kv_len - 1) / BLOCK;
        // Past the last block the last one is read again; the mask hides it.
        auto pool_row = [&](int i) {
            uint32_t block = table[min((uint32_t)(i * BLOCKS + lane % BLOCKS), last_block)];
            return (int)((((uint32_t)a.layer * a.num_blocks + block) * a.num_kv_heads + kv_head) * BLOCK);
        };
        auto copy = [&](uint32_t to, const TensorMap *map, uint32_t full, uint32_t empty, uint32_t phase, int row) {
            barrier_wait(empty, phase ^ 1);
            if (lane == 0) barrier_expect(full, Shared<HD>::TILE_BYTES);
            __syncwarp();
            if (copies) load_box(to + offset, map, full, column, row);
        };
        auto copy_k = [&](int row) {
            copy(shared.k(k_ring.stage), k_map, shared.k_full(k_ring.stage), shared.k_empty(k_ring.stage), k_ring.phase, row);
            k_ring.advance();
        };
        auto copy_v = [&](int row) {
            copy(shared.v(v_ring.stage), v_map, shared.v_full(v_ring.stage), shared.v_empty(v_ring.stage), v_ring.phase, row);
            v_ring.advance();
        };
        int row = pool_row(0), num_key_tiles = (tile.kv_len + TILE_KEYS - 1) / TILE_KEYS;
        barrier_wait(shared.q_empty(), q_phase ^ 1);
        if (lane == 0) {
            barrier_expect(shared.q_full(), q_bytes);
            for (int half = 0; half < HALVES; half++)
                load_box(shared.q() + half * HALF_BYTES, q_map, shared.q_full(), half * 64, kv_head * group, tile.first_row);
        }
        __syncwarp();
        q_phase ^= 1;
        copy_k(row);
        for (int i = 1; i < num_key_tiles; i++) {
            int next = pool_row(i);
            copy_k(next);
            copy_v(row);
            row = next;
        }
        copy_v(row);
    }
}

struct False {
    static constexpr bool value = false;
};
struct True {
    static constexpr bool value = true;
};

// The running softmax of the two rows a thread has numbers of (row and row + 8 of its warp's 16).
struct Softmax {
    float max[2] = {-INFINITY, -INFINITY};
    // Over this thread's columns only.
    float sum[2] = {0.f, 0.f};

    // Turns scores into weights exp2(scale_log2 (s - max)) and returns the factors for what was summed before.
    __device__ __forceinline__ float2 update(float (&s)[64], float scale_log2) {
        float factor[2], largest[4] = {max[0], max[1], max[0], max[1]}, sums[4] = {};
#pragma unroll
        for (int i = 0; i < 64; i++) largest[i / 2 % 4] = fmaxf(largest[i / 2 % 4], s[i]);
#pragma unroll
        for (int row = 0; row < 2; row++) {
            float top = fmaxf(largest[row], largest[row + 2]);
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            factor[row] = exp2_approximate((max[row] - top) * scale_log2);
            max[row] = top;
        }
        float shift[2] = {-max[0] * scale_log2, -max[1] * scale_log2};
#pragma unroll
        for (int i = 0; i < 64; i++) {
            s[i] = exp2_approximate(fmaf(s[i], scale_log2, shift[i / 2 % 2]));
            sums[i / 2 % 4] += s[i];
        }
        sum[0] = sum[0] * factor[0] + (sums[0] + sums[2]);
        sum[1] = sum[1] * factor[1] + (sums[1] + sums[3]);
        return make_float2(factor[0], factor[1]);
    }

    __device__ __forceinline__ float total(int row) const {
        float x = sum[row] + __shfl_xor_sync(~0u, sum[row], 1);
        return x + __shfl_xor_sync(~0u, x, 2);
    }
};

// Hides keys behind a row's position. `limit[row]`: the position less the first key of the tile and this thread's first column.
__device__ __forceinline__ void hide(float (&s)[64], const int (&limit)[2]) {
#pragma unroll
    for (int i = 0; i < 64; i++)
        if (i / 4 * 8 + i % 2 > limit[i / 2 % 2]) s[i] = -INFINITY;
}

// In four lanes: lane t ends with v[j] of lane j's v[t].
__device__ __forceinline__ void transpose_quad(uint32_t (&v)[4]) {
    bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        uint32_t other = __shfl_xor_sync(~0u, odd ? v[i] : v[i + 1], 1);
        (odd ? v[i] : v[i + 1]) = other;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t other = __shfl_xor_sync(~0u, upper ? v[i] : v[i + 2], 2);
        (upper ? v[i] : v[i + 2]) = other;
    }
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
    bf16x2 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

// Issues scores = Q Kᵀ.
template <int HD>
__device__ __forceinline__ void issue_scores(float (&s)[64], uint64_t q, uint64_t k) {
    wgmma_fence();
    multiply_transposed<false>(s, q, k);
#pragma unroll
    for (int i = 1; i < HD / 16; i++) {
        // 16 columns are 32 bytes of a row; the next 64 columns are in the next half.
        uint64_t step = (i / 4 * HALF_BYTES + i % 4 * 32) >> 4;
        multiply_transposed<true>(s, q + step, k + step);
    }
    wgmma_commit();
}

// Issues sums += weights V.
template <int HD>
__device__ __forceinline__ void issue_sums(float (&o)[HD / 2], uint32_t (&weights)[32], uint64_t v) {
    pin(o);
    pin(weights);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < TILE_KEYS / 16; i++) multiply(o, weights + 4 * i, v + (i * 16 * 128 >> 4));
    wgmma_commit();
}

template <int HD>
__device__ __forceinline__ void store_rows(const Arguments &a, const Tile &tile, int kv_head, int first, const Softmax &softmax,
                                           const float (&o)[HD / 2]) {
    int lane = threadIdx.x % 32, group = a.num_heads / a.num_kv_heads;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + 8 * half, token = row / group, head = kv_head * group + row % group;
        float total = softmax.total(half), inverse = 1.f / total;
        bool writes = token < tile.num_rows;
        size_t at = (size_t)(tile.first_row + token) * a.num_heads + head;
        if (writes && a.lse && lane % 4 == 0) a.lse[at] = softmax.max[half] * a.scale + logf(total);
#pragma unroll
        for (int i = 0; i < HD / 32; i++) {
            uint32_t v[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int from = 4 * (4 * i + j) + 2 * half;
                v[j] = pack(o[from] * inverse, o[from + 1] * inverse);
            }
            transpose_quad(v);
            if (writes) *(uint4 *)(a.out + at * HD + (4 * i + lane % 4) * 8) = make_uint4(v[0], v[1], v[2], v[3]);
        }
    }
}

template <int HD>
__device__ __forceinline__ void compute_tiles(const Arguments &a, const Shared<HD> &shared) {
    int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1, lane = threadIdx.x % 32, group = a.num_heads / a.num_kv_heads;
    // This thread's first row of the tile, and of its 16 columns the first.
    int first = warpgroup * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4, first_column = lane % 4 * 2;
    float scale_log2 = a.scale * 1.4426950408889634f;
    uint64_t q = descriptor(shared.q() + warpgroup * 64 * 128);
    Ring k_ring, v_ring;
    uint32_t q_phase = 0;
    if (warpgroup == 1) turn_pass(1);
    for (int round = 0;; round++) {
        int item = item_of_round(round);
        if (item >= a.num_items) break;
        Tile tile = a.tiles[item / a.num_kv_heads];
        const uint32_t *positions = a.positions + tile.first_row;
        int last_token = tile.num_rows - 1;
        int position[2] = {(int)positions[min(first / group, last_token)], (int)positions[min((first + 8) / group, last_token)]};
        // Key tiles before this one are visible to all rows of the warpgroup.
        int num_visible = (positions[min(warpgroup * 64 / group, last_token)] + 1) / TILE_KEYS;
        int num_key_tiles = (tile.kv_len + TILE_KEYS - 1) / TILE_KEYS;
        float s[64], o[HD / 2];
        uint32_t weights[32];
        Softmax softmax;
        auto hide_future = [&](int i) {
            int shift = i * TILE_KEYS + first_column, limit[2] = {position[0] - shift, position[1] - shift};
            hide(s, limit);
        };
        auto pack_weights = [&] {
#pragma unroll
            for (int i = 0; i < 32; i++) weights[i] = pack(s[2 * i], s[2 * i + 1]);
        };
        auto release = [&](uint32_t empty) {
            if (lane == 0) barrier_arrive(empty);
        };

        barrier_wait(shared.q_full(), q_phase);
        q_phase ^= 1;
        barrier_wait(shared.k_full(k_ring.stage), k_ring.phase);
        issue_scores<HD>(s, q, descriptor(shared.k(k_ring.stage)));
        wgmma_wait<0>();
        pin(s);
        release(shared.k_empty(k_ring.stage));
        k_ring.advance();
        if (num_visible == 0) hide_future(0);
        softmax.update(s, scale_log2);
        pack_weights();
#pragma unroll
        for (int i = 0; i < HD / 2; i++) o[i] = 0.f;

        // While the scores of tile i become weights, the sums of tile i - 1 are multiplied.
        auto step = [&](int i, auto masked) {
            barrier_wait(shared.k_full(k_ring.stage), k_ring.phase);
            turn_wait(warpgroup);
            issue_scores<HD>(s, q, descriptor(shared.k(k_ring.stage)));
            barrier_wait(shared.v_full(v_ring.stage), v_ring.phase);
            issue_sums<HD>(o, weights, descriptor(shared.v(v_ring.stage)));
            turn_pass(warpgroup);
            wgmma_wait<1>();
            pin(s);
            release(shared.k_empty(k_ring.stage));
            k_ring.advance();
            if (decltype(masked)::value) hide_future(i);
            float2 factor = softmax.update(s, scale_log2);
            pin(s);
            if (softmax.sum[0] + softmax.sum[1] < 0.f) __nanosleep(0);
            wgmma_wait<0>();
            pin(o);
            release(shared.v_empty(v_ring.stage));
            v_ring.advance();
            pack_weights();
#pragma unroll
            for (int j = 0; j < HD / 2; j++) o[j] *= j / 2 % 2 ? factor.y : factor.x;
        };
        int i = 1;
        for (; i < num_visible; i++) step(i, False());
        for (; i < num_key_tiles; i++) step(i, True());
        release(shared.q_empty());
        barrier_wait(shared.v_full(v_ring.stage), v_ring.phase);
        issue_sums<HD>(o, weights, descriptor(shared.v(v_ring.stage)));
        wgmma_wait<0>();
        pin(o);
        release(shared.v_empty(v_ring.stage));
        v_ring.advance();
        store_rows<HD>(a, tile, item % a.num_kv_heads, first, softmax, o);
    }
    // Takes the turn that the other warpgroup passed last.
    if (warpgroup == 0) turn_wait(0);
}

template <int HD>
__device__ __forceinline__ void attend(const Arguments &a, const TensorMap *q_map, const TensorMap *k_map, const TensorMap *v_map) {
    extern __shared__ unsigned char bytes[];
    Shared<HD> shared{(shared_address(bytes) + 1023) & ~1023u};
    if (threadIdx.x == 0) {
        constexpr uint32_t COMPUTING_WARPS = 8;
        barrier_init(shared.q_full(), 1);
        barrier_init(shared.q_empty(), COMPUTING_WARPS);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(shared.k_full(i), 1);
            barrier_init(shared.k_empty(i), COMPUTING_WARPS);
            barrier_init(shared.v_full(i), 1);
            barrier_init(shared.v_empty(i), COMPUTING_WARPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 32) load_tiles<HD>(a, q_map, k_map, v_map, shared);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        compute_tiles<HD>(a, shared);
    }
}

#else

template <int HD>
__device__ __forceinline__ void attend(const Arguments &, const TensorMap *, const TensorMap *, const TensorMap *) {
    __trap();
}

#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_hopper_64(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                        const __grid_constant__ Arguments a) {
    attend<64>(a, &q, &k, &v);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_hopper_128(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                         const __grid_constant__ Arguments a) {
    attend<128>(a, &q, &k, &v);
}
