// Attention that positions of one sequence receive from contiguous rows of it, on Hopper; computes the same partial sums as received.cu.
//
// A work item is 128 keys of one head and one share of the query rows that see any of them. The keys stay in shared memory; query rows,
// (row, head of the group) packed, are streamed by the copy engine. Warpgroup 0 loads; warpgroups 1 and 2 have 64 keys each, multiply them
// with the rows and add up exp(scale q k - lse). They wait only for their rows, so that one multiplies while the other computes
// exponentials. Sums are always added in the same order.
#include "hopper.cuh"
#include "paged.cuh"

constexpr int THREADS = 384;

// As cuda::received_hopper::Arguments. Positions and lse start at the first row of the run.
struct Arguments {
    const uint32_t *positions, *table;
    const float *lse;
    float *partial;
    Sizes sizes;
    int first_row, num_rows, len, num_shares;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int TILE_KEYS = 128;
constexpr int TILE_ROWS = 160;
constexpr int STAGES = 3;
// A tile in shared memory consists of halves of 64 columns, rows of 128 bytes.
constexpr uint32_t KEY_HALF_BYTES = TILE_KEYS * 128;
constexpr uint32_t ROW_HALF_BYTES = TILE_ROWS * 128;
constexpr uint32_t BOX_BYTES = BLOCK * 128;
constexpr int COMPUTING_WARPS = 8;

// Shared memory: keys, then the stages of query rows, then barriers.
template <int HD>
struct Shared {
    static constexpr uint32_t KEY_BYTES = HD / 64 * KEY_HALF_BYTES;
    static constexpr uint32_t STAGE_BYTES = HD / 64 * ROW_HALF_BYTES;
    uint32_t base;

    __device__ uint32_t keys() const { return base; }
    __device__ uint32_t rows(uint32_t stage) const { return base + KEY_BYTES + stage * STAGE_BYTES; }
    __device__ uint32_t barrier(uint32_t i) const { return base + KEY_BYTES + STAGES * STAGE_BYTES + i * 8; }
    __device__ uint32_t keys_full() const { return barrier(0); }
    __device__ uint32_t keys_empty() const { return barrier(1); }
    __device__ uint32_t rows_full(uint32_t stage) const { return barrier(2 + stage); }
    __device__ uint32_t rows_empty(uint32_t stage) const { return barrier(2 + STAGES + stage); }
};

// Keys from `first_key` on, of one head; rows `begin .. end` of the run.
struct Item {
    int first_key, kv_head, share, begin, end;
};

// Returns false if there is no item. The first keys are seen by the most rows; every other round runs backwards, so that no block gets the
// largest item of every round.
__device__ __forceinline__ bool find_item(const Arguments &a, int tile_tokens, int round, Item &item) {
    int index = round * gridDim.x + (round & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x), num_kv_heads = a.sizes.num_kv_heads;
    int num_key_tiles = (a.len + TILE_KEYS - 1) / TILE_KEYS;
    if (index >= num_key_tiles * num_kv_heads * a.num_shares) return false;
    item.share = index % a.num_shares;
    index /= a.num_shares;
    item.kv_head = index % num_kv_heads;
    item.first_key = index / num_kv_heads * TILE_KEYS;
    // Rows before this one see none of the keys.
    int low = 0, high = a.num_rows;
    while (low < high) {
        int middle = (low + high) / 2;
        if ((int)a.positions[middle] < item.first_key) low = middle + 1;
        else high = middle;
    }
    int num_tiles = (a.num_rows - low + tile_tokens - 1) / tile_tokens, share = (num_tiles + a.num_shares - 1) / a.num_shares * tile_tokens;
    item.begin = min(low + item.share * share, a.num_rows);
    item.end = min(item.begin + share, a.num_rows);
    return true;
}

template <int HD>
__device__ __forceinline__ void load_items(const Arguments &a, const TensorMap *q_map, const TensorMap *k_map, const Shared<HD> &shared) {
    constexpr int HALVES = HD / 64, BLOCKS = TILE_KEYS / BLOCK;
    const Sizes &sizes = a.sizes;
    int lane = threadIdx.x % 32, group = sizes.num_heads / sizes.num_kv_heads, tile_tokens = TILE_ROWS / group;
    uint32_t row_bytes = HALVES * tile_tokens * group * 128, keys_phase = 0;
    int last_block = (a.len - 1) / BLOCK;
    Ring<STAGES> ring;
    Item item;
    for (int round = 0; find_item(a, tile_tokens, round, item); round++) {
        if (item.begin >= item.end) continue;
        barrier_wait(shared.keys_empty(), keys_phase ^ 1);
        keys_phase ^= 1;
        if (lane == 0) barrier_expect(shared.keys_full(), Shared<HD>::KEY_BYTES);
        __syncwarp();
        // Each lane copies one box: a block of the tile, one half of the columns. Past the last block, the last block is read again.
        if (lane < HALVES * BLOCKS) {
            uint32_t block = a.table[min(item.first_key / BLOCK + lane % BLOCKS, last_block)];
            int row = (((uint32_t)sizes.layer * sizes.num_blocks + block) * sizes.num_kv_heads + item.kv_head) * BLOCK;
            uint32_t to = shared.keys() + lane / BLOCKS * KEY_HALF_BYTES + lane % BLOCKS * BOX_BYTES;
            load_box(to, k_map, shared.keys_full(), lane / BLOCKS * 64, row);
        }
        for (int token = item.begin; token < item.end; token += tile_tokens) {
            barrier_wait(shared.rows_empty(ring.stage), ring.phase ^ 1);
            if (lane == 0) {
                barrier_expect(shared.rows_full(ring.stage), row_bytes);
                for (int half = 0; half < HALVES; half++)
                    load_box(shared.rows(ring.stage) + half * ROW_HALF_BYTES, q_map, shared.rows_full(ring.stage), half * 64,
                             item.kv_head * group, a.first_row + token);
            }
            __syncwarp();
            ring.advance();
        }
    }
}

// Returns the lse (in powers of two) and the position of packed row `i` of a tile; rows outside the share get weight zero.
__device__ __forceinline__ float2 seen_of(const Arguments &a, const Item &item, int group, int token, int i) {
    int row = token + i / group;
    if (i >= TILE_ROWS / group * group || row >= item.end) return make_float2(INFINITY, __int_as_float(-1));
    float lse = a.lse[(size_t)row * a.sizes.num_heads + item.kv_head * group + i % group];
    return make_float2(lse * LOG2_E, __int_as_float(a.positions[row]));
}

// Adds the weights of a tile to the sums of this thread's two keys.
template <bool MASKED>
__device__ __forceinline__ void add_weights(const float (&scores)[TILE_ROWS / 2], const float2 *seen, float scale, const int (&key)[2],
                                            float (&sums)[2]) {
    int column = threadIdx.x % 4 * 2;
    float parts[4] = {};
#pragma unroll
    for (int i = 0; i < TILE_ROWS / 2; i += 4) {
        float4 two = *(const float4 *)(seen + i / 4 * 8 + column);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float weight = power_of_two(fmaf(scores[i + j], scale, -(j % 2 ? two.z : two.x)));
            bool sees = !MASKED || key[j / 2] <= __float_as_int(j % 2 ? two.w : two.y);
            parts[j] += sees ? weight : 0.f;
        }
    }
    sums[0] += parts[0] + parts[1];
    sums[1] += parts[2] + parts[3];
}

template <int HD>
__device__ __forceinline__ void compute_items(const Arguments &a, const Shared<HD> &shared, float2 (*all_seen)[2][TILE_ROWS]) {
    const Sizes &sizes = a.sizes;
    int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1, thread = threadIdx.x % 128, lane = threadIdx.x % 32;
    int group = sizes.num_heads / sizes.num_kv_heads, tile_tokens = TILE_ROWS / group;
    float2(*seen)[TILE_ROWS] = all_seen[warpgroup];
    float scale = sizes.scale * LOG2_E, scores[TILE_ROWS / 2];
    uint32_t keys_phase = 0;
    Ring<STAGES> ring;
    Item item;
    for (int round = 0; find_item(a, tile_tokens, round, item); round++) {
        int last_key = item.first_key + warpgroup * 64 + 63;
        int key[2];
        key[0] = item.first_key + warpgroup * 64 + thread / 32 * 16 + lane / 4, key[1] = key[0] + 8;
        float sums[2] = {};
        if (item.begin < item.end) {
            barrier_wait(shared.keys_full(), keys_phase);
            keys_phase ^= 1;
            float2 next[2] = {seen_of(a, item, group, item.begin, thread), seen_of(a, item, group, item.begin, thread + 128)};
            int parity = 0;
            for (int token = item.begin; token < item.end; token += tile_tokens, parity ^= 1) {
                seen[parity][thread] = next[0];
                if (thread + 128 < TILE_ROWS) seen[parity][thread + 128] = next[1];
                // A warp that passes this barrier has read what is overwritten next.
                asm volatile("barrier.cta.sync.aligned %0, 128;" ::"r"(1 + warpgroup) : "memory");
                barrier_wait(shared.rows_full(ring.stage), ring.phase);
                uint64_t k = matrix_descriptor(shared.keys() + warpgroup * 64 * 128, 0), q = matrix_descriptor(shared.rows(ring.stage), 0);
                wgmma_fence();
                multiply_transposed<false>(scores, k, q);
#pragma unroll
                for (int i = 1; i < HD / 16; i++)
                    multiply_transposed<true>(scores, k + ((i / 4 * KEY_HALF_BYTES + i % 4 * 32) >> 4),
                                              q + ((i / 4 * ROW_HALF_BYTES + i % 4 * 32) >> 4));
                wgmma_commit();
                next[0] = seen_of(a, item, group, token + tile_tokens, thread);
                next[1] = seen_of(a, item, group, token + tile_tokens, thread + 128);
                bool is_visible = __float_as_int(seen[parity][0].y) >= last_key;
                wgmma_wait<0>();
                pin(scores);
                if (lane == 0) barrier_arrive(shared.rows_empty(ring.stage));
                ring.advance();
                if (is_visible) add_weights<false>(scores, seen[parity], scale, key, sums);
                else add_weights<true>(scores, seen[parity], scale, key, sums);
            }
            if (lane == 0) barrier_arrive(shared.keys_empty());
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sums[i] += __shfl_xor_sync(~0u, sums[i], 1);
            sums[i] += __shfl_xor_sync(~0u, sums[i], 2);
            if (lane % 4 == 0 && key[i] < a.len) a.partial[((size_t)item.share * sizes.num_kv_heads + item.kv_head) * a.len + key[i]] = sums[i];
        }
    }
}

// Zeroes packed rows that no copy fills: they may contain NaN.
template <int HD>
__device__ __forceinline__ void clear_rows(const Shared<HD> &shared, int group) {
    int first = TILE_ROWS / group * group, chunks = (TILE_ROWS - first) * 8;
    for (int stage = 0; stage < STAGES; stage++)
        for (int half = 0; half < HD / 64; half++)
            for (int i = threadIdx.x; i < chunks; i += THREADS)
                asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(shared.rows(stage) + half * ROW_HALF_BYTES + first * 128 + i * 16),
                             "r"(0) : "memory");
}

template <int HD>
__device__ __forceinline__ void receive(const Arguments &a, const TensorMap *q_map, const TensorMap *k_map) {
    extern __shared__ unsigned char bytes[];
    __shared__ __align__(16) float2 seen[2][2][TILE_ROWS];
    Shared<HD> shared{(shared_address(bytes) + 1023) & ~1023u};
    clear_rows<HD>(shared, a.sizes.num_heads / a.sizes.num_kv_heads);
    if (threadIdx.x == 0) {
        barrier_init(shared.keys_full(), 1);
        barrier_init(shared.keys_empty(), COMPUTING_WARPS);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(shared.rows_full(i), 1);
            barrier_init(shared.rows_empty(i), COMPUTING_WARPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    fence_stores();
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x < 32) load_items<HD>(a, q_map, k_map, shared);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        compute_items<HD>(a, shared, seen);
    }
}

#else

template <int HD>
__device__ __forceinline__ void receive(const Arguments &, const TensorMap *, const TensorMap *) {
    __trap();
}

#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    receive_hopper_64(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ Arguments a) {
    receive<64>(a, &q, &k);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    receive_hopper_128(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ Arguments a) {
    receive<128>(a, &q, &k);
}
