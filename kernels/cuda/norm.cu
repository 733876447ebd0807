// Embedding rows, RMSNorm, and the residual stream, which stays in f32.
#include "common.cuh"

// hidden[row] = scale * table[token_ids[row]]; one thread block per row.
extern "C" __global__ void embed(const bf16 *table, const uint32_t *token_ids, float *hidden, int width, float scale) {
    const bf16 *from = table + (size_t)token_ids[blockIdx.x] * width;
    float *to = hidden + (size_t)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = scale * __bfloat162float(from[i]);
}

// hidden[row] += delta[row] (unless it is null), normed[row] = weight * hidden[row] / rms(hidden[row]); one thread block per row. `rows`,
// if not null, gives the row of hidden that normed[i] is computed from; hidden is then not changed. `width` is a multiple of 4.
extern "C" __global__ void add_rms_norm(float *hidden, const bf16 *delta, const float *weight, const uint32_t *rows, bf16 *normed,
                                        int width, float epsilon) {
    __shared__ float scratch[32];
    extern __shared__ float4 row_values[];
    size_t row = rows ? rows[blockIdx.x] : blockIdx.x;
    float4 *h = (float4 *)(hidden + row * width);
    const bf16x2 *d = delta ? (const bf16x2 *)(delta + row * width) : nullptr;
    float squares = 0.f;
    for (int i = threadIdx.x; i < width / 4; i += blockDim.x) {
        float4 x = h[i];
        if (d) {
            float2 low = __bfloat1622float2(d[2 * i]), high = __bfloat1622float2(d[2 * i + 1]);
            x.x += low.x, x.y += low.y, x.z += high.x, x.w += high.y;
            if (!rows) h[i] = x;
        }
        squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        row_values[i] = x;
    }
    float scale = rsqrtf(block_sum(squares, scratch) / width + epsilon);
    bf16x2 *out = (bf16x2 *)(normed + (size_t)blockIdx.x * width);
    for (int i = threadIdx.x; i < width / 4; i += blockDim.x) {
        float4 x = row_values[i], w = ((const float4 *)weight)[i];
        out[2 * i] = __floats2bfloat162_rn(x.x * scale * w.x, x.y * scale * w.y);
        out[2 * i + 1] = __floats2bfloat162_rn(x.z * scale * w.z, x.w * scale * w.w);
    }
}

// delta[row] = weight * delta[row] / rms(delta[row]); one thread block per row. `width` is a multiple of 4.
extern "C" __global__ void rms_norm_in_place(bf16 *delta, const float *weight, int width, float epsilon) {
    __shared__ float scratch[32];
    bf16x2 *d = (bf16x2 *)(delta + (size_t)blockIdx.x * width);
    float squares = 0.f;
    for (int i = threadIdx.x; i < width / 2; i += blockDim.x) {
        float2 x = __bfloat1622float2(d[i]);
        squares += x.x * x.x + x.y * x.y;
    }
    float scale = rsqrtf(block_sum(squares, scratch) / width + epsilon);
    for (int i = threadIdx.x; i < width / 2; i += blockDim.x) {
        float2 x = __bfloat1622float2(d[i]), w = ((const float2 *)weight)[i];
        d[i] = __floats2bfloat162_rn(x.x * scale * w.x, x.y * scale * w.y);
    }
}

// packed[i] = hidden[rows[i]] + delta[rows[i]], or without delta if that is null; one thread block per row. `width` is a multiple of 4.
extern "C" __global__ void gather_sum(const float *hidden, const bf16 *delta, const uint32_t *rows, float *packed, int width) {
    size_t row = rows[blockIdx.x];
    const float4 *h = (const float4 *)(hidden + row * width);
    const bf16x2 *d = (const bf16x2 *)(delta + row * width);
    float4 *to = (float4 *)(packed + (size_t)blockIdx.x * width);
    for (int i = threadIdx.x; i < width / 4; i += blockDim.x) {
        float2 low = {}, high = {};
        if (delta) low = __bfloat1622float2(d[2 * i]), high = __bfloat1622float2(d[2 * i + 1]);
        float4 x = h[i];
        to[i] = make_float4(x.x + low.x, x.y + low.y, x.z + high.x, x.w + high.y);
    }
}
