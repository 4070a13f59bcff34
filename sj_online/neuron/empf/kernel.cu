// The EM-PF sequence (EM-PF, Eq. 3-5) and its gradient; reference.py has the equations and what each argument means.
// Bound by memory: a thread keeps V neurons in registers over all T steps and loads UNROLL steps ahead of their use.
#include "common.cuh"

constexpr int UNROLL = 4;

// HD-LIF: steps of 1/4, half to even, top = 2^bits - 1 of them. A NaN stays one.
__device__ inline float quantize(float s, float top) {
  float level = rintf(s * 4);
  return (level > top ? top : level) / 4;
}

// What to keep for the backward: v_seq [T, N], or fired [ceil(T/8), N], whose bit t % 8 of row t / 8 is chi[t].
// x and s carry no __restrict__: so the compiler cannot move the loads of the later steps behind the first store.
enum Keep { NOTHING, V_SEQ, FIRED };

template <typename scalar_t, Keep keep, bool quantized, int V>
__global__ void __launch_bounds__(256, 2)
empf_forward(const scalar_t* x, const float* v0, const float* __restrict__ decay, const float* __restrict__ threshold,
             scalar_t* s, float* v_last, float* v_seq, unsigned char* fired, long long N, long long T,
             long long decay_stride, long long threshold_stride, float top) {
  FOR_EACH_NEURON(n, N, V) {
    float v[V];
    unsigned int bits[V] = {};
    auto steps = [&](auto count, int t0) {
      const long long row = t0 * N + n;
      float current[count.value][V], spike[V];
#pragma unroll
      for (int k = 0; k < count.value; k++) load(x + row + k * N, current[k]);
#pragma unroll
      for (int k = 0; k < count.value; k++) {
        const int t = t0 + k;
        const float lam = decay[t * decay_stride], th = threshold[t * threshold_stride];
#pragma unroll
        for (int i = 0; i < V; i++) {
          float m = lam * v[i] + current[k][i];
          bool chi = m >= th;
          v[i] = chi ? th : m;
          spike[i] = quantized ? quantize(m - v[i], top) : m - v[i];
          if (chi) bits[i] |= 1u << t % 8;
        }
        store(s + row + k * N, spike);
        if (keep == V_SEQ) store(v_seq + row + k * N, v);
      }
      const int end = t0 + count.value;
      if (keep == FIRED && (end % 8 == 0 || end == T)) {
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

// What the forward kept of K steps from t0 on: chi[t], and v[t-1] where v_seq was kept (else 0). v holds v[t0 + K - 1]
// before and v[t0 - 1] after, so that no row is loaded twice.
template <int K, int V>
struct Kept {
  bool fired[K][V];
  float v_before[K][V];
};

template <int K, int V>
__device__ inline Kept<K, V> recall(const float* v_seq, const float* v0, const float* threshold, long long stride,
                                    long long n, long long N, int t0, float (&v)[V]) {
  Kept<K, V> kept;
#pragma unroll
  for (int k = K - 1; k >= 0; k--) {
    load(t0 + k ? v_seq + (t0 + k - 1) * N + n : v0 + n, kept.v_before[k]);
    float th = threshold[(t0 + k) * stride];
#pragma unroll
    for (int i = 0; i < V; i++) {
      kept.fired[k][i] = v[i] == th;
      v[i] = kept.v_before[k][i];
    }
  }
  return kept;
}

template <int K, int V>
__device__ inline Kept<K, V> recall(const unsigned char* fired, const float*, const float*, long long, long long n,
                                    long long N, int t0, float (&)[V]) {
  Kept<K, V> kept = {};
  Pack<unsigned char, V> bits = load_pack<V>(fired + t0 / 8 * N + n);
#pragma unroll
  for (int k = 0; k < K; k++)
#pragma unroll
    for (int i = 0; i < V; i++) kept.fired[k][i] = bits.lane[i] >> (t0 + k) % 8 & 1;
  return kept;
}

// kept_t: float for v_seq, unsigned char for fired. grad_v_last and grad_v_seq may be null. partial [blocks, slots]
// has the gradients of the decays (not without v_seq), then of the thresholds.
template <typename scalar_t, typename kept_t, bool temporal_grad, int V>
__global__ void __launch_bounds__(256, 2)
empf_backward(const scalar_t* grad_s, const float* grad_v_last, const float* grad_v_seq, const float* v0,
              const kept_t* kept_seq, const float* __restrict__ decay, const float* __restrict__ threshold,
              scalar_t* grad_x, float* grad_v0, float* partial, long long N, long long T, long long decay_stride,
              long long threshold_stride) {
  extern __shared__ float sums[];
  constexpr bool has_v = sizeof(kept_t) == sizeof(float);
  const int decay_slots = decay_stride ? T : 1, slots = decay_slots + (threshold_stride ? T : 1);
  clear_slots(sums, slots);
  FOR_EACH_NEURON(n, N, V) {
    float grad_v[V] = {}, v[V];  // grad_v: of v[t], from all later uses
    auto steps = [&](auto count, int t0) {
      const long long row = t0 * N + n;
      float grad[count.value][V];
#pragma unroll
      for (int k = 0; k < count.value; k++) load(grad_s + row + k * N, grad[k]);
      auto kept = recall<count.value, V>(kept_seq, v0, threshold, threshold_stride, n, N, t0, v);
#pragma unroll
      for (int k = count.value - 1; k >= 0; k--) {
        const int t = t0 + k;
        float lam = decay[t * decay_stride], grad_lam = 0, grad_th = 0, grad_m[V];
        if (grad_v_seq) load_add(grad_v_seq + row + k * N, grad_v);
#pragma unroll
        for (int i = 0; i < V; i++) {
          bool chi = kept.fired[k][i];
          grad_m[i] = chi ? grad[k][i] : grad_v[i];
          if (has_v) grad_lam += grad_m[i] * kept.v_before[k][i];
          grad_th += temporal_grad ? grad_v[i] - grad_m[i] : chi ? -grad_m[i] : 0;
          grad_v[i] = temporal_grad ? lam * grad_m[i] : 0;
        }
        store(grad_x + row + k * N, grad_m);
        if (has_v) add_to_slot(sums, t * decay_stride, grad_lam);
        add_to_slot(sums, decay_slots + t * threshold_stride, grad_th);
      }
    };
    if (grad_v_last) load(grad_v_last + n, grad_v);
    if constexpr (has_v) load(kept_seq + (T - 1) * N + n, v);
    int t = T;
#pragma unroll 1
    while (t % UNROLL) steps(Count<1>(), --t);
#pragma unroll 1
    while (t) steps(Count<UNROLL>(), t -= UNROLL);
    store(grad_v0 + n, grad_v);
  }
  reduce_slots(sums, slots, partial);
}
