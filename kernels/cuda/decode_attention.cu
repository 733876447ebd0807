// Attention of one query token per sequence; counterpart of cpu::attention for rows that each have their own sequence.
//
// Time is bounded by reading keys and values: 2 * kv_len * head_dim * 2 bytes per key head. So each warp streams its own 16 keys at a time
// through its own ring of asynchronous copies, independent of the others. Products are transposed, scores^T = K q^T and out^T = V^T
// weights^T, so that keys fill the 16 rows of a product and a group of up to 8 heads its 8 columns.
//
// Grid: (parts, num_kv_heads * ceil(group / heads per block)), 128 threads. A row has one or more consecutive parts; its blocks of 32 keys
// are divided among them evenly, and the last part to finish adds them up. Position 0xffffffff marks a row without a sequence: its output
// is zero.
#include "mma.cuh"
#include "paged.cuh"

constexpr int WARPS = 4;
constexpr int STAGE_KEYS = 16;
// Stages of a warp's ring: 24 KB per warp, 96 KB per thread block, so that two thread blocks fit on a multiprocessor of sm_90 and one on
// sm_89. Heads of 256 have no ring of less than 32 KB.
template <int HEAD_DIM> constexpr int STAGES = HEAD_DIM > 128 ? 2 : 3 * 128 / HEAD_DIM;
template <int HEAD_DIM> constexpr int SHARED_BYTES = WARPS * STAGES<HEAD_DIM> * 2 * STAGE_KEYS * HEAD_DIM * (int)sizeof(bf16);
constexpr int MAX_PARTS = 128;
constexpr uint32_t NO_SEQUENCE = 0xffffffff;

// Processes 16 keys and values in shared memory, for a warp and 8 * N heads. Scores of keys below `hidden` and from `visible` on are masked;
// at least one is neither.
template <int HEAD_DIM, int N>
__device__ __forceinline__ void attend(float (&sums)[N][HEAD_DIM / 16][4], float (&max)[N][2], float (&total)[N][2],
                                       const uint32_t (&q)[N][HEAD_DIM / 16][2], uint32_t keys, uint32_t values, int hidden, int visible, float scale) {
    int lane = threadIdx.x % 32;
    float scores[N][2][4] = {};
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; k++) {
        uint32_t a[4];
        load_matrices(a, keys + swizzled<HEAD_DIM>(lane % 16, 2 * k + lane / 16));
        // Two accumulator chains, as the latency of one would dominate this function.
#pragma unroll
        for (int n = 0; n < N; n++) mma(scores[n][k % 2], a, q[n][k][0], q[n][k][1]);
    }
    uint32_t weights[N][2];
#pragma unroll
    for (int n = 0; n < N; n++) {
        float correction[2], p[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            p[i] = scores[n][0][i] + scores[n][1][i];
            int key = lane / 4 + i / 2 * 8;
            if (key >= visible || key < hidden) p[i] = -INFINITY;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float largest = fmaxf(p[i], p[i + 2]);
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 4));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 8));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 16));
            float new_max = fmaxf(max[n][i], largest * scale);
            correction[i] = power_of_two(max[n][i] - new_max);
            max[n][i] = new_max;
            p[i] = power_of_two(fmaf(p[i], scale, -new_max));
            p[i + 2] = power_of_two(fmaf(p[i + 2], scale, -new_max));
            total[n][i] = total[n][i] * correction[i] + p[i] + p[i + 2];
        }
        weights[n][0] = transpose(pack(p[0], p[1]));
        weights[n][1] = transpose(pack(p[2], p[3]));
#pragma unroll
        for (int m = 0; m < HEAD_DIM / 16; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[n][m][i] *= correction[i % 2];
        }
    }
#pragma unroll
    for (int m = 0; m < HEAD_DIM / 16; m++) {
        uint32_t a[4];
        load_transposed(a, values + swizzled<HEAD_DIM>(lane / 16 * 8 + lane % 8, 2 * m + lane / 8 % 2));
#pragma unroll
        for (int n = 0; n < N; n++) mma(sums[n][m], a, weights[n][0], weights[n][1]);
    }
}

// As cuda::DecodePart.
struct DecodePart {
    uint32_t row, first_part, num_parts;
};

// Work of a thread block: part `index` of `count`, for `heads` heads from `first_head` of the row on.
struct Share {
    int row, first_part, index, count, num_heads, first_head, heads;

    // Index of a head in the row's outputs, and in the part's results.
    __device__ __forceinline__ size_t output(int head) const { return (size_t)row * num_heads + first_head + head; }
    __device__ __forceinline__ size_t partial(int part, int head) const { return (size_t)(first_part + part) * num_heads + first_head + head; }
};

// Shared memory in which the parts of a row are added up.
template <int HEAD_DIM, int N> struct Combined {
    float2 stats[8 * N][MAX_PARTS];
    float weights[8 * N][MAX_PARTS];
    // [parts at once][heads][HEAD_DIM]
    float sums[(SHARED_BYTES<HEAD_DIM> - 8 * N * MAX_PARTS * (int)sizeof(float3)) / sizeof(float)];
};

// Starts the copy of `count` parts from `first` on.
template <int HEAD_DIM>
__device__ __forceinline__ void fetch_parts(const Share &share, int first, int count, const float *partial_sums, float *to) {
    int vectors = share.heads * HEAD_DIM / 4;
    for (int part = threadIdx.x / 32; part < count; part += WARPS) {
        const float *from = partial_sums + share.partial(first + part, 0) * HEAD_DIM;
        for (int i = threadIdx.x % 32; i < vectors; i += 32) copy_async(shared_address(to + (part * vectors + i) * 4), from + i * 4, true);
    }
    commit_copies();
}

// Adds up the parts of a row, in their order; run by the last thread block of the row to finish.
template <int HEAD_DIM, int N>
__device__ __forceinline__ void combine(const Share &share, const float *partial_sums, const float2 *partial_stats, bf16 *out,
                                        Combined<HEAD_DIM, N> &shared) {
    constexpr int VECTORS = HEAD_DIM / 4, ITEMS = 8 * N * VECTORS / (WARPS * 32);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, room = sizeof(shared.sums) / (share.heads * HEAD_DIM * sizeof(float));
    fetch_parts<HEAD_DIM>(share, 0, min(room, share.count), partial_sums, shared.sums);
    for (int part = threadIdx.x / 8; part < share.count; part += WARPS * 4) {
        for (int head = threadIdx.x % 8; head < share.heads; head += 8)
            shared.stats[head][part] = __ldcg(partial_stats + share.partial(part, head));
    }
    __syncthreads();
    for (int head = warp; head < share.heads; head += WARPS) {
        float max = -INFINITY, total = 0.f;
        for (int part = lane; part < share.count; part += 32) max = fmaxf(max, shared.stats[head][part].x);
        max = warp_max(max);
        for (int part = lane; part < share.count; part += 32) total += shared.stats[head][part].y * power_of_two(shared.stats[head][part].x - max);
        float inverse = 1.f / warp_sum(total);
        for (int part = lane; part < share.count; part += 32)
            shared.weights[head][part] = power_of_two(shared.stats[head][part].x - max) * inverse;
    }
    float4 sums[ITEMS] = {};
    for (int first = 0; first < share.count; first += room) {
        int count = min(room, share.count - first);
        if (first > 0) fetch_parts<HEAD_DIM>(share, first, count, partial_sums, shared.sums);
        wait_copies<0>();
        __syncthreads();
#pragma unroll
        for (int j = 0; j < ITEMS; j++) {
            int i = threadIdx.x + j * WARPS * 32, head = i / VECTORS;
            if (head >= share.heads) continue;
            const float *weights = shared.weights[head] + first;
            const float4 *from = (const float4 *)shared.sums + i;
#pragma unroll 8
            for (int part = 0; part < count; part++) {
                float weight = weights[part];
                float4 x = from[part * share.heads * VECTORS];
                sums[j].x += weight * x.x, sums[j].y += weight * x.y, sums[j].z += weight * x.z, sums[j].w += weight * x.w;
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < ITEMS; j++) {
        int i = threadIdx.x + j * WARPS * 32;
        if (i >= share.heads * VECTORS) continue;
        uint2 x = make_uint2(pack(sums[j].x, sums[j].y), pack(sums[j].z, sums[j].w));
        *(uint2 *)(out + share.output(0) * HEAD_DIM + i * 4) = x;
    }
}

// Counts one more part of a row as done; writes of parts counted earlier are visible afterwards.
__device__ __forceinline__ uint32_t arrive(uint32_t *arrived) {
    uint32_t before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(arrived) : "memory");
    return before;
}

// Combines the warps' sums and writes them to `out` if the row has no other part, else to `partial_sums` and `partial_stats`.
template <int HEAD_DIM, int N>
__device__ __forceinline__ void store(const Share &share, float (&sums)[N][HEAD_DIM / 16][4], float (&max)[N][2], float (&total)[N][2], bf16 *out,
                                      float *partial_sums, float2 *partial_stats, float *shared) {
    __shared__ float2 stats[WARPS][8 * N];
    // [WARPS][8 N][PITCH]; four elements more than a head avoid bank conflicts between a warp's stores.
    constexpr int PITCH = HEAD_DIM + 4;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int head = n * 8 + lane % 4 * 2 + i;
            total[n][i] += __shfl_xor_sync(~0u, total[n][i], 4);
            total[n][i] += __shfl_xor_sync(~0u, total[n][i], 8);
            total[n][i] += __shfl_xor_sync(~0u, total[n][i], 16);
            if (lane < 4) stats[warp][head] = make_float2(max[n][i], total[n][i]);
            float *to = shared + (warp * 8 * N + head) * PITCH + lane / 4;
#pragma unroll
            for (int m = 0; m < HEAD_DIM / 16; m++) {
                to[m * 16] = sums[n][m][i];
                to[m * 16 + 8] = sums[n][m][i + 2];
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < share.heads * HEAD_DIM / 2; i += blockDim.x) {
        int head = i / (HEAD_DIM / 2), d = i % (HEAD_DIM / 2) * 2;
        float largest = -INFINITY, sum = 0.f;
        float2 both = {};
#pragma unroll
        for (int w = 0; w < WARPS; w++) largest = fmaxf(largest, stats[w][head].x);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            // Zero for a warp that had no stage.
            float weight = power_of_two(stats[w][head].x - largest);
            float2 of_warp = *(float2 *)(shared + (w * 8 * N + head) * PITCH + d);
            sum += weight * stats[w][head].y;
            both.x += weight * of_warp.x;
            both.y += weight * of_warp.y;
        }
        if (share.count == 1) {
            *(uint32_t *)(out + share.output(head) * HEAD_DIM + d) = pack(both.x / sum, both.y / sum);
        } else {
            size_t at = share.partial(share.index, head);
            *(float2 *)(partial_sums + at * HEAD_DIM + d) = both;
            if (d == 0) partial_stats[at] = make_float2(largest, sum);
        }
    }
}

// `out` [rows][num_heads * HEAD_DIM]. Only for rows of more than one part: `partial_sums` [parts][num_heads][HEAD_DIM], `partial_stats`
// [parts][num_heads] (maximum, total), and `arrived` [parts][gridDim.y], zero before and after.
template <int HEAD_DIM, int N>
__device__ __forceinline__ void decode(const bf16 *q, const uint32_t *positions, const DecodePart *parts, const uint32_t *block_tables,
                                       const bf16 *keys, const bf16 *values, Sizes sizes, bf16 *out, float *partial_sums,
                                       float2 *partial_stats, uint32_t *arrived) {
    extern __shared__ __align__(128) bf16 ring[];
    __shared__ bool is_last;
    constexpr int CHUNKS = HEAD_DIM / 8;
    constexpr uint32_t STAGE = STAGE_KEYS * HEAD_DIM * sizeof(bf16);
    DecodePart part = parts[blockIdx.x];
    if (part.row == NO_SEQUENCE) return;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = part.row;
    int num_kv_heads = sizes.num_kv_heads, group = sizes.num_heads / num_kv_heads, cuts = gridDim.y / num_kv_heads;
    int kv_head = blockIdx.y / cuts, first_of_group = blockIdx.y % cuts * 8 * N;
    uint32_t position = positions[row], kv_len = position == NO_SEQUENCE ? 0 : position + 1;
    int first_key = kv_len == 0 ? 0 : sizes.first_visible(position), first_block = first_key / BLOCK;
    int blocks = (kv_len + BLOCK - 1) / BLOCK - first_block;
    // If a row has fewer blocks than parts, its last parts are empty.
    Share share = {row,
                   (int)part.first_part,
                   (int)(blockIdx.x - part.first_part),
                   min((int)part.num_parts, blocks),
                   sizes.num_heads,
                   kv_head * group + first_of_group,
                   min(group - first_of_group, 8 * N)};
    if (share.index >= share.count) {
        for (int i = threadIdx.x; blocks == 0 && share.index == 0 && i < share.heads * HEAD_DIM; i += blockDim.x)
            out[share.output(0) * HEAD_DIM + i] = __float2bfloat16(0.f);
        return;
    }
    // Counted in stages: the last of them may have fewer keys.
    int first = max((first_block + share.index * blocks / share.count) * (BLOCK / STAGE_KEYS), first_key / STAGE_KEYS);
    int last = min((first_block + (share.index + 1) * blocks / share.count) * (BLOCK / STAGE_KEYS), (int)((kv_len + STAGE_KEYS - 1) / STAGE_KEYS));

    uint32_t fragments[N][HEAD_DIM / 16][2];
#pragma unroll
    for (int n = 0; n < N; n++) {
        bool there = n * 8 + lane / 4 < share.heads;
        const bf16 *head = q + (size_t)row * sizes.q_stride + (share.first_head + n * 8 + lane / 4) * HEAD_DIM + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; k++) {
            fragments[n][k][0] = there ? *(const uint32_t *)(head + k * 16) : 0;
            fragments[n][k][1] = there ? *(const uint32_t *)(head + k * 16 + 8) : 0;
        }
    }

    // This warp's stages are first + warp, first + warp + WARPS, ...; its lanes hold the blocks of 32 of them, and of the next 32.
    const uint32_t *table = block_tables + (size_t)row * sizes.max_blocks;
    auto block_of = [&](int i) {
        int stage = first + warp + i * WARPS;
        return stage < last ? __ldg(table + stage / (BLOCK / STAGE_KEYS)) : 0;
    };
    uint32_t now = block_of(lane), later = block_of(32 + lane), base = shared_address(ring) + warp * STAGES<HEAD_DIM> * 2 * STAGE;
    int count = max(0, (last - first - warp + WARPS - 1) / WARPS);
    auto fetch = [&](int i) {
        if (i > 0 && i % 32 == 0) {
            now = later;
            later = block_of(i + 32 + lane);
        }
        size_t block = (size_t)sizes.layer * sizes.num_blocks + __shfl_sync(~0u, now, i % 32);
        int stage = first + warp + i * WARPS, first_slot = stage * STAGE_KEYS % BLOCK;
        size_t offset = ((block * num_kv_heads + kv_head) * BLOCK + first_slot) * HEAD_DIM;
        uint32_t to = base + i % STAGES<HEAD_DIM> * 2 * STAGE;
#pragma unroll
        for (int j = 0; j < STAGE_KEYS * CHUNKS / 32; j++) {
            int at = j * 32 + lane, key = at / CHUNKS, chunk = at % CHUNKS;
            copy_async(to + swizzled<HEAD_DIM>(key, chunk), keys + offset + at * 8, stage * STAGE_KEYS + key < kv_len);
        }
#pragma unroll
        for (int j = 0; j < STAGE_KEYS * CHUNKS / 32; j++) {
            int at = j * 32 + lane, key = at / CHUNKS, chunk = at % CHUNKS;
            copy_async(to + STAGE + swizzled<HEAD_DIM>(key, chunk), values + offset + at * 8, stage * STAGE_KEYS + key < kv_len);
        }
    };

    float sums[N][HEAD_DIM / 16][4] = {}, max_score[N][2], total[N][2] = {};
#pragma unroll
    for (int n = 0; n < N; n++) max_score[n][0] = max_score[n][1] = -INFINITY;
    float scale = sizes.scale * LOG2_E;
    for (int i = 0; i < STAGES<HEAD_DIM> - 1; i++) {
        if (i < count) fetch(i);
        commit_copies();
    }
    for (int i = 0; i < count; i++) {
        wait_copies<STAGES<HEAD_DIM> - 2>();
        // After this, all lanes' copies of stage i are visible, and all have read stage i - 1, whose buffer is filled next.
        __syncwarp();
        if (i + STAGES<HEAD_DIM> - 1 < count) fetch(i + STAGES<HEAD_DIM> - 1);
        commit_copies();
        uint32_t stage = base + i % STAGES<HEAD_DIM> * 2 * STAGE;
        int start = (first + warp + i * WARPS) * STAGE_KEYS;
        attend<HEAD_DIM, N>(sums, max_score, total, fragments, stage, stage + STAGE, first_key - start, (int)kv_len - start, scale);
    }

    store<HEAD_DIM, N>(share, sums, max_score, total, out, partial_sums, partial_stats, (float *)ring);
    if (share.count == 1) return;
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *done = arrived + (size_t)share.first_part * gridDim.y + blockIdx.y;
        is_last = arrive(done) == share.count - 1;
        if (is_last) *done = 0;
    }
    __syncthreads();
    if (is_last) combine<HEAD_DIM, N>(share, partial_sums, partial_stats, out, *(Combined<HEAD_DIM, N> *)ring);
}

#define DECODE(HEAD_DIM, HEADS)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) decode_##HEAD_DIM##_##HEADS(                                                    \
        const bf16 *q, const uint32_t *positions, const DecodePart *parts, const uint32_t *block_tables, const bf16 *keys,                   \
        const bf16 *values, Sizes sizes, bf16 *out, float *partial_sums, float2 *partial_stats, uint32_t *arrived) {                         \
        decode<HEAD_DIM, HEADS / 8>(q, positions, parts, block_tables, keys, values, sizes, out, partial_sums, partial_stats, arrived);      \
    }
DECODE(64, 8)
DECODE(64, 16)
DECODE(128, 8)
DECODE(128, 16)
DECODE(256, 8)
