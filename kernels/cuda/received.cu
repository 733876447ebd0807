// Attention that positions of one sequence receive from some of its rows; twin of cpu::add_attention_received.
//
// Weights are computed again from the rows' lse: exp(scale q k - lse). A block of threads has 64 keys of one head, 16 a warp, which stay in
// registers; the query rows, (row, head of the group) packed, pass by 32 at a time. Sums are added in one order always.
#include "mma.cuh"
#include "paged.cuh"

constexpr int WARPS = 4;
constexpr int TILE_ROWS = 32;

// partial[kv_head][p] = sum over listed rows and heads of the group; `rows` names rows of q, `positions` and `lse`, positions ascending.
// Grid: (ceil(len / 64), num_kv_heads), 128 threads.
template <int HEAD_DIM>
__device__ __forceinline__ void receive(const bf16 *q, const uint32_t *rows, int num_rows, const uint32_t *positions, const float *lse,
                                        const uint32_t *table, const bf16 *keys, Sizes sizes, float *partial, int len) {
    __shared__ __align__(128) bf16 queries[2][TILE_ROWS * HEAD_DIM];
    __shared__ float2 seen[2][TILE_ROWS];
    constexpr int CHUNKS = HEAD_DIM / 8;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv_head = blockIdx.y;
    int num_heads = sizes.num_heads, group = num_heads / sizes.num_kv_heads;
    int first_key = blockIdx.x * WARPS * 16;

    // Rows before this one see none of these keys.
    int low = 0, high = num_rows;
    while (low < high) {
        int middle = (low + high) / 2;
        if ((int)positions[rows[middle]] < first_key) low = middle + 1;
        else high = middle;
    }
    int first = low * group, end = num_rows * group;

    uint32_t fragments[HEAD_DIM / 16][4];
    int key[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        key[half] = first_key + warp * 16 + half * 8 + lane / 4;
        bool there = key[half] < len;
        uint32_t slot = there ? table[key[half] / BLOCK] * BLOCK + key[half] % BLOCK : 0;
        const bf16 *from = keys + pool_offset(sizes.layer, sizes.num_blocks, sizes.num_kv_heads, HEAD_DIM, slot, kv_head) + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; k++) {
            fragments[k][half] = there ? *(const uint32_t *)(from + k * 16) : 0;
            fragments[k][half + 2] = there ? *(const uint32_t *)(from + k * 16 + 8) : 0;
        }
    }

    // Row i of a tile is packed row `start + i`; a row that is not there has an infinite lse, so its weights are zero.
    auto fetch = [&](int start, int stage) {
#pragma unroll
        for (int j = 0; j < TILE_ROWS * CHUNKS / (WARPS * 32); j++) {
            int at = threadIdx.x + j * WARPS * 32, i = at / CHUNKS, chunk = at % CHUNKS;
            bool there = start + i < end;
            size_t row = there ? rows[(start + i) / group] : 0;
            const bf16 *from = q + row * sizes.q_stride + (kv_head * group + (start + i) % group) * HEAD_DIM + chunk * 8;
            copy_async(shared_address(queries[stage]) + swizzled<HEAD_DIM>(i, chunk), there ? from : q, there);
        }
        if (threadIdx.x < TILE_ROWS) {
            int i = start + threadIdx.x;
            float2 of_row = make_float2(INFINITY, __int_as_float(0));
            if (i < end) {
                uint32_t row = rows[i / group];
                of_row = make_float2(lse[(size_t)row * num_heads + kv_head * group + i % group] * LOG2_E, __int_as_float(positions[row]));
            }
            seen[stage][threadIdx.x] = of_row;
        }
    };

    float sums[2] = {};
    float scale = sizes.scale * LOG2_E;
    if (first < end) fetch(first, 0);
    commit_copies();
    for (int start = first, stage = 0; start < end; start += TILE_ROWS, stage ^= 1) {
        if (start + TILE_ROWS < end) fetch(start + TILE_ROWS, stage ^ 1);
        commit_copies();
        wait_copies<1>();
        __syncthreads();
#pragma unroll
        for (int n = 0; n < TILE_ROWS / 8; n++) {
            float scores[4] = {};
#pragma unroll
            for (int k = 0; k < HEAD_DIM / 32; k++) {
                uint32_t b[4];
                load_matrices(b, shared_address(queries[stage]) + swizzled<HEAD_DIM>(n * 8 + lane % 8, 4 * k + lane / 8));
                mma(scores, fragments[2 * k], b[0], b[1]);
                mma(scores, fragments[2 * k + 1], b[2], b[3]);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float2 of_row = seen[stage][n * 8 + lane % 4 * 2 + i % 2];
                float weight = power_of_two(fmaf(scores[i], scale, -of_row.x));
                if (key[i / 2] <= __float_as_int(of_row.y)) sums[i / 2] += weight;
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = sums[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane % 4 == 0 && key[half] < len) partial[(size_t)kv_head * len + key[half]] = sum;
    }
}

#define RECEIVE(HEAD_DIM)                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) receive_##HEAD_DIM(                                                             \
        const bf16 *q, const uint32_t *rows, int num_rows, const uint32_t *positions, const float *lse, const uint32_t *table,               \
        const bf16 *keys, Sizes sizes, float *partial, int len) {                                                                            \
        receive<HEAD_DIM>(q, rows, num_rows, positions, lse, table, keys, sizes, partial, len);                                              \
    }
RECEIVE(64)
RECEIVE(128)

// received[p] += sum over heads of partial[head][p].
extern "C" __global__ void add_heads(const float *partial, int num_kv_heads, float *received, int len) {
    int p = blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= len) return;
    float sum = 0.f;
    for (int head = 0; head < num_kv_heads; head++) sum += partial[(size_t)head * len + p];
    received[p] += sum;
}
