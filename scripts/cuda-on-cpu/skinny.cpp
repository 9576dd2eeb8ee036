// A product with a weight in bf16 for few rows, beside sums in double precision. ROWS is how many rows the kernel, SOURCE, takes at a time.
#include <cuda_runtime.h>
#include SOURCE
alignas(16) uint8 dynamic_shared_mem[1 << 18];

static double product(unsigned rows, unsigned inputs) {
    const unsigned outputs = 37, of_row = (inputs + 1) / 2, of_cube = 4 * (ROWS <= 2 ? 2 : 4);
    std::vector<float> x(rows * inputs), out(rows * outputs), weights(outputs * inputs), nothing(16);
    std::vector<uint32> words(outputs * of_row);
    for (float &value : x) value = noise();
    for (unsigned i = 0; i < outputs * inputs; i++) {
        uint32 half = bits(noise() / 16) >> 16, at = i % inputs;
        weights[i] = bf16(half);
        words[i / inputs * of_row + at / 2] |= half << (16 * (at % 2));
    }
    info_st info{};
    const uint32 numbers[] = {0, rows, inputs, of_row, 0, 0, outputs, outputs, 0, outputs, 1};
    memcpy(info.scalars_uint32, numbers, sizeof numbers);
    launch((outputs + of_cube - 1) / of_cube, (rows + ROWS - 1) / ROWS, 128, [&] {
        skinny_kernel(x.data(), words.data(), words.data(), nothing.data(), nothing.data(), nothing.data(), words.data(), out.data(), nothing.data(), info);
    });
    double worst = 0;
    for (unsigned row = 0; row < rows; row++) for (unsigned o = 0; o < outputs; o++) {
        double sum = 0;
        for (unsigned i = 0; i < inputs; i++) sum += double(x[row * inputs + i]) * weights[o * inputs + i];
        worst = fmax(worst, fabs(sum - out[row * outputs + o]));
    }
    return worst;
}

int main() {
    char what[32];
    snprintf(what, sizeof what, "product, rows: %d", ROWS);
    // Whole tiles of the depth, a part of one, half a word; rows that are fewer than the kernel takes, as many, and more.
    return verdict(what, fmax(product(ROWS, 1024), fmax(product(ROWS + 1, 1000), product((ROWS + 1) / 2, 515))));
}
