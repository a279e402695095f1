// Runs the kernels of gpu_decoder/gpu/kernels.cu on a CPU: one thread index after the other.
// KERNELS is the path of that file, given on the command line of the compiler.

#include <cstring>
#include <utility>

#define __global__

struct Dim { unsigned x; };
static Dim threadIdx, blockIdx, blockDim;

#include KERNELS

template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), void** params, std::index_sequence<I...>)
{
    kernel(*static_cast<A*>(params[I])...);
}

template <class... A>
static void run(void (*kernel)(A...), unsigned grid, unsigned block, void** params)
{
    blockDim.x = block;
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x)
            call(kernel, params, std::index_sequence_for<A...>());
}

template <class... A>
static int sizes(void (*)(A...), int* out)
{
    int n = 0;
    ((out[n++] = sizeof(A)), ...);
    return n;
}

#define KERNEL(name) if (std::strcmp(kernel, #name) == 0)

// As cuLaunchKernel: parameters by address. 0 or an error.
extern "C" int shim_launch(const char* kernel, unsigned grid, unsigned block, void** params)
{
    KERNEL(form_detectors) return run(form_detectors, grid, block, params), 0;
    KERNEL(pack_output) return run(pack_output, grid, block, params), 0;
    return 1;
}

// Sizes of the parameters in bytes; returns their number.
extern "C" int shim_sizes(const char* kernel, int* out)
{
    KERNEL(form_detectors) return sizes(form_detectors, out);
    KERNEL(pack_output) return sizes(pack_output, out);
    return 0;
}
