// Attention that positions of one sequence receive from some of its rows; counterpart of cpu::add_attention_received.
//
// Weights are recomputed from the rows' lse: exp(scale q k - lse). A thread block has 128 keys of one head, 32 per warp, which stay in
// registers; a share of the query rows, (row, head of the group) packed, streams through, 64 at a time. Sums are always added in the same
// order.
#include "mma.cuh"
#include "paged.cuh"

constexpr int WARPS = 4;
constexpr int WARP_KEYS = 32;
constexpr int TILE_ROWS = 64;

// Query rows for one key head.
struct Givers {
    const bf16 *q;
    const uint32_t *rows, *positions;
    const float *lse;
    int q_stride, num_heads, group, first_head;
};

// Starts the copy of packed rows `start ..`; those from `end` on do not exist: their lse is infinite, so that their weights are zero.
// `seen` gets lse (in powers of two) and position.
template <int HEAD_DIM> __device__ __forceinline__ void fetch(const Givers &from, int start, int end, bf16 *queries, float2 *seen) {
    constexpr int CHUNKS = HEAD_DIM / 8;
#pragma unroll
    for (int j = 0; j < TILE_ROWS * CHUNKS / (WARPS * 32); j++) {
        int at = threadIdx.x + j * WARPS * 32, i = start + at / CHUNKS, chunk = at % CHUNKS;
        const bf16 *row = from.q;
        if (i < end) row += (size_t)from.rows[i / from.group] * from.q_stride + (from.first_head + i % from.group) * HEAD_DIM + chunk * 8;
        copy_async(shared_address(queries) + swizzled<HEAD_DIM>(at / CHUNKS, chunk), row, i < end);
    }
    if (threadIdx.x < TILE_ROWS) {
        int i = start + threadIdx.x;
        float2 of_row = make_float2(INFINITY, __int_as_float(0));
        if (i < end) {
            uint32_t row = from.rows[i / from.group];
            float lse = from.lse[(size_t)row * from.num_heads + from.first_head + i % from.group];
            of_row = make_float2(lse * LOG2_E, __int_as_float(from.positions[row]));
        }
        seen[threadIdx.x] = of_row;
    }
}

// partial[share][kv_head][p] = sum over the share of the listed rows and heads of the group. `rows` indexes rows of q, `positions` and
// `lse`, positions ascending. Grid: (ceil(len / 128), num_kv_heads, shares of the rows), 128 threads.
template <int HEAD_DIM>
__device__ __forceinline__ void receive(const bf16 *q, const uint32_t *rows, int num_rows, const uint32_t *positions, const float *lse,
                                        const uint32_t *table, const bf16 *keys, Sizes sizes, float *partial, int len) {
    extern __shared__ __align__(128) bf16 queries[];
    __shared__ float2 seen[2][TILE_ROWS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv_head = blockIdx.y, group = sizes.num_heads / sizes.num_kv_heads;
    int first_key = blockIdx.x * WARPS * WARP_KEYS;

    // Rows before this one see none of these keys.
    int low = 0, high = num_rows;
    while (low < high) {
        int middle = (low + high) / 2;
        if ((int)positions[rows[middle]] < first_key) low = middle + 1;
        else high = middle;
    }
    int tiles = (num_rows * group + TILE_ROWS - 1) / TILE_ROWS, share = (tiles + gridDim.z - 1) / gridDim.z * TILE_ROWS;
    int first = max(low * group, (int)blockIdx.z * share), end = min(num_rows * group, (int)(blockIdx.z + 1) * share);

    uint32_t fragments[2][HEAD_DIM / 16][4];
    int key[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        key[i] = first_key + warp * WARP_KEYS + i * 8 + lane / 4;
        bool there = key[i] < len && first < end;
        uint32_t slot = there ? table[key[i] / BLOCK] * BLOCK + key[i] % BLOCK : 0;
        const bf16 *from = keys + pool_offset(sizes.layer, sizes.num_blocks, sizes.num_kv_heads, HEAD_DIM, slot, kv_head) + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; k++) {
            fragments[i / 2][k][i % 2] = there ? *(const uint32_t *)(from + k * 16) : 0;
            fragments[i / 2][k][i % 2 + 2] = there ? *(const uint32_t *)(from + k * 16 + 8) : 0;
        }
    }

    Givers givers = {q, rows, positions, lse, sizes.q_stride, sizes.num_heads, group, kv_head * group};
    float sums[4] = {}, scale = sizes.scale * LOG2_E;
    if (first < end) fetch<HEAD_DIM>(givers, first, end, queries, seen[0]);
    commit_copies();
    for (int start = first, stage = 0; start < end; start += TILE_ROWS, stage ^= 1) {
        if (start + TILE_ROWS < end)
            fetch<HEAD_DIM>(givers, start + TILE_ROWS, end, queries + (stage ^ 1) * TILE_ROWS * HEAD_DIM, seen[stage ^ 1]);
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        uint32_t tile = shared_address(queries + stage * TILE_ROWS * HEAD_DIM);
#pragma unroll
        for (int n = 0; n < TILE_ROWS / 8; n++) {
            float scores[2][4] = {};
#pragma unroll
            for (int k = 0; k < HEAD_DIM / 32; k++) {
                uint32_t b[4];
                load_matrices(b, tile + swizzled<HEAD_DIM>(n * 8 + lane % 8, 4 * k + lane / 8));
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    mma(scores[m], fragments[m][2 * k], b[0], b[1]);
                    mma(scores[m], fragments[m][2 * k + 1], b[2], b[3]);
                }
            }
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float2 of_row = seen[stage][n * 8 + lane % 4 * 2 + j];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float weight = power_of_two(fmaf(scores[i / 2][i % 2 * 2 + j], scale, -of_row.x));
                    int position = __float_as_int(of_row.y);
                    sums[i] += key[i] <= position && key[i] >= sizes.first_visible(position) ? weight : 0.f;
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float sum = sums[i];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane % 4 == 0 && key[i] < len) partial[((size_t)blockIdx.z * gridDim.y + kv_head) * len + key[i]] = sum;
    }
}

#define RECEIVE(HEAD_DIM)                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, HEAD_DIM > 128 ? 2 : 3) receive_##HEAD_DIM(                                                          \
        const bf16 *q, const uint32_t *rows, int num_rows, const uint32_t *positions, const float *lse, const uint32_t *table,               \
        const bf16 *keys, Sizes sizes, float *partial, int len) {                                                                            \
        receive<HEAD_DIM>(q, rows, num_rows, positions, lse, table, keys, sizes, partial, len);                                              \
    }
RECEIVE(64)
RECEIVE(128)
RECEIVE(256)

// received[p] += sum of partial[i][p] over i < num_partials.
extern "C" __global__ void add_partials(const float *partial, int num_partials, float *received, int len) {
    int p = blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= len) return;
    float sum = 0.f;
#pragma unroll 4
    for (int i = 0; i < num_partials; i++) sum += partial[(size_t)i * len + p];
    received[p] += sum;
}
