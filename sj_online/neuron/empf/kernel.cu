// The EM-PF sequence (EM-PF, Eq. 3-5) and its gradient; reference.py has the equations and what each argument means.
// Bound by memory: a thread keeps V neurons in registers over all T steps and loads UNROLL steps ahead of their use.
#include "common.cuh"

constexpr int UNROLL = 4;

// HD-LIF: steps of 1/4, half to even, top = 2^bits - 1 of them. A NaN stays one.
__device__ inline float quantize(float s, float top) {
  float level = rintf(s * 4);
  return (level > top ? top : level) / 4;
}

// Optional outputs are null: v_seq [T, N], and fired [ceil(T/8), N], whose bit t % 8 of row t / 8 is chi[t].
template <typename scalar_t, bool quantized, int V>
__global__ void __launch_bounds__(256)
empf_forward(const scalar_t* __restrict__ x, const float* __restrict__ v0, const float* __restrict__ decay,
             const float* __restrict__ threshold, scalar_t* __restrict__ s, float* __restrict__ v_last,
             float* __restrict__ v_seq, unsigned char* __restrict__ fired, long long N, long long T,
             long long decay_stride, long long threshold_stride, float top) {
  FOR_EACH_NEURON(n, N, V) {
    float v[V];
    unsigned int bits[V] = {};
    auto steps = [&](auto count, int t0) {
      float current[count.value][V], spike[V];
#pragma unroll
      for (int k = 0; k < count.value; k++) load(x + (t0 + k) * N + n, current[k]);
#pragma unroll
      for (int k = 0; k < count.value; k++) {
        int t = t0 + k;
        float lam = decay[t * decay_stride], th = threshold[t * threshold_stride];
#pragma unroll
        for (int i = 0; i < V; i++) {
          float m = lam * v[i] + current[k][i];
          v[i] = m > th ? th : m;
          spike[i] = quantized ? quantize(m - v[i], top) : m - v[i];
          bits[i] |= (m >= th) << t % 8;
        }
        store(s + t * N + n, spike);
        if (v_seq) store(v_seq + t * N + n, v);
      }
      int end = t0 + count.value;
      if (fired && (end % 8 == 0 || end == T)) {
        store_bytes(fired + t0 / 8 * N + n, bits);
#pragma unroll
        for (int i = 0; i < V; i++) bits[i] = 0;
      }
    };
    load(v0 + n, v);
    int t = 0;
#pragma unroll 1
    for (; t + UNROLL <= T; t += UNROLL) steps(Count<UNROLL>(), t);
#pragma unroll 1
    for (; t < T; t++) steps(Count<1>(), t);
    store(v_last + n, v);
  }
}

// What the forward kept of K steps from t0 on: chi[t], and v[t-1] where v_seq was kept (else 0).
template <int K, int V>
struct Kept {
  bool fired[K][V];
  float v_before[K][V];
};

template <int K, int V>
__device__ inline Kept<K, V> recall(const float* v_seq, const float* v0, const float* threshold, long long stride,
                                    long long n, long long N, int t0) {
  Kept<K, V> kept;
  float v[V];
  load(v_seq + (t0 + K - 1) * N + n, v);
#pragma unroll
  for (int k = K - 1; k >= 0; k--) {
    load(t0 + k ? v_seq + (t0 + k - 1) * N + n : v0 + n, kept.v_before[k]);
    float th = threshold[(t0 + k) * stride];
#pragma unroll
    for (int i = 0; i < V; i++) kept.fired[k][i] = (k + 1 < K ? kept.v_before[k + 1][i] : v[i]) == th;
  }
  return kept;
}

template <int K, int V>
__device__ inline Kept<K, V> recall(const unsigned char* fired, const float*, const float*, long long, long long n,
                                    long long N, int t0) {
  Kept<K, V> kept = {};
  Pack<unsigned char, V> bits = load_pack<V>(fired + t0 / 8 * N + n);
#pragma unroll
  for (int k = 0; k < K; k++)
#pragma unroll
    for (int i = 0; i < V; i++) kept.fired[k][i] = bits.lane[i] >> (t0 + k) % 8 & 1;
  return kept;
}

// kept_t: float for v_seq, unsigned char for fired. grad_v_last and grad_v_seq may be null. partial [blocks, slots]
// has the gradients of the decays, then of the thresholds. temporal_grad is 1, or 0 for the online gradient.
template <typename scalar_t, typename kept_t, int V>
__global__ void __launch_bounds__(256)
empf_backward(const scalar_t* __restrict__ grad_s, const float* __restrict__ grad_v_last,
              const float* __restrict__ grad_v_seq, const float* __restrict__ v0, const kept_t* __restrict__ kept_seq,
              const float* __restrict__ decay, const float* __restrict__ threshold, scalar_t* __restrict__ grad_x,
              float* __restrict__ grad_v0, float* __restrict__ partial, long long N, long long T,
              long long decay_stride, long long threshold_stride, float temporal_grad) {
  extern __shared__ float sums[];
  const int decay_slots = decay_stride ? T : 1, slots = decay_slots + (threshold_stride ? T : 1);
  clear_slots(sums, slots);
  FOR_EACH_NEURON(n, N, V) {
    float grad_v[V] = {};  // of v[t], from all later uses
    auto steps = [&](auto count, int t0) {
      float grad[count.value][V];
#pragma unroll
      for (int k = 0; k < count.value; k++) load(grad_s + (t0 + k) * N + n, grad[k]);
      auto kept = recall<count.value, V>(kept_seq, v0, threshold, threshold_stride, n, N, t0);
#pragma unroll
      for (int k = count.value - 1; k >= 0; k--) {
        int t = t0 + k;
        float lam = temporal_grad * decay[t * decay_stride], grad_lam = 0, grad_th = 0, grad_m[V], direct[V] = {};
        if (grad_v_seq) load(grad_v_seq + t * N + n, direct);
#pragma unroll
        for (int i = 0; i < V; i++) {
          grad_v[i] += direct[i];
          grad_m[i] = kept.fired[k][i] ? grad[k][i] : grad_v[i];
          grad_lam += grad_m[i] * kept.v_before[k][i];
          grad_th += kept.fired[k][i] ? temporal_grad * grad_v[i] - grad[k][i] : 0;
          grad_v[i] = lam * grad_m[i];
        }
        store(grad_x + t * N + n, grad_m);
        add_to_slot(sums, t * decay_stride, grad_lam);
        add_to_slot(sums, decay_slots + t * threshold_stride, grad_th);
      }
    };
    if (grad_v_last) load(grad_v_last + n, grad_v);
    int t = T;
#pragma unroll 1
    while (t % UNROLL) steps(Count<1>(), --t);
#pragma unroll 1
    while (t) steps(Count<UNROLL>(), t -= UNROLL);
    store(grad_v0 + n, grad_v);
  }
  reduce_slots(sums, slots, partial);
}
