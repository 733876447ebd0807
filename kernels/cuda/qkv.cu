// Processing of a row of the fused product [num_heads of Q, num_kv_heads of K, as many of V] before attention: bias, norms of heads,
// rotation, and K and V to the pool. Counterpart: cpu::{rms_norm_heads, rope, KvLayer::write, differences}.
//
// HEAD_DIM / 8 threads per head, heads of a row adjacent: with twice the elements per thread, register pressure lowers occupancy, and all
// sizes took a tenth longer. A row of Qwen2.5-7B is 9,216 bytes read and, when K and V are not kept in the row, as many written: 0.05 ms
// for 8,192 rows at 3.0 TB/s.
#include "heads.cuh"

constexpr int ROTATE = 1, SCATTER = 2, KEEP_KV = 4;
// Elements of half a head per thread.
constexpr int NUMBERS = 4;

template <int HEAD_DIM>
__device__ __forceinline__ void qkv_head(bf16 *qkv, int num_rows, int num_heads, int num_kv_heads, const float *bias, const float *q_norm,
                                         const float *k_norm, float epsilon, const float2 *cos_sin, const uint32_t *positions,
                                         bool interleaved, bf16 *keys, bf16 *values, int layer, int num_blocks, const uint32_t *slots,
                                         const int *difference_rows, float *differences, int mode) {
    typedef HeadPart<HEAD_DIM, NUMBERS> Part;
    // A scatter without rotation skips Q.
    int all_heads = num_heads + 2 * num_kv_heads, first_head = mode & ROTATE ? 0 : num_heads, heads_here = all_heads - first_head;
    uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
    int lane = index % Part::LANES, head = first_head + index / Part::LANES % heads_here, row = index / Part::LANES / heads_here;
    if (row >= num_rows) return;
    uint32_t slot = slots ? slots[row] : 0;
    if (slot == NO_ROW) return;
    bool is_q = head < num_heads, is_v = head >= num_heads + num_kv_heads;
    bf16 *from = qkv + ((size_t)row * all_heads + head) * HEAD_DIM;
    Part part = Part::load(from, lane);
    Angles<NUMBERS> angles;
    if (!is_v) angles = Angles<NUMBERS>::load<HEAD_DIM>(cos_sin + (size_t)positions[row] * (HEAD_DIM / 2), lane, interleaved);

    if (mode & ROTATE) {
        if (bias) {
            Part more = Part::load(bias + head * HEAD_DIM, lane);
#pragma unroll
            for (int i = 0; i < NUMBERS; i++) part.low[i] += more.low[i], part.high[i] += more.high[i];
        }
        const float *norm = is_q ? q_norm : is_v ? nullptr : k_norm;
        if (norm) {
            Part weight = Part::load(norm, lane);
            float scale = rsqrtf(part.sum_of_squares() / HEAD_DIM + epsilon);
#pragma unroll
            for (int i = 0; i < NUMBERS; i++) part.low[i] *= scale * weight.low[i], part.high[i] *= scale * weight.high[i];
        }
        if (!is_v) part.rotate(angles, interleaved, 1.f);
        if (is_q || mode & KEEP_KV) part.store(from, lane);
    }
    if (is_q || !(mode & SCATTER)) return;

    int kv_head = head - num_heads - (is_v ? num_kv_heads : 0);
    bf16 *to = (is_v ? values : keys) + pool_offset(layer, num_blocks, num_kv_heads, HEAD_DIM, slot, kv_head);
    int difference_row = difference_rows ? difference_rows[row] : -1;
    if (difference_row >= 0) {
        Part change = Part::load(to, lane);
#pragma unroll
        for (int i = 0; i < NUMBERS; i++) {
            // Rounded as the pool stores it: an unchanged element must have a difference of zero.
            change.low[i] = __bfloat162float(__float2bfloat16_rn(part.low[i])) - change.low[i];
            change.high[i] = __bfloat162float(__float2bfloat16_rn(part.high[i])) - change.high[i];
        }
        if (!is_v) change.rotate(angles, interleaved, -1.f);
        change.store(differences + ((size_t)difference_row * 2 * num_kv_heads + head - num_heads) * HEAD_DIM, lane);
    }
    part.store(to, lane);
}

#define QKV(HEAD_DIM)                                                                                                                  \
    extern "C" __global__ void qkv_##HEAD_DIM(bf16 *qkv, int num_rows, int num_heads, int num_kv_heads, const float *bias,             \
                                              const float *q_norm, const float *k_norm, float epsilon, const float2 *cos_sin,          \
                                              const uint32_t *positions, int interleaved, bf16 *keys, bf16 *values, int layer,         \
                                              int num_blocks, const uint32_t *slots, const int *difference_rows, float *differences,   \
                                              int mode) {                                                                              \
        qkv_head<HEAD_DIM>(qkv, num_rows, num_heads, num_kv_heads, bias, q_norm, k_norm, epsilon, cos_sin, positions, interleaved,     \
                           keys, values, layer, num_blocks, slots, difference_rows, differences, mode);                               \
    }
QKV(64)
QKV(128)
QKV(256)
