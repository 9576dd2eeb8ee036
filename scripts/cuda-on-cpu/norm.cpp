// The root mean square norm of rows, beside sums in double precision, and what its watch notes of a row that is not finite.
#include <cuda_runtime.h>
#include "rms.0_norm.cu"
alignas(16) uint8 dynamic_shared_mem[1 << 18];

int main() {
    const unsigned rows = 5, width = 777;
    std::vector<float> x(rows * width), weights(width), out(rows * width), nothing(4);
    for (float &value : x) value = noise();
    for (float &value : weights) value = noise();
    info_st info{};
    info.scalars_float[0] = 1e-5f;
    const uint32 place = 7, numbers[] = {place, rows, width, 1, width};
    memcpy(info.scalars_uint32, numbers, sizeof numbers);
    uint32 noticed = 0;
    // Two cubes too many.
    const auto norm = [&] {
        launch(rows + 2, 1, 256, [&] { norm_kernel(x.data(), weights.data(), nothing.data(), out.data(), nothing.data(), &noticed, info); });
    };
    for (float bad : {NAN, INFINITY, 3e38f}) {
        std::swap(x[3 * width + 5], bad);
        noticed = 0;
        norm();
        std::swap(x[3 * width + 5], bad);
        if (noticed != place) return verdict("norm, what is not finite", INFINITY);
    }
    noticed = 0;
    norm();
    if (noticed != 0) return verdict("norm, what is finite", INFINITY);
    double worst = 0;
    for (unsigned row = 0; row < rows; row++) {
        double squares = 0;
        for (unsigned i = 0; i < width; i++) squares += double(x[row * width + i]) * x[row * width + i];
        for (unsigned i = 0; i < width; i++) {
            double expected = x[row * width + i] / sqrt(squares / width + 1e-5) * weights[i];
            worst = fmax(worst, fabs(expected - out[row * width + i]));
        }
    }
    return verdict("norm", worst);
}
