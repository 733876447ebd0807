// Updates keys and values of some slots by weighted sums of the changes of others. Counterpart: cpu::KvLayer::follow_drift.
//
// A warp holds eight targets, so that a sample's change, 4,096 bytes of Qwen2.5-7B, comes from L2 once for them all. Only nearby samples
// have weight: some 16 of a 512-token piece with one token in ten recomputed. That is 60 MB per layer for 8,000 targets.
#include "heads.cuh"

// Targets per tile; elements of half a head per thread; targets whose loads are issued together.
constexpr int TARGETS = 8, NUMBERS = 4, TOGETHER = 4;

// A tile is [first target, targets, first sample, samples, first weight]; weights are [targets][samples]. The grid is (tiles, groups of
// heads), the heads those of K, then those of V.
template <int HEAD_DIM>
__device__ __forceinline__ void follow(bf16 *keys, bf16 *values, int layer, int num_blocks, int num_kv_heads, const float2 *cos_sin,
                                       bool interleaved, const uint32_t *tiles, const uint32_t *positions, const uint32_t *slots,
                                       const float *weights, const float *differences) {
    typedef HeadPart<HEAD_DIM, NUMBERS> Part;
    const uint32_t *tile = tiles + 5 * blockIdx.x;
    uint32_t first_target = tile[0], num_targets = tile[1], first_sample = tile[2], num_samples = tile[3], first_weight = tile[4];
    int thread = blockIdx.y * blockDim.x + threadIdx.x, lane = thread % Part::LANES, head = thread / Part::LANES;
    bool is_v = head >= num_kv_heads, has_head = head < 2 * num_kv_heads;
    const float *changes = differences + ((size_t)first_sample * 2 * num_kv_heads + head) * HEAD_DIM;
    auto change_of = [&](uint32_t sample) {
        return has_head ? Part::load(changes + (size_t)sample * 2 * num_kv_heads * HEAD_DIM, lane) : Part{};
    };
    Part sums[TARGETS] = {};
    for (uint32_t first = 0; first < num_samples; first += 32) {
        uint32_t sample = first + threadIdx.x % 32;
        float weight[TARGETS];
        bool counts = false;
#pragma unroll
        for (int t = 0; t < TARGETS; t++) {
            bool exists = t < num_targets && sample < num_samples;
            weight[t] = exists ? weights[first_weight + t * num_samples + sample] : 0.f;
            counts |= weight[t] != 0.f;
        }
        uint32_t left = __ballot_sync(~0u, counts);
        Part ahead = {};
        if (left) ahead = change_of(first + __ffs(left) - 1);
        while (left) {
            int of = __ffs(left) - 1;
            Part change = ahead;
            left &= left - 1;
            if (left) ahead = change_of(first + __ffs(left) - 1);
#pragma unroll
            for (int t = 0; t < TARGETS; t++) {
                float share = __shfl_sync(~0u, weight[t], of);
#pragma unroll
                for (int i = 0; i < NUMBERS; i++) {
                    sums[t].low[i] = __fmaf_rn(share, change.low[i], sums[t].low[i]);
                    sums[t].high[i] = __fmaf_rn(share, change.high[i], sums[t].high[i]);
                }
            }
        }
    }
    if (!has_head) return;
    bf16 *pool = is_v ? values : keys;
    int kv_head = is_v ? head - num_kv_heads : head;
    auto stored = [&](uint32_t slot) { return (Short<NUMBERS> *)(pool + pool_offset(layer, num_blocks, num_kv_heads, HEAD_DIM, slot, kv_head)); };
    // Loads all operands before any write, so that the targets' memory latencies overlap: half of them at a time, which leaves registers
    // for more warps.
#pragma unroll
    for (int first = 0; first < TARGETS; first += TOGETHER) {
        uint32_t slot[TOGETHER], target[TOGETHER];
        Short<NUMBERS> low[TOGETHER], high[TOGETHER];
#pragma unroll
        for (int t = 0; t < TOGETHER; t++) {
            target[t] = first_target + min(first + t, (int)num_targets - 1);
            slot[t] = slots[target[t]];
            low[t] = stored(slot[t])[lane], high[t] = stored(slot[t])[Part::LANES + lane];
        }
#pragma unroll
        for (int t = 0; t < TOGETHER; t++) {
            Part &sum = sums[first + t], part;
            if (!is_v) {
                const float2 *row = cos_sin + (size_t)positions[target[t]] * (HEAD_DIM / 2);
                sum.rotate(Angles<NUMBERS>::load<HEAD_DIM>(row, lane, interleaved), interleaved, 1.f);
            }
            low[t].widen(part.low);
            high[t].widen(part.high);
#pragma unroll
            for (int i = 0; i < NUMBERS; i++) sum.low[i] += part.low[i], sum.high[i] += part.high[i];
        }
#pragma unroll
        for (int t = 0; t < TOGETHER; t++) {
            if (first + t < num_targets) sums[first + t].store((bf16 *)stored(slot[t]), lane);
        }
    }
}

#define FOLLOW(HEAD_DIM)                                                                                                               \
    extern "C" __global__ __launch_bounds__(128, 4) void follow_##HEAD_DIM(                                                               \
        bf16 *keys, bf16 *values, int layer, int num_blocks, int num_kv_heads, const float2 *cos_sin, int interleaved,                 \
        const uint32_t *tiles, const uint32_t *positions, const uint32_t *slots, const float *weights, const float *differences) {     \
        follow<HEAD_DIM>(keys, values, layer, num_blocks, num_kv_heads, cos_sin, interleaved, tiles, positions, slots, weights,        \
                         differences);                                                                                                 \
    }
FOLLOW(64)
FOLLOW(128)
FOLLOW(256)
