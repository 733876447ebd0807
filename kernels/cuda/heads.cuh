// One head in the hands of HEAD_DIM / 16 threads: thread `lane` holds the eight numbers at 8 lane and the eight half a head behind them.
// In either layout the numbers that rotate together are then one thread's, and all accesses are of 16 bytes.
#pragma once
#include "common.cuh"

// Cosines and sines of the angles that one thread's numbers rotate by.
struct Angles {
    float cos[8], sin[8];

    // `row` is [HEAD_DIM / 2], by frequency.
    template <int HEAD_DIM> __device__ __forceinline__ static Angles load(const float2 *row, int lane, bool interleaved) {
        const float4 *low = (const float4 *)(row + (interleaved ? 4 : 8) * lane);
        const float4 *high = (const float4 *)(row + (interleaved ? HEAD_DIM / 4 + 4 * lane : 8 * lane + 4));
        float4 pairs[4] = {low[0], low[1], high[0], high[1]};
        Angles angles;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            angles.cos[2 * i] = pairs[i].x, angles.sin[2 * i] = pairs[i].y;
            angles.cos[2 * i + 1] = pairs[i].z, angles.sin[2 * i + 1] = pairs[i].w;
        }
        return angles;
    }

    __device__ __forceinline__ bool are_zero() const {
        bool zero = true;
#pragma unroll
        for (int i = 0; i < 8; i++) zero &= sin[i] == 0.f;
        return zero;
    }
};

// Roundings are written out, so that no compilation of this gives other bits.
__device__ __forceinline__ void rotate_pair(float &a, float &b, float cos, float sin) {
    float turned = __fmaf_rn(a, cos, -__fmul_rn(b, sin));
    b = __fmaf_rn(a, sin, __fmul_rn(b, cos));
    a = turned;
}

template <int HEAD_DIM> struct HeadPart {
    static constexpr int LANES = HEAD_DIM / 16;
    float low[8], high[8];

    __device__ __forceinline__ static HeadPart load(const bf16 *head, int lane) {
        bf16x8 a = ((const bf16x8 *)head)[lane], b = ((const bf16x8 *)head)[LANES + lane];
        HeadPart part;
        widen(a, part.low);
        widen(b, part.high);
        return part;
    }

    __device__ __forceinline__ static HeadPart load(const float *head, int lane) {
        const float4 *a = (const float4 *)head + 2 * lane, *b = a + HEAD_DIM / 8;
        float4 four[4] = {a[0], a[1], b[0], b[1]};
        HeadPart part;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float *low = part.low + 4 * i, *high = part.high + 4 * i;
            low[0] = four[i].x, low[1] = four[i].y, low[2] = four[i].z, low[3] = four[i].w;
            high[0] = four[2 + i].x, high[1] = four[2 + i].y, high[2] = four[2 + i].z, high[3] = four[2 + i].w;
        }
        return part;
    }

    __device__ __forceinline__ void store(bf16 *head, int lane) const {
        ((bf16x8 *)head)[lane] = narrow(low);
        ((bf16x8 *)head)[LANES + lane] = narrow(high);
    }

    __device__ __forceinline__ void store(float *head, int lane) const {
        float4 *a = (float4 *)head + 2 * lane, *b = a + HEAD_DIM / 8;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            a[i] = make_float4(low[4 * i], low[4 * i + 1], low[4 * i + 2], low[4 * i + 3]);
            b[i] = make_float4(high[4 * i], high[4 * i + 1], high[4 * i + 2], high[4 * i + 3]);
        }
    }

    __device__ __forceinline__ void rotate(const Angles &angles, bool interleaved, float direction) {
        if (interleaved) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                rotate_pair(low[2 * i], low[2 * i + 1], angles.cos[i], direction * angles.sin[i]);
                rotate_pair(high[2 * i], high[2 * i + 1], angles.cos[4 + i], direction * angles.sin[4 + i]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) rotate_pair(low[i], high[i], angles.cos[i], direction * angles.sin[i]);
        }
    }

    // Sum over the head; all its threads call it.
    __device__ __forceinline__ float sum_of_squares() const {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) sum = __fmaf_rn(low[i], low[i], __fmaf_rn(high[i], high[i], sum));
        uint32_t threads = ((1u << LANES) - 1) << (threadIdx.x % 32 / LANES * LANES);
#pragma unroll
        for (int offset = LANES / 2; offset; offset /= 2) sum += __shfl_xor_sync(threads, sum, offset);
        return sum;
    }
};
