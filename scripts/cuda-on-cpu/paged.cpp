// Attention of one row over pages in bf16, in two parts that are put together, beside sums in double precision: 8 heads of 128 keys, a query head each.
#include <cuda_runtime.h>
namespace parts {
#include "paged_128x1_bf16_long.0_forward.cu"
alignas(16) uint8 dynamic_shared_mem[1 << 18];
}
namespace whole {
#include "paged_128x1_bf16_long.1_combine.cu"
alignas(16) unsigned char dynamic_shared_mem[1 << 18];
}

int main() {
    const unsigned heads = 8, dim = 128, page = 64, length = 333, pages = 6, splits = 2, from = 3;
    const float scale = 0.2f;
    const unsigned table[pages] = {4, 1, 5, 0, 3, 2};
    std::vector<float> q(heads * dim), sums(splits * heads * dim), extents(2 * splits * heads), out(heads * dim), nothing(4);
    std::vector<uint32_t> words(pages * 2 * heads * page * dim / 2), numbers(table, table + pages);
    for (float &value : q) value = noise();
    // What nobody wrote to is no number.
    for (uint32_t &word : words) word = 0x7fc07fc0;
    auto place = [&](unsigned position, unsigned side, unsigned head, unsigned i) {
        return (((table[position / page] * 2 + side) * heads + head) * page + position % page) * dim + i;
    };
    for (unsigned position = 0; position < length; position++) for (unsigned i = 0; i < 2 * heads * dim; i += 2) {
        words[place(position, i / (heads * dim), i / dim % heads, i % dim) / 2] = bits(noise()) >> 16 | (bits(noise()) & 0xffff0000);
    }
    auto kept = [&](unsigned position, unsigned side, unsigned head, unsigned i) {
        unsigned at = place(position, side, head, i);
        return double(bf16(words[at / 2] >> (16 * (at % 2)) & 0xffff));
    };
    // The row, its first query and how many, where its pages are, nothing, and what it sees.
    const uint32_t tiles[] = {0, 0, 1, 0, 0, from, length}, visible[] = {from, length};
    parts::info_st info{};
    const float floats[] = {scale, 1, 1};
    const uint32_t counts[] = {1, 1, splits};
    memcpy(info.scalars_float, floats, sizeof floats);
    memcpy(info.scalars_uint32, counts, sizeof counts);
    launch(heads * splits, 1, 128, [&] {
        parts::forward_kernel(q.data(), words.data(), nothing.data(), numbers.data(), tiles, visible, nothing.data(), nothing.data(), sums.data(), extents.data(), info);
    });
    whole::info_st last{};
    const uint32_t sizes[] = {splits, heads, heads * dim};
    memcpy(last.scalars_uint32, sizes, sizeof sizes);
    launch(heads * dim / 128, 1, 128, [&] { whole::combine_kernel(sums.data(), extents.data(), nothing.data(), out.data(), last); });
    double worst = 0;
    for (unsigned head = 0; head < heads; head++) {
        std::vector<double> weights(length);
        double largest = -1e30, total = 0;
        for (unsigned position = from; position < length; position++) {
            for (unsigned i = 0; i < dim; i++) weights[position] += scale * q[head * dim + i] * kept(position, 0, head, i);
            largest = fmax(largest, weights[position]);
        }
        for (unsigned position = from; position < length; position++) total += weights[position] = exp(weights[position] - largest);
        for (unsigned i = 0; i < dim; i++) {
            double expected = 0;
            for (unsigned position = from; position < length; position++) expected += weights[position] / total * kept(position, 1, head, i);
            worst = fmax(worst, fabs(expected - out[head * dim + i]));
        }
    }
    return verdict("attention over pages", worst);
}
