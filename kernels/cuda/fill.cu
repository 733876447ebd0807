// Random elements for weights without a checkpoint.
#include "common.cuh"

// Returns the 24 upper bits of output i of SplitMix64 for `seed`, as an integer centered at 0.
__device__ __forceinline__ float noise(uint64_t seed, uint64_t i) {
    uint64_t x = seed + (i + 1) * 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    x ^= x >> 31;
    return (float)((int)(x >> 40) - (1 << 23));
}

extern "C" __global__ void fill_bf16(bf16 *out, uint64_t len, uint64_t seed, float scale) {
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) out[i] = __float2bfloat16_rn(noise(seed, i) * scale);
}
