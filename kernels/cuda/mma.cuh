// Tensor cores by mma.sync (sm_80 on), and asynchronous copies into swizzled shared memory.
//
// Of a product's fragments, thread `lane` with g = lane / 4, t = lane % 4 holds (PTX ISA, m16n8k16 with .bf16):
//   A [16][16]: a0 (g, 2t..), a1 (g + 8, 2t..), a2 (g, 2t + 8..), a3 (g + 8, 2t + 8..), two elements each
//   B [16][8]:  b0 (2t.., g), b1 (2t + 8.., g), two elements each
//   C [16][8]:  c0 c1 (g, 2t..), c2 c3 (g + 8, 2t..)
#pragma once
#include "common.cuh"

__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Loads four matrices [8][8]: lanes 8 i .. 8 i + 7 give the addresses of the rows of matrix i; a thread gets (g, 2t..) of each.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// As load_matrices, each matrix transposed.
__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// Transposes a matrix [8][8] of which each thread holds (g, 2t..).
__device__ __forceinline__ uint32_t transpose(uint32_t from) {
    uint32_t to;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to) : "r"(from));
    return to;
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
    bf16x2 both = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&both;
}

// 2^x; 0 for -inf.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Starts the copy of 16 bytes into shared memory, or writes zeros without reading.
__device__ __forceinline__ void copy_async(uint32_t to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING groups of this thread's copies are in flight.
template <int PENDING> __device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// Returns the bytes from the start of rows of HEAD_DIM elements to the 16-byte chunk `chunk` of row `row`. The chunks of eight rows cover
// all 32 banks.
template <int HEAD_DIM> __device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
    return row * (HEAD_DIM * 2) + ((chunk ^ (row & 7)) << 4);
}
