// One head held by HEAD_DIM / 2N threads: thread `lane` holds the N elements from N lane on and the N elements half a head later. In either
// layout, elements that rotate together then belong to one thread. With N = 8 all accesses are of 16 bytes.
#pragma once
#include "common.cuh"

// Cosines and sines of the rotation angles of one thread's elements.
template <int N> struct Angles {
    float cos[N], sin[N];

    // `row` is [HEAD_DIM / 2], by frequency.
    template <int HEAD_DIM> __device__ __forceinline__ static Angles load(const float2 *row, int lane, bool interleaved) {
        const float4 *low = (const float4 *)(row + (interleaved ? N / 2 : N) * lane);
        const float4 *high = (const float4 *)(row + (interleaved ? HEAD_DIM / 4 + N / 2 * lane : N * lane + N / 2));
        Angles angles;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            float4 two = i < N / 4 ? low[i] : high[i - N / 4];
            angles.cos[2 * i] = two.x, angles.sin[2 * i] = two.y;
            angles.cos[2 * i + 1] = two.z, angles.sin[2 * i + 1] = two.w;
        }
        return angles;
    }

    __device__ __forceinline__ bool are_zero() const {
        bool zero = true;
#pragma unroll
        for (int i = 0; i < N; i++) zero &= sin[i] == 0.f;
        return zero;
    }
};

// Roundings are explicit, so that every compilation gives the same bits.
__device__ __forceinline__ void rotate_pair(float &a, float &b, float cos, float sin) {
    float turned = __fmaf_rn(a, cos, -__fmul_rn(b, sin));
    b = __fmaf_rn(a, sin, __fmul_rn(b, cos));
    a = turned;
}

// N 16-bit elements, one load or store of a thread.
template <int N> struct alignas(2 * N) Short {
    bf16x2 pair[N / 2];

    __device__ __forceinline__ static Short narrowed(const float *from) {
        Short to;
#pragma unroll
        for (int i = 0; i < N / 2; i++) to.pair[i] = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
        return to;
    }

    __device__ __forceinline__ void widen(float *to) const {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            float2 both = __bfloat1622float2(pair[i]);
            to[2 * i] = both.x, to[2 * i + 1] = both.y;
        }
    }
};

template <int HEAD_DIM, int N = 8> struct HeadPart {
    static constexpr int LANES = HEAD_DIM / 2 / N;
    float low[N], high[N];

    __device__ __forceinline__ static HeadPart load(const bf16 *head, int lane) {
        Short<N> a = ((const Short<N> *)head)[lane], b = ((const Short<N> *)head)[LANES + lane];
        HeadPart part;
        a.widen(part.low);
        b.widen(part.high);
        return part;
    }

    __device__ __forceinline__ static HeadPart load(const float *head, int lane) {
        const float4 *a = (const float4 *)(head + N * lane), *b = a + HEAD_DIM / 8;
        HeadPart part;
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            float4 four = a[i];
            part.low[4 * i] = four.x, part.low[4 * i + 1] = four.y, part.low[4 * i + 2] = four.z, part.low[4 * i + 3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            float4 four = b[i];
            part.high[4 * i] = four.x, part.high[4 * i + 1] = four.y, part.high[4 * i + 2] = four.z, part.high[4 * i + 3] = four.w;
        }
        return part;
    }

    __device__ __forceinline__ void store(bf16 *head, int lane) const {
        ((Short<N> *)head)[lane] = Short<N>::narrowed(low);
        ((Short<N> *)head)[LANES + lane] = Short<N>::narrowed(high);
    }

    __device__ __forceinline__ void store(float *head, int lane) const {
        float4 *a = (float4 *)(head + N * lane), *b = a + HEAD_DIM / 8;
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            a[i] = make_float4(low[4 * i], low[4 * i + 1], low[4 * i + 2], low[4 * i + 3]);
            b[i] = make_float4(high[4 * i], high[4 * i + 1], high[4 * i + 2], high[4 * i + 3]);
        }
    }

    __device__ __forceinline__ void rotate(const Angles<N> &angles, bool interleaved, float direction) {
        if (interleaved) {
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                int j = i + N / 2;
                rotate_pair(low[2 * i], low[2 * i + 1], angles.cos[i], direction * angles.sin[i]);
                rotate_pair(high[2 * i], high[2 * i + 1], angles.cos[j], direction * angles.sin[j]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) rotate_pair(low[i], high[i], angles.cos[i], direction * angles.sin[i]);
        }
    }

    // Returns the sum over the head; all its threads must call it.
    __device__ __forceinline__ float sum_of_squares() const {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < N; i++) sum = __fmaf_rn(low[i], low[i], __fmaf_rn(high[i], high[i], sum));
        uint32_t threads = ((1u << LANES) - 1) << (threadIdx.x % 32 / LANES * LANES);
#pragma unroll
        for (int offset = LANES / 2; offset; offset /= 2) sum += __shfl_xor_sync(threads, sum, offset);
        return sum;
    }
};
