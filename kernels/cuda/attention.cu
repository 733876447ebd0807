// Attention over the paged pool for arbitrary query positions; counterpart of cpu::attention. FlashAttention-2 (Dao 2023, alg. 1) on
// mma.sync.
//
// A thread block computes one tile of query rows for one key head; tile row i is token i / group, head i % group of the group, so that a
// key is read once for all heads that share it. Each warp has 16 tile rows. Masking depends on position alone. Keys are processed in order,
// a tile of 64 (of 32 for heads of 256) at a time, so without splits a row's bits do not depend on the rows beside it.
//
// Grid: (tiles, num_kv_heads, splits), 128 threads. With more than one split, each processes a share of the keys, and `combine_attention`
// merges them.
#include "mma.cuh"
#include "paged.cuh"

constexpr int WARPS = 4;
template <int HEAD_DIM> constexpr int TILE_KEYS = HEAD_DIM > 128 ? 32 : 64;

struct Keys {
    const bf16 *keys, *values;
    const uint32_t *table;
    size_t layer_block;
    int num_kv_heads, kv_head;
    uint32_t kv_len;
};

// Starts copies of keys and values of key tile `index`, which is stored in `blocks`.
template <int HEAD_DIM>
__device__ __forceinline__ void fetch(const Keys &from, int index, uint2 blocks, uint32_t keys_to, uint32_t values_to) {
    constexpr int CHUNKS = HEAD_DIM / 8, KEYS = TILE_KEYS<HEAD_DIM>;
#pragma unroll
    for (int i = 0; i < KEYS * CHUNKS / (32 * WARPS); i++) {
        int at = threadIdx.x + i * 32 * WARPS, row = at / CHUNKS, chunk = at % CHUNKS;
        size_t block = from.layer_block + (row < BLOCK ? blocks.x : blocks.y);
        size_t offset = ((block * from.num_kv_heads + from.kv_head) * BLOCK + row % BLOCK) * HEAD_DIM + chunk * 8;
        bool there = index * KEYS + row < from.kv_len;
        copy_async(keys_to + swizzled<HEAD_DIM>(row, chunk), from.keys + offset, there);
        copy_async(values_to + swizzled<HEAD_DIM>(row, chunk), from.values + offset, there);
    }
}

// Returns the blocks of key tile `index`, as far as the sequence has them.
template <int HEAD_DIM> __device__ __forceinline__ uint2 blocks_of(const Keys &from, int index) {
    uint32_t last = (from.kv_len - 1) / BLOCK, first = min((uint32_t)index * (TILE_KEYS<HEAD_DIM> / BLOCK), last);
    return make_uint2(__ldg(from.table + first), __ldg(from.table + min(first + 1, last)));
}

// Rows g and g + 8 of a warp's 16: their running sums, weighted by 2^(score - max).
template <int HEAD_DIM> struct Rows {
    float sums[HEAD_DIM / 8][4];
    float max[2], total[2];
};

// Processes a tile of keys: turns `scores` into weights, as the A fragments of the product with the values.
template <int HEAD_DIM, int KEYS = TILE_KEYS<HEAD_DIM>>
__device__ __forceinline__ void soften(Rows<HEAD_DIM> &rows, float (&scores)[KEYS / 8][4], uint32_t (&weights)[KEYS / 16][4], float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float largest = -INFINITY;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        float max = fmaxf(rows.max[half], largest * scale);
        // A row that has not seen a key keeps sums of zero.
        float shift = max == -INFINITY ? 0.f : max;
        float correction = power_of_two(rows.max[half] - shift), total = 0.f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            float low = power_of_two(fmaf(scores[n][2 * half], scale, -shift));
            float high = power_of_two(fmaf(scores[n][2 * half + 1], scale, -shift));
            total += low + high;
            weights[n / 2][n % 2 * 2 + half] = pack(low, high);
        }
        rows.max[half] = max;
        rows.total[half] = rows.total[half] * correction + total;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
            rows.sums[n][2 * half] *= correction;
            rows.sums[n][2 * half + 1] *= correction;
        }
    }
}

// Processes one key tile in shared memory, for a warp. If `masked`, row g + 8 half sees the tile's keys from `hidden[half]` on, below
// `visible[half]`.
template <int HEAD_DIM>
__device__ __forceinline__ void attend(Rows<HEAD_DIM> &rows, const uint32_t (&q)[HEAD_DIM / 16][4], uint32_t keys, uint32_t values, bool masked,
                                       const int (&hidden)[2], const int (&visible)[2], float scale) {
    constexpr int KEYS = TILE_KEYS<HEAD_DIM>;
    int lane = threadIdx.x % 32;
    float scores[KEYS / 8][4] = {};
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; k++) {
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t b[4];
            load_matrices(b, keys + swizzled<HEAD_DIM>(n * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
            mma(scores[2 * n], q[k], b[0], b[1]);
            mma(scores[2 * n + 1], q[k], b[2], b[3]);
        }
    }
    if (masked) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = n * 8 + lane % 4 * 2 + i % 2;
                if (key >= visible[i / 2] || key < hidden[i / 2]) scores[n][i] = -INFINITY;
            }
        }
    }
    uint32_t weights[KEYS / 16][4];
    soften<HEAD_DIM>(rows, scores, weights, scale);
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 16; n++) {
            uint32_t b[4];
            load_transposed(b, values + swizzled<HEAD_DIM>(k * 16 + lane % 16, 2 * n + lane / 16));
            mma(rows.sums[2 * n], weights[k], b[0], b[1]);
            mma(rows.sums[2 * n + 1], weights[k], b[2], b[3]);
        }
    }
}

// `out` [rows][num_heads * HEAD_DIM], `lse` [rows][num_heads] or null; with splits instead `partial_sums`
// [slots][num_heads][splits][HEAD_DIM] and `partial_stats` [slots][num_heads][splits] (maximum, total), where the slot of a token is its
// index among the tokens of all tiles.
template <int HEAD_DIM>
__device__ __forceinline__ void attention(const bf16 *q, const uint32_t *positions, const Tile *tiles, const uint32_t *block_tables,
                                          const bf16 *keys, const bf16 *values, Sizes sizes, bf16 *out, float *lse, float *partial_sums,
                                          float2 *partial_stats) {
    extern __shared__ __align__(128) bf16 stages[];
    constexpr int KEYS = TILE_KEYS<HEAD_DIM>;
    constexpr uint32_t STAGE = KEYS * HEAD_DIM * sizeof(bf16);
    Tile tile = tiles[blockIdx.x];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv_head = blockIdx.y;
    int num_heads = sizes.num_heads, group = num_heads / sizes.num_kv_heads;
    int num_splits = gridDim.z, split = blockIdx.z, num_rows = tile.num_rows * group;
    Keys from = {keys, values, block_tables + (size_t)tile.table * sizes.max_blocks, (size_t)sizes.layer * sizes.num_blocks,
                 sizes.num_kv_heads, kv_head, tile.kv_len};

    // Tile rows of this thread, and the range of positions of its warp. A warp without rows sees nothing.
    int row[2], position[2];
    uint32_t fragments[HEAD_DIM / 16][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        row[half] = warp * 16 + lane / 4 + half * 8;
        bool there = row[half] < num_rows;
        uint32_t token = tile.first_row + (there ? row[half] / group : 0);
        position[half] = there ? (int)positions[token] : -1;
        const bf16 *head = q + (size_t)token * sizes.q_stride + (kv_head * group + row[half] % group) * HEAD_DIM + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; k++) {
            fragments[k][half] = there ? *(const uint32_t *)(head + k * 16) : 0;
            fragments[k][half + 2] = there ? *(const uint32_t *)(head + k * 16 + 8) : 0;
        }
    }
    int warp_rows = min(num_rows - warp * 16, 16);
    int warp_first = warp_rows > 0 ? (int)positions[tile.first_row + warp * 16 / group] : 0;
    int warp_last = warp_rows > 0 ? (int)positions[tile.first_row + (warp * 16 + warp_rows - 1) / group] : -1;

    int first_tile = sizes.first_visible((int)positions[tile.first_row]) / KEYS, end_tile = (tile.kv_len + KEYS - 1) / KEYS;
    int share = (end_tile - first_tile + num_splits - 1) / num_splits;
    int first = first_tile + split * share, last = min(first + share, end_tile);
    Rows<HEAD_DIM> rows = {{}, {-INFINITY, -INFINITY}, {}};
    uint32_t base = shared_address(stages);
    float scale = sizes.scale * LOG2_E;
    uint2 blocks = {};
    if (first < last) {
        fetch<HEAD_DIM>(from, first, blocks_of<HEAD_DIM>(from, first), base, base + STAGE);
        blocks = blocks_of<HEAD_DIM>(from, first + 1);
    }
    commit_copies();
    for (int index = first; index < last; index++) {
        uint32_t stage = base + (index - first) % 2 * 2 * STAGE;
        if (index + 1 < last) {
            uint32_t next = base + (index + 1 - first) % 2 * 2 * STAGE;
            fetch<HEAD_DIM>(from, index + 1, blocks, next, next + STAGE);
            blocks = blocks_of<HEAD_DIM>(from, index + 2);
        }
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        int start = index * KEYS;
        if (start <= warp_last && start + KEYS > sizes.first_visible(warp_first)) {
            int visible[2] = {position[0] + 1 - start, position[1] + 1 - start};
            int hidden[2] = {sizes.first_visible(position[0]) - start, sizes.first_visible(position[1]) - start};
            bool masked = start + KEYS - 1 > warp_first || start < sizes.first_visible(warp_last);
            attend<HEAD_DIM>(rows, fragments, stage, stage + STAGE, masked, hidden, visible, scale);
        }
        __syncthreads();
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = rows.total[half];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        if (row[half] >= num_rows) continue;
        int head = kv_head * group + row[half] % group, token = row[half] / group;
        if (num_splits == 1) {
            size_t at = (size_t)(tile.first_row + token) * num_heads + head;
            bf16 *to = out + at * HEAD_DIM + lane % 4 * 2;
            float inverse = 1.f / total;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++)
                *(uint32_t *)(to + n * 8) = pack(rows.sums[n][2 * half] * inverse, rows.sums[n][2 * half + 1] * inverse);
            if (lse && lane % 4 == 0) lse[at] = (rows.max[half] + log2f(total)) * LN_2;
        } else {
            size_t slot = (size_t)blockIdx.x * (WARPS * 16 / group) + token, at = (slot * num_heads + head) * num_splits + split;
            float *to = partial_sums + at * HEAD_DIM + lane % 4 * 2;
            if (lane % 4 == 0) partial_stats[at] = make_float2(rows.max[half], total);
            if (total == 0.f) continue;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) *(float2 *)(to + n * 8) = make_float2(rows.sums[n][2 * half], rows.sums[n][2 * half + 1]);
        }
    }
}

#define ATTENTION(HEAD_DIM)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) attention_##HEAD_DIM(                                                           \
        const bf16 *q, const uint32_t *positions, const Tile *tiles, const uint32_t *block_tables, const bf16 *keys, const bf16 *values,     \
        Sizes sizes, bf16 *out, float *lse, float *partial_sums, float2 *partial_stats) {                                                    \
        attention<HEAD_DIM>(q, positions, tiles, block_tables, keys, values, sizes, out, lse, partial_sums, partial_stats);                  \
    }
ATTENTION(64)
ATTENTION(128)
ATTENTION(256)
