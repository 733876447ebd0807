// Rows of the residual stream that are packed and put back, and numbers made or converted where weights are loaded.
#include "common.cuh"

// packed[i] = from[rows[i]], zeros for NO_ROW; `width` is in vectors of four numbers. One block of threads a row.
extern "C" __global__ void gather_rows(const float4 *from, const uint32_t *rows, float4 *packed, int width) {
    uint32_t row = rows[blockIdx.x];
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        packed[(size_t)blockIdx.x * width + i] = row == NO_ROW ? make_float4(0.f, 0.f, 0.f, 0.f) : from[(size_t)row * width + i];
    }
}

// to[rows[i]] = packed[i], nothing for NO_ROW.
extern "C" __global__ void scatter_rows(const float4 *packed, const uint32_t *rows, float4 *to, int width) {
    uint32_t row = rows[blockIdx.x];
    if (row == NO_ROW) return;
    for (int i = threadIdx.x; i < width; i += blockDim.x) to[(size_t)row * width + i] = packed[(size_t)blockIdx.x * width + i];
}

// The 24 upper bits of output i of SplitMix64 for `seed`, as a whole number around 0.
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

extern "C" __global__ void fill_f32(float *out, uint64_t len, uint64_t seed, float scale) {
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) out[i] = noise(seed, i) * scale;
}

extern "C" __global__ void narrow_f32(const float *from, bf16 *to, uint64_t len) {
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) to[i] = __float2bfloat16_rn(from[i]);
}
