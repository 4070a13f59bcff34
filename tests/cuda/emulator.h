// The part of CUDA that the kernels use, on host threads: every thread of a block is one, blocks run in turn.
#pragma once
#include <barrier>
#include <cmath>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

struct dim3 { unsigned int x; };
struct alignas(8) uint2 { unsigned int x, y; };
struct alignas(16) float4 { float x, y, z, w; };

inline dim3 gridDim, blockDim;
inline thread_local dim3 blockIdx, threadIdx;
inline std::optional<std::barrier<>> barrier;

#define __global__ inline
#define __device__
#define __shared__
#define __restrict__
#define __launch_bounds__(...)
inline float sums[8192];  // the kernels' dynamic shared memory, by name
inline void __syncthreads() { barrier->arrive_and_wait(); }

template <typename word> inline void __stwb(word* to, word from) { *to = from; }

template <typename to, typename from> inline to bit_cast(from x) {
  to y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline float __uint_as_float(unsigned int bits) { return bit_cast<float>(bits); }
inline unsigned int __float_as_uint(float x) { return bit_cast<unsigned int>(x); }
inline float half_to_float(unsigned short bits) { return bit_cast<_Float16>(bits); }
inline unsigned short float_to_half(float x) { return bit_cast<unsigned short>((_Float16)x); }

// Shared memory starts as NaN, so that a kernel which reads what it did not write is found out.
template <typename kernel> void emulate(int blocks, int threads, kernel run) {
  gridDim.x = blocks, blockDim.x = threads;
  barrier.emplace(threads);
  std::vector<std::jthread> team;
  for (int i = 0; i < threads; i++)
    team.emplace_back([=] {
      threadIdx.x = i;
      for (int block = 0; block < blocks; block++) {
        blockIdx.x = block;
        if (i == 0) for (float& x : sums) x = NAN;
        __syncthreads();
        run();
        __syncthreads();
      }
    });
}
