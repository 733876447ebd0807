// Prefill attention on Hopper: keys and values are loaded by TMA, products computed by warpgroups.
//
// A work item is a tile of tokens, one key head, and one split of the keys. Its rows are (token, head of the group), so that heads that
// share a key head share one pass over the keys: 18 tokens of 7 heads each in 128 rows, for example. Warpgroup 0 loads; warpgroups 1 and 2
// compute 64 rows each and take turns: while one multiplies, the other computes exponentials (Shah et al. 2024, FlashAttention-3, sec.
// 3.1). Masking depends on position alone. Keys are processed in ascending order, and those that a row does not see change no bit of it.
#include "hopper.cuh"
#include "paged.cuh"

constexpr int THREADS = 384;

// As cuda::attention_hopper::Arguments. Either `out` (and `lse` unless null), or `lse` alone, or the partial results of `num_splits`
// splits.
struct Arguments {
    const uint32_t *positions;
    const Tile *tiles;
    const uint32_t *block_tables;
    bf16 *out;
    float *lse, *partial_sums;
    float2 *partial_stats;
    Sizes sizes;
    int num_tiles, num_splits;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int TILE_ROWS = 128;
// More keys per tile mean fewer waits; 160 leave room for two buffers and all registers.
constexpr int TILE_KEYS = 160;
constexpr int STAGES = 2;
// A tile in shared memory consists of halves of 64 columns, rows of 128 bytes.
constexpr uint32_t Q_HALF_BYTES = TILE_ROWS * 128;
constexpr uint32_t KV_HALF_BYTES = TILE_KEYS * 128;
constexpr uint32_t BOX_BYTES = BLOCK * 128;

// Turns of the two computing warpgroups.
__device__ __forceinline__ void turn_wait(int warpgroup) { asm volatile("barrier.cta.sync.aligned %0, 256;" ::"r"(1 + warpgroup) : "memory"); }

__device__ __forceinline__ void turn_pass(int warpgroup) { asm volatile("barrier.cta.arrive.aligned %0, 256;" ::"r"(2 - warpgroup) : "memory"); }

// Shared memory: Q, then the stages of K, then those of V, then barriers.
template <int HD>
struct Shared {
    static constexpr uint32_t Q_BYTES = HD / 64 * Q_HALF_BYTES;
    static constexpr uint32_t TILE_BYTES = HD / 64 * KV_HALF_BYTES;
    uint32_t base;

    __device__ uint32_t q() const { return base; }
    __device__ uint32_t k(uint32_t stage) const { return base + Q_BYTES + stage * TILE_BYTES; }
    __device__ uint32_t v(uint32_t stage) const { return base + Q_BYTES + (STAGES + stage) * TILE_BYTES; }
    __device__ uint32_t barrier(uint32_t i) const { return base + Q_BYTES + 2 * STAGES * TILE_BYTES + i * 8; }
    __device__ uint32_t q_full() const { return barrier(0); }
    __device__ uint32_t q_empty() const { return barrier(1); }
    __device__ uint32_t k_full(uint32_t stage) const { return barrier(2 + stage); }
    __device__ uint32_t k_empty(uint32_t stage) const { return barrier(2 + STAGES + stage); }
    __device__ uint32_t v_full(uint32_t stage) const { return barrier(2 + 2 * STAGES + stage); }
    __device__ uint32_t v_empty(uint32_t stage) const { return barrier(2 + 3 * STAGES + stage); }
};

// Work of a thread block in one round: key tiles `begin .. end` of a tile and a key head.
struct Item {
    Tile tile;
    int tile_index, kv_head, split, begin, end;
};

// Returns false if there is no item. Tiles are sorted, largest first. Every other round runs backwards, so that no block gets the largest
// of every round.
__device__ __forceinline__ bool find_item(const Arguments &a, int round, Item &item) {
    int index = round * gridDim.x + (round & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x), num_kv_heads = a.sizes.num_kv_heads;
    if (index >= a.num_tiles * num_kv_heads * a.num_splits) return false;
    item.split = index % a.num_splits;
    index /= a.num_splits;
    item.kv_head = index % num_kv_heads;
    item.tile_index = index / num_kv_heads;
    item.tile = a.tiles[item.tile_index];
    int num_key_tiles = (item.tile.kv_len + TILE_KEYS - 1) / TILE_KEYS;
    int share = (num_key_tiles + a.num_splits - 1) / a.num_splits;
    item.begin = item.split * share;
    item.end = min(item.begin + share, num_key_tiles);
    return true;
}

// SUMS: true if values are read; otherwise only the log-sum-exp of the rows is computed.
template <int HD, bool SUMS>
__device__ __forceinline__ void load_items(const Arguments &a, const TensorMap *q_map, const TensorMap *k_map, const TensorMap *v_map,
                                           const Shared<HD> &shared) {
    constexpr int HALVES = HD / 64, BLOCKS = TILE_KEYS / BLOCK;
    const Sizes &sizes = a.sizes;
    int lane = threadIdx.x % 32, group = sizes.num_heads / sizes.num_kv_heads;
    // Each lane copies one box: block `lane % BLOCKS` of the tile, one half of the columns.
    bool copies = lane < HALVES * BLOCKS;
    uint32_t offset = lane / BLOCKS * KV_HALF_BYTES + lane % BLOCKS * BOX_BYTES;
    int column = lane / BLOCKS * 64;
    uint32_t q_bytes = HALVES * (TILE_ROWS / group * group) * 128, q_phase = 0;
    Ring<STAGES> k_ring, v_ring;
    Item item;
    for (int round = 0; find_item(a, round, item); round++) {
        if (item.begin >= item.end) continue;
        const uint32_t *table = a.block_tables + (size_t)item.tile.table * sizes.max_blocks;
        uint32_t last_block = (item.tile.kv_len - 1) / BLOCK;
        // Past the last block, the last block is read again; the mask hides it.
        auto pool_row = [&](int i) {
            uint32_t block = table[min((uint32_t)(i * BLOCKS + lane % BLOCKS), last_block)];
            return (int)((((uint32_t)sizes.layer * sizes.num_blocks + block) * sizes.num_kv_heads + item.kv_head) * BLOCK);
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
        int row = pool_row(item.begin);
        barrier_wait(shared.q_empty(), q_phase ^ 1);
        if (lane == 0) {
            barrier_expect(shared.q_full(), q_bytes);
            for (int half = 0; half < HALVES; half++)
                load_box(shared.q() + half * Q_HALF_BYTES, q_map, shared.q_full(), half * 64, item.kv_head * group, item.tile.first_row);
        }
        __syncwarp();
        q_phase ^= 1;
        copy_k(row);
        for (int i = item.begin + 1; i < item.end; i++) {
            int next = pool_row(i);
            copy_k(next);
            if (SUMS) copy_v(row);
            row = next;
        }
        if (SUMS) copy_v(row);
    }
}

// Running softmax of the two rows that a thread holds elements of (row and row + 8 of its warp's 16).
struct Softmax {
    float max[2] = {-INFINITY, -INFINITY};
    // Sum over this thread's columns only.
    float sum[2] = {0.f, 0.f};

    // Turns scores into weights exp2(scale_log2 (s - max)) and returns the factors for the earlier sums.
    __device__ __forceinline__ float2 update(float (&s)[TILE_KEYS / 2], float scale_log2) {
        float factor[2], shift[2], largest[4] = {max[0], max[1], max[0], max[1]}, sums[4] = {};
#pragma unroll
        for (int i = 0; i < TILE_KEYS / 2; i++) largest[i / 2 % 4] = fmaxf(largest[i / 2 % 4], s[i]);
#pragma unroll
        for (int row = 0; row < 2; row++) {
            float top = fmaxf(largest[row], largest[row + 2]);
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            // A row that has not seen a key has no maximum.
            float origin = top == -INFINITY ? 0.f : top;
            factor[row] = power_of_two((max[row] - origin) * scale_log2);
            max[row] = top;
            shift[row] = -origin * scale_log2;
        }
#pragma unroll
        for (int i = 0; i < TILE_KEYS / 2; i++) {
            s[i] = power_of_two(fmaf(s[i], scale_log2, shift[i / 2 % 2]));
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

// Masks keys after a row's position. `limit[row]`: the position minus the first key of the tile and this thread's first column.
__device__ __forceinline__ void hide(float (&s)[TILE_KEYS / 2], const int (&limit)[2]) {
#pragma unroll
    for (int i = 0; i < TILE_KEYS / 2; i++)
        if (i / 4 * 8 + i % 2 > limit[i / 2 % 2]) s[i] = -INFINITY;
}

// Transposes over four lanes: lane t ends with v[j] of lane j's v[t].
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

// Zeroes values after the last key of a tile: their weights are zero, but the block may contain infinity or NaN there.
template <int HD>
__device__ __forceinline__ void clear_values(uint32_t v, int num_keys, int warpgroup) {
    int chunks = (TILE_KEYS - num_keys) * 8;
    if (chunks <= 0) return;
    for (int half = 0; half < HD / 64; half++)
        for (int i = threadIdx.x % 128; i < chunks; i += 128)
            asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(v + half * KV_HALF_BYTES + num_keys * 128 + i * 16), "r"(0)
                         : "memory");
    fence_stores();
    asm volatile("barrier.cta.sync.aligned %0, 128;" ::"r"(3 + warpgroup) : "memory");
}

// Writes two rows of a thread, or their partial results.
template <int HD, bool SUMS>
__device__ __forceinline__ void store_rows(const Arguments &a, const Item &item, int first, const Softmax &softmax,
                                           const float (&o)[HD / 2]) {
    const Sizes &sizes = a.sizes;
    int lane = threadIdx.x % 32, group = sizes.num_heads / sizes.num_kv_heads;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + 8 * half, token = row / group, head = item.kv_head * group + row % group;
        float total = softmax.total(half), inverse = 1.f / total;
        bool writes = token < item.tile.num_rows;
        if (a.num_splits > 1) {
            size_t at = (((size_t)item.tile_index * (TILE_ROWS / group) + token) * sizes.num_heads + head) * a.num_splits + item.split;
            if (writes && lane % 4 == 0) a.partial_stats[at] = make_float2(softmax.max[half] * sizes.scale * LOG2_E, total);
            if (!writes || total == 0.f) continue;
#pragma unroll
            for (int i = 0; i < HD / 8; i++)
                *(float2 *)(a.partial_sums + at * HD + i * 8 + lane % 4 * 2) = make_float2(o[4 * i + 2 * half], o[4 * i + 2 * half + 1]);
            continue;
        }
        size_t at = (size_t)(item.tile.first_row + token) * sizes.num_heads + head;
        if (writes && a.lse && lane % 4 == 0) a.lse[at] = softmax.max[half] * sizes.scale + logf(total);
#pragma unroll
        for (int i = 0; SUMS && i < HD / 32; i++) {
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

// State of one thread of a computing warpgroup.
template <int HD, bool SUMS>
struct Computer {
    const Arguments &a;
    const Shared<HD> shared;
    const int warpgroup, lane;
    // Row of the tile; the thread's other row is first + 8.
    const int first;
    Ring<STAGES> k_ring, v_ring;
    uint32_t q_phase;
    // Last key that each row sees.
    int position[2];
    // Number of leading key tiles that are visible to all rows of the warpgroup.
    int num_visible;
    Softmax softmax;
    float scores[TILE_KEYS / 2], sums[HD / 2];
    uint32_t weights[TILE_KEYS / 4];

    __device__ __forceinline__ Computer(const Arguments &a, const Shared<HD> &shared, int warpgroup, int lane)
        : a(a), shared(shared), warpgroup(warpgroup), lane(lane), first(warpgroup * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4), q_phase(0) {}

    __device__ __forceinline__ void begin_item(const Tile &tile) {
        const uint32_t *positions = a.positions + tile.first_row;
        int group = a.sizes.num_heads / a.sizes.num_kv_heads, last_token = tile.num_rows - 1;
        position[0] = positions[min(first / group, last_token)];
        position[1] = positions[min((first + 8) / group, last_token)];
        num_visible = (positions[min(warpgroup * 64 / group, last_token)] + 1) / TILE_KEYS;
        softmax = Softmax();
#pragma unroll
        for (int i = 0; i < HD / 2; i++) sums[i] = 0.f;
    }

    __device__ __forceinline__ void release(uint32_t empty) const {
        if (lane == 0) barrier_arrive(empty);
    }

    __device__ __forceinline__ void issue_scores() {
        // 16 columns are 32 bytes of a row; the next 64 columns are in the next half.
        uint64_t q = matrix_descriptor(shared.q() + warpgroup * 64 * 128, 0), k = matrix_descriptor(shared.k(k_ring.stage), 0);
        wgmma_fence();
        multiply_transposed<false>(scores, q, k);
#pragma unroll
        for (int i = 1; i < HD / 16; i++)
            multiply_transposed<true>(scores, q + ((i / 4 * Q_HALF_BYTES + i % 4 * 32) >> 4), k + ((i / 4 * KV_HALF_BYTES + i % 4 * 32) >> 4));
        wgmma_commit();
    }

    __device__ __forceinline__ void issue_sums() {
        uint64_t v = matrix_descriptor(shared.v(v_ring.stage), KV_HALF_BYTES);
        pin(sums);
        pin(weights);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < TILE_KEYS / 16; i++) multiply(sums, weights + 4 * i, v + (i * 16 * 128 >> 4));
        wgmma_commit();
    }

    // Masks key tile `i`, and turns its scores into weights, not yet packed. Returns the factors for earlier sums.
    template <bool MASKED>
    __device__ __forceinline__ float2 soften(int i) {
        pin(scores);
        release(shared.k_empty(k_ring.stage));
        k_ring.advance();
        if (MASKED) {
            int shift = i * TILE_KEYS + lane % 4 * 2, limit[2] = {position[0] - shift, position[1] - shift};
            hide(scores, limit);
        }
        return softmax.update(scores, a.sizes.scale * LOG2_E);
    }

    __device__ __forceinline__ void pack_weights() {
#pragma unroll
        for (int i = 0; i < TILE_KEYS / 4; i++) weights[i] = pack(scores[2 * i], scores[2 * i + 1]);
    }

    __device__ __forceinline__ void end_sums() {
        wgmma_wait<0>();
        pin(sums);
        release(shared.v_empty(v_ring.stage));
        v_ring.advance();
    }

    // Multiplies the sums of tile `i - 1` while the scores of tile `i` become weights.
    template <bool MASKED>
    __device__ __forceinline__ void step(int i) {
        barrier_wait(shared.k_full(k_ring.stage), k_ring.phase);
        turn_wait(warpgroup);
        issue_scores();
        if (SUMS) {
            barrier_wait(shared.v_full(v_ring.stage), v_ring.phase);
            issue_sums();
        }
        // The other warpgroup's products queue after these sums: passing the turn before the scores are ready was slower at 64 columns.
        wgmma_wait<SUMS>();
        turn_pass(warpgroup);
        float2 factor = soften<MASKED>(i);
        if (!SUMS) return;
        end_sums();
        pack_weights();
#pragma unroll
        for (int j = 0; j < HD / 2; j++) sums[j] *= j / 2 % 2 ? factor.y : factor.x;
    }

    __device__ __forceinline__ void compute(const Item &item) {
        barrier_wait(shared.q_full(), q_phase);
        q_phase ^= 1;
        barrier_wait(shared.k_full(k_ring.stage), k_ring.phase);
        issue_scores();
        wgmma_wait<0>();
        soften<true>(item.begin);
        pack_weights();
        int i = item.begin + 1;
        for (; i < min(num_visible, item.end); i++) step<false>(i);
        for (; i < item.end; i++) step<true>(i);
        release(shared.q_empty());
        if (!SUMS) return;
        barrier_wait(shared.v_full(v_ring.stage), v_ring.phase);
        clear_values<HD>(shared.v(v_ring.stage), item.tile.kv_len - (item.end - 1) * TILE_KEYS, warpgroup);
        issue_sums();
        end_sums();
    }
};

template <int HD, bool SUMS>
__device__ __forceinline__ void compute_items(const Arguments &a, const Shared<HD> &shared) {
    int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1;
    Computer<HD, SUMS> computer(a, shared, warpgroup, threadIdx.x % 32);
    if (warpgroup == 1) turn_pass(1);
    Item item;
    for (int round = 0; find_item(a, round, item); round++) {
        computer.begin_item(item.tile);
        if (item.begin < item.end) computer.compute(item);
        store_rows<HD, SUMS>(a, item, computer.first, computer.softmax, computer.sums);
    }
    // Takes the turn that the other warpgroup passed last.
    if (warpgroup == 0) turn_wait(0);
}

template <int HD, bool SUMS>
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
        fence_stores();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x < 32) load_items<HD, SUMS>(a, q_map, k_map, v_map, shared);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        compute_items<HD, SUMS>(a, shared);
    }
}

#else

template <int HD, bool SUMS>
__device__ __forceinline__ void attend(const Arguments &, const TensorMap *, const TensorMap *, const TensorMap *) {
    __trap();
}

#endif

#define ATTEND(NAME, HD, SUMS)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                                         \
        NAME(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,          \
             const __grid_constant__ Arguments a) {                                                                                  \
        attend<HD, SUMS>(a, &q, &k, &v);                                                                                             \
    }
ATTEND(attention_hopper_64, 64, true)
ATTEND(attention_hopper_128, 128, true)
ATTEND(log_sums_hopper_64, 64, false)
ATTEND(log_sums_hopper_128, 128, false)
