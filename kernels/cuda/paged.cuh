// Inputs of attention kernels: query rows of a batch, block tables, and one layer of the KV pool.
#pragma once
#include "common.cuh"

// As cuda::paged::Sizes.
struct Sizes {
    int q_stride, max_blocks, layer, num_blocks, num_heads, num_kv_heads;
    float scale;
};

// As cuda::Tile.
struct Tile {
    uint32_t first_row, num_rows, table, kv_len;
};
