// Inputs of attention kernels: query rows of a batch, block tables, and one layer of the KV pool.
#pragma once
#include "common.cuh"

// As cuda::paged::Sizes. A row attends to the last `window` positions up to its own.
struct Sizes {
    int q_stride, max_blocks, layer, num_blocks, num_heads, num_kv_heads, window;
    float scale;

    // First position that a row at `position` attends to.
    __device__ __forceinline__ int first_visible(int position) const { return max(position - window + 1, 0); }
};

// As cuda::Tile.
struct Tile {
    uint32_t first_row, num_rows, table, kv_len;
};
