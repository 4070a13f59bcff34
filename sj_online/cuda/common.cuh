// What the kernels share: 16-bit storage, vector loads and stores, sums over a block in a fixed order.
// No header is included, so that NVRTC needs none; scalar_t is the dtype of x, the state is always float.
#pragma once

struct half_t { unsigned short bits; };
struct bfloat16_t { unsigned short bits; };

#ifdef __CUDACC__
__device__ inline float half_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

__device__ inline unsigned short float_to_half(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
#endif

__device__ inline unsigned short float_to_bfloat16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else  // round half to even; a NaN must not be rounded to infinity
  unsigned int bits = __float_as_uint(x);
  if (x != x) return 0x7fff;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#endif
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(half_t x) { return half_to_float(x.bits); }
__device__ inline float to_float(bfloat16_t x) { return __uint_as_float((unsigned int)x.bits << 16); }
__device__ inline half_t from_float(float x, half_t) { return {float_to_half(x)}; }
__device__ inline bfloat16_t from_float(float x, bfloat16_t) { return {float_to_bfloat16(x)}; }

// V neighbours in memory, V = 1 or 4, moved by one instruction.
template <typename scalar_t, int V>
struct alignas(V * sizeof(scalar_t)) Pack { scalar_t lane[V]; };

template <int V, typename scalar_t>
__device__ inline Pack<scalar_t, V> load_pack(const scalar_t* from) {
  return *reinterpret_cast<const Pack<scalar_t, V>*>(from);
}

template <int V, typename scalar_t>
__device__ inline void load(const scalar_t* from, float (&to)[V]) {
  Pack<scalar_t, V> pack = load_pack<V>(from);
#pragma unroll
  for (int i = 0; i < V; i++) to[i] = to_float(pack.lane[i]);
}

template <int V>
__device__ inline void load_add(const float* from, float (&to)[V]) {
  float x[V];
  load(from, x);
#pragma unroll
  for (int i = 0; i < V; i++) to[i] += x[i];
}

// __stwb is a plain store of one word: of a Pack the compiler makes V stores wherever a branch lies before it.
template <int V>
__device__ inline void store(float* to, const float (&x)[V]) {
  if constexpr (V == 4) __stwb(reinterpret_cast<float4*>(to), float4{x[0], x[1], x[2], x[3]});
  else *to = x[0];
}

template <int V, typename half>
__device__ inline void store(half* to, const float (&x)[V]) {
  unsigned int bits[V];
#pragma unroll
  for (int i = 0; i < V; i++) bits[i] = from_float(x[i], half()).bits;
  if constexpr (V == 4) __stwb(reinterpret_cast<uint2*>(to), uint2{bits[0] | bits[1] << 16, bits[2] | bits[3] << 16});
  else to->bits = bits[0];
}

template <int V>
__device__ inline void store_bytes(unsigned char* to, const unsigned int (&x)[V]) {
  if constexpr (V == 4) __stwb(reinterpret_cast<unsigned int*>(to), x[0] | x[1] << 8 | x[2] << 16 | x[3] << 24);
  else *to = x[0];
}

template <int V>
__device__ inline float sum(const float (&x)[V]) {
  float total = 0;
#pragma unroll
  for (int i = 0; i < V; i++) total += x[i];
  return total;
}

// A number of steps known to the compiler: for (...) steps(Count<UNROLL>(), t) leaves no branch between loads.
template <int K> struct Count { static constexpr int value = K; };

// A grid-stride loop over N neurons, V per thread and turn.
#define FOR_EACH_NEURON(n, N, V)                                                            \
  for (long long n = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * V; n < (N); \
       n += (long long)gridDim.x * blockDim.x * V)

// Parameter gradients: each thread adds to its own column of sums[slot][thread], so the order is fixed.
__device__ inline void clear_slots(float* sums, int slots) {
  for (int slot = 0; slot < slots; slot++) sums[slot * blockDim.x + threadIdx.x] = 0;
}

__device__ inline void add_to_slot(float* sums, int slot, float x) { sums[slot * blockDim.x + threadIdx.x] += x; }

// partial[block][slot] = the sum over the block's threads, as a tree; blockDim.x must be a power of two.
__device__ inline void reduce_slots(float* sums, int slots, float* partial) {
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    for (int i = threadIdx.x; i < slots * half; i += blockDim.x) {
      float* pair = sums + i / half * blockDim.x + i % half;
      pair[0] += pair[half];
    }
  }
  __syncthreads();
  for (int slot = threadIdx.x; slot < slots; slot += blockDim.x)
    partial[(long long)blockIdx.x * slots + slot] = sums[slot * blockDim.x];
}
