// The EM-PF sequence (EM-PF, Eq. 3-5) and its gradient; reference.py has the equations and what each argument means.
// Bound by memory: a thread keeps V neurons in registers over all T steps and loads UNROLL steps ahead of their use.
#include "common.cuh"

constexpr int UNROLL = 4;

// HD-LIF: steps of 1/4, half to even; top = 2^bits - 1 levels, 0 for float spikes. Comparisons let a NaN through.
__device__ inline float quantize(float s, float top) {
  if (top == 0) return s;
  float level = rintf(s * 4);
  return (level > top ? top : level) / 4;
}

// Optional outputs are null: v_seq [T, N], and fired [ceil(T/8), N], whose bit t % 8 of row t / 8 is chi[t].
template <typename scalar_t, int V>
__global__ void empf_forward(const scalar_t* __restrict__ x, const float* __restrict__ v0,
                             const float* __restrict__ decay, const float* __restrict__ threshold,
                             scalar_t* __restrict__ s, float* __restrict__ v_last, float* __restrict__ v_seq,
                             unsigned char* __restrict__ fired, long long N, long long T, long long decay_stride,
                             long long threshold_stride, float top) {
  FOR_EACH_NEURON(n, N, V) {
    float v[V];
    load(v0 + n, v);
    Pack<unsigned char, V> bits = {};
    for (int t0 = 0; t0 < T; t0 += UNROLL) {
      float current[UNROLL][V];
#pragma unroll
      for (int k = 0; k < UNROLL; k++)
        if (t0 + k < T) load(x + (t0 + k) * N + n, current[k]);
#pragma unroll
      for (int k = 0; k < UNROLL; k++) {
        int t = t0 + k;
        if (t >= T) break;
        float lam = decay[t * decay_stride], th = threshold[t * threshold_stride], spike[V];
#pragma unroll
        for (int i = 0; i < V; i++) {
          float m = lam * v[i] + current[k][i];
          v[i] = m > th ? th : m;
          spike[i] = quantize(m - v[i], top);
          bits.lane[i] |= (m >= th) << (t % 8);
        }
        store(s + t * N + n, spike);
        if (v_seq) store(v_seq + t * N + n, v);
        if (fired && (t % 8 == 7 || t == T - 1)) {
          *reinterpret_cast<Pack<unsigned char, V>*>(fired + t / 8 * N + n) = bits;
          bits = {};
        }
      }
    }
    store(v_last + n, v);
  }
}

// chi[t] of V neurons from what the forward kept: v[t], which equals the threshold where it fired, or the fired bits.
template <int V>
__device__ inline void load_fired(const float* v_seq, long long n, long long N, int t, float th, bool (&fired)[V]) {
  float v[V];
  load(v_seq + t * N + n, v);
#pragma unroll
  for (int i = 0; i < V; i++) fired[i] = v[i] == th;
}

template <int V>
__device__ inline void load_fired(const unsigned char* bits, long long n, long long N, int t, float, bool (&fired)[V]) {
  auto pack = *reinterpret_cast<const Pack<unsigned char, V>*>(bits + t / 8 * N + n);
#pragma unroll
  for (int i = 0; i < V; i++) fired[i] = pack.lane[i] >> (t % 8) & 1;
}
