// Stands in for CUDA's header of this name, so that sources which cubecl prints run on a processor: units of a cube are fibers that take turns, planes have 32 of
// them. A barrier that not all units of a cube reach, or a shuffle that not all of a plane do, ends the program.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define __global__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(units)
#define __align__(bytes) __attribute__((aligned(bytes)))

using std::exp;
using std::log;
using std::sqrt;
static unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
static float min(float a, float b) { return fminf(a, b); }
static float max(float a, float b) { return fmaxf(a, b); }

struct Three { unsigned x = 0, y = 0, z = 0; };
static Three threadIdx, blockIdx, blockDim, gridDim;
static const unsigned warpSize = 32;

enum State { runs, at_barrier, in_shuffle, ended };
struct Fiber { ucontext_t context; State state = runs; float told = 0; };
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static unsigned current;
static std::function<void()> body;

static void wait(State state) {
    fibers[current].state = state;
    swapcontext(&fibers[current].context, &scheduler);
}
static void __syncthreads() { wait(at_barrier); }
static float __shfl_xor_sync(int, float value, unsigned offset) {
    unsigned unit = current;
    fibers[unit].told = value;
    wait(in_shuffle);
    float other = fibers[unit ^ offset].told;
    wait(in_shuffle);
    return other;
}
static void start() {
    body();
    fibers[current].state = ended;
}

// Lets units from `from` to `to` go on if all of them are in this state.
static bool release(unsigned from, unsigned to, State state) {
    for (unsigned unit = from; unit < to; unit++) if (fibers[unit].state != state) return false;
    for (unsigned unit = from; unit < to; unit++) fibers[unit].state = runs;
    return true;
}

static void run_cube(unsigned units) {
    const size_t bytes = 1 << 16;
    static std::vector<char> stacks;
    stacks.resize(bytes * units);
    fibers.assign(units, Fiber());
    for (unsigned unit = 0; unit < units; unit++) {
        ucontext_t &context = fibers[unit].context;
        getcontext(&context);
        context.uc_stack.ss_sp = &stacks[bytes * unit];
        context.uc_stack.ss_size = bytes;
        context.uc_link = &scheduler;
        makecontext(&context, start, 0);
    }
    for (;;) {
        for (unsigned unit = 0; unit < units; unit++) {
            if (fibers[unit].state != runs) continue;
            current = threadIdx.x = unit;
            swapcontext(&scheduler, &fibers[unit].context);
        }
        bool all_ended = true, progress = release(0, units, at_barrier);
        for (const Fiber &fiber : fibers) all_ended &= fiber.state == ended;
        if (all_ended) return;
        for (unsigned plane = 0; plane < units; plane += warpSize) progress |= release(plane, min(plane + warpSize, units), in_shuffle);
        if (!progress) { printf("some units wait for others that do not come\n"); exit(3); }
    }
}

// Cubes, one after the other.
template <class Run> void launch(unsigned across, unsigned down, unsigned units, Run run) {
    gridDim = {across, down, 1};
    blockDim = {units, 1, 1};
    body = run;
    for (unsigned y = 0; y < down; y++) for (unsigned x = 0; x < across; x++) {
        blockIdx = {x, y, 0};
        run_cube(units);
    }
}

// For the tests: numbers from -1 to 1, and bf16.
static float noise() { return 2.0f * rand() / RAND_MAX - 1; }
static uint32_t bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
static float bf16(uint32_t half) { half <<= 16; float value; memcpy(&value, &half, 4); return value; }

// The program's end: whether `worst` is as good as f32 sums are.
static int verdict(const char *what, double worst) {
    printf("%s: off by %.1e at most\n", what, worst);
    return worst < 1e-5 ? 0 : 1;
}
