// Hopper's instructions: barriers in shared memory, the copy engine (TMA), and products of warpgroups (wgmma).
#pragma once
#include "mma.cuh"

// Created on the host by cuTensorMapEncodeTiled.
struct alignas(64) TensorMap {
    uint64_t words[16];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and lets the phase end only after so many bytes were copied as well.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t phase) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(barrier), "r"(phase) : "memory");
}

// Stages of a buffer in the order in which both sides use them.
template <int STAGES>
struct Ring {
    uint32_t stage = 0, phase = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

// Starts the copy of a box at the coordinates into shared memory, innermost first; `barrier` counts its bytes.
__device__ __forceinline__ void load_box(uint32_t to, const TensorMap *map, uint32_t barrier, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(column), "r"(row) : "memory");
}

__device__ __forceinline__ void load_box(uint32_t to, const TensorMap *map, uint32_t barrier, int column, int head, int row) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(column), "r"(head), "r"(row) : "memory");
}

// Makes this thread's stores to shared memory visible to the copy engine and to products.
__device__ __forceinline__ void fence_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Describes rows of 128 bytes at a multiple of 1024, their 16-byte chunks swizzled by row % 8 (PTX ISA, "Matrix descriptor format"). The
// stride from 8 rows to the next is 1024 bytes. `leading` is the stride in bytes to the next 64 columns if columns are not the summed
// dimension, and is ignored otherwise.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t leading) {
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(leading >> 4) << 16 | (address & 0x3ffff) >> 4;
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Prevents the compiler from moving uses of registers across this point.
template <int N>
__device__ __forceinline__ void pin(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}

template <int N>
__device__ __forceinline__ void pin(uint32_t (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}

#define REGISTERS8(x, i) "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3]), "+f"(x[i + 4]), "+f"(x[i + 5]), "+f"(x[i + 6]), "+f"(x[i + 7])
#define REGISTERS32(x, i) REGISTERS8(x, i), REGISTERS8(x, i + 8), REGISTERS8(x, i + 16), REGISTERS8(x, i + 24)
#define NAMES32                                                                                                                      \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES64                                                                                                                      \
    NAMES32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES80 NAMES64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"

// Of a result [64][N], thread `lane` of warp w has x[i]: row 16 w + lane / 4 + 8 (i / 2 % 2), column i / 4 * 8 + lane % 4 * 2 + i % 2.
// Packed in pairs, columns 16 k .. 16 k + 15 are the registers of an operand [64][16].

// d [64][160] = or += a [64][16] (shared memory) times b [160][16] (shared memory) transposed.
template <bool ADD>
__device__ __forceinline__ void multiply_transposed(float (&d)[80], uint64_t a, uint64_t b) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %82, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 {" NAMES80 "}, %80, %81, add, 1, 1, 0, 0;\n}"
        : REGISTERS32(d, 0), REGISTERS32(d, 32), REGISTERS8(d, 64), REGISTERS8(d, 72)
        : "l"(a), "l"(b), "n"(ADD ? 1 : 0));
}

// d [64][128] += a [64][16] (registers) times b [16][128] (shared memory).
__device__ __forceinline__ void multiply(float (&d)[64], const uint32_t *a, uint64_t b) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES64 "}, {%64,%65,%66,%67}, %68, add, 1, 1, 1;\n}"
        : REGISTERS32(d, 0), REGISTERS32(d, 32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1));
}

// d [64][64] += a [64][16] (registers) times b [16][64] (shared memory).
__device__ __forceinline__ void multiply(float (&d)[32], const uint32_t *a, uint64_t b) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES32 "}, {%32,%33,%34,%35}, %36, add, 1, 1, 1;\n}"
        : REGISTERS32(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1));
}

#endif
