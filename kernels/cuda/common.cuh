// Definitions shared by all kernels: types, the pool's layout, reductions.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;
typedef __nv_bfloat162 bf16x2;

// Slots per block of the KV pool, as `tokens::BlockSize::DEFAULT`.
constexpr int BLOCK = 32;

// Marks a missing slot or row: a row that only pads a CUDA graph.
constexpr uint32_t NO_ROW = 0xFFFFFFFF;

// A pool of keys (or values) is [num_layers][num_blocks][num_kv_heads][BLOCK][head_dim] of bf16, keys rotated to their positions. Returns
// the offset, in elements, of one head of slot `slot` in one layer.
__device__ __forceinline__ size_t pool_offset(int layer, int num_blocks, int num_kv_heads, int head_dim, uint32_t slot, int head) {
    size_t block = (size_t)layer * num_blocks + slot / BLOCK;
    return ((block * num_kv_heads + head) * BLOCK + slot % BLOCK) * head_dim;
}

// Eight 16-bit elements, one load or store of a thread.
struct alignas(16) bf16x8 {
    bf16x2 pair[4];
};

__device__ __forceinline__ void widen(const bf16x8 &from, float *to) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 both = __bfloat1622float2(from.pair[i]);
        to[2 * i] = both.x;
        to[2 * i + 1] = both.y;
    }
}

__device__ __forceinline__ bf16x8 narrow(const float *from) {
    bf16x8 to;
#pragma unroll
    for (int i = 0; i < 4; i++) to.pair[i] = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
    return to;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset; offset /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
    return x;
}

// Returns the sum over a thread block to every thread; `scratch` has 32 elements.
__device__ __forceinline__ float block_sum(float x, float *scratch) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < (blockDim.x + 31) / 32 ? scratch[threadIdx.x % 32] : 0.f;
    x = warp_sum(x);
    __syncthreads();
    return x;
}
