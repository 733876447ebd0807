// Combines the results of key splits: out = sum_s 2^(max_s - max) sums_s / sum_s 2^(max_s - max) total_s.
//
// Grid: (num_heads, slots), 128 threads. A split with a total of zero saw no key, and its sums were not written. Without `tiles`, slot and
// row are the same; otherwise a slot is a token's index in the tiles, each of which has `tile_tokens`.
#include "mma.cuh"
#include "paged.cuh"

constexpr int WARPS = 4;

template <int HEAD_DIM>
__device__ __forceinline__ void combine(const float *partial_sums, const float2 *partial_stats, int num_splits, const Tile *tiles, int tile_tokens,
                                        bf16 *out, float *lse) {
    __shared__ float of_warps[WARPS][HEAD_DIM];
    constexpr int WIDTH = HEAD_DIM / 32;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_heads = gridDim.x, head = blockIdx.x, row = blockIdx.y;
    if (tiles) {
        Tile tile = tiles[blockIdx.y / tile_tokens];
        uint32_t token = blockIdx.y % tile_tokens;
        if (token >= tile.num_rows) return;
        row = tile.first_row + token;
    }
    size_t first = ((size_t)blockIdx.y * num_heads + head) * num_splits;
    const float2 *stats = partial_stats + first;
    float max = -INFINITY, total = 0.f;
    for (int split = lane; split < num_splits; split += 32) max = fmaxf(max, stats[split].x);
    max = warp_max(max);
    for (int split = lane; split < num_splits; split += 32) {
        float2 of_split = stats[split];
        // A total of NaN reaches the output; one of zero comes with a maximum of -infinity.
        if (of_split.y != 0.f) total += of_split.y * power_of_two(of_split.x - max);
    }
    total = warp_sum(total);

    float sums[WIDTH] = {};
#pragma unroll 4
    for (int split = warp; split < num_splits; split += WARPS) {
        float2 of_split = stats[split];
        if (of_split.y == 0.f) continue;
        float weight = power_of_two(of_split.x - max);
        const float *from = partial_sums + (first + split) * HEAD_DIM + lane * WIDTH;
#pragma unroll
        for (int i = 0; i < WIDTH; i += 2) {
            float2 both = *(const float2 *)(from + i);
            sums[i] += weight * both.x;
            sums[i + 1] += weight * both.y;
        }
    }
#pragma unroll
    for (int i = 0; i < WIDTH; i++) of_warps[warp][lane * WIDTH + i] = sums[i];
    __syncthreads();
    size_t at = (size_t)row * num_heads + head;
    for (int d = threadIdx.x; d < HEAD_DIM; d += blockDim.x) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) sum += of_warps[i][d];
        out[at * HEAD_DIM + d] = __float2bfloat16(total == 0.f ? 0.f : sum / total);
    }
    if (lse && threadIdx.x == 0) lse[at] = (max + log2f(total)) * LN_2;
}

#define COMBINE(HEAD_DIM)                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) combine_##HEAD_DIM(const float *partial_sums, const float2 *partial_stats,     \
                                                                              int num_splits, const Tile *tiles, int tile_tokens,            \
                                                                              bf16 *out, float *lse) {                                       \
        combine<HEAD_DIM>(partial_sums, partial_stats, num_splits, tiles, tile_tokens, out, lse);                                            \
    }
COMBINE(64)
COMBINE(128)
COMBINE(256)
