// The LM-H sequence (LM-H, Eq. 4) and its adjoint; reference.py has the equations and what each argument means.
// As in the EM-PF kernels a thread keeps V neurons in registers and loads some steps ahead of the first store.
#include "common.cuh"

template <typename scalar_t, bool store_v, int V>
__global__ void __launch_bounds__(256, 2)
lmh_forward(const scalar_t* x, const float* v_d0, const float* v_s0, const float* __restrict__ factors, scalar_t* o,
            float* v_d_last, float* v_s_last, float* v_d_seq, float* v_s_seq, long long N, long long T,
            long long stride, float th) {
  const long long P = stride ? T : 1;
  FOR_EACH_NEURON(n, N, V) {
    float v_d[V], v_s[V];
    auto steps = [&](auto count, int t0) {
      const long long row = t0 * N + n;
      float current[count.value][V], emitted[V];
#pragma unroll
      for (int k = 0; k < count.value; k++) load(x + row + k * N, current[k]);
#pragma unroll
      for (int k = 0; k < count.value; k++) {
        const float* factor = factors + (t0 + k) * stride;
        const float mu_d = factor[0], mu_s = factor[P], lambda_s = factor[2 * P], lambda_d = factor[3 * P];
#pragma unroll
        for (int i = 0; i < V; i++) {
          v_d[i] = mu_d * v_d[i] + mu_s * v_s[i] + current[k][i];
          float m = lambda_s * v_s[i] + lambda_d * v_d[i];
          emitted[i] = m >= th ? th : 0;
          v_s[i] = m - emitted[i];
        }
        store(o + row + k * N, emitted);
        if (store_v) store(v_d_seq + row + k * N, v_d);
        if (store_v) store(v_s_seq + row + k * N, v_s);
      }
    };
    load(v_d0 + n, v_d);
    load(v_s0 + n, v_s);
    int t = 0;
#pragma unroll 1
    for (; t + 4 <= T; t += 4) steps(Count<4>(), t);
#pragma unroll 1
    for (; t < T; t++) steps(Count<1>(), t);
    store(v_d_last + n, v_d);
    store(v_s_last + n, v_s);
  }
}

// The three gradients of states may be null. partial [blocks, 4 P] has the gradients of the factors, row by row.
// th H'(m - th) = max(0, peak - steepness |m - th|).
template <typename scalar_t, bool temporal_grad, int V>
__global__ void __launch_bounds__(256, 2)
lmh_backward(const scalar_t* grad_o, const float* grad_v_d_last, const float* grad_v_s_last, const float* grad_v_s_seq,
             const float* v_d0, const float* v_s0, const float* v_d_seq, const float* v_s_seq,
             const float* __restrict__ factors, scalar_t* grad_x, float* grad_v_d0, float* grad_v_s0, float* partial,
             long long N, long long T, long long stride, float th, float peak, float steepness) {
  extern __shared__ float sums[];
  const int P = stride ? T : 1;
  clear_slots(sums, 4 * P);
  FOR_EACH_NEURON(n, N, V) {
    float G_m[V] = {}, G_d[V] = {}, v_d[V];  // G: of the states at t, from all later uses; v_d: v_d[t]
    auto steps = [&](auto count, int t0) {
      const long long row = t0 * N + n;
      float grad[count.value][V], v_d_before[count.value][V], v_s_before[count.value][V];
#pragma unroll
      for (int k = 0; k < count.value; k++) {
        load(grad_o + row + k * N, grad[k]);
        load(t0 + k ? v_d_seq + row + (k - 1) * N : v_d0 + n, v_d_before[k]);
        load(t0 + k ? v_s_seq + row + (k - 1) * N : v_s0 + n, v_s_before[k]);
      }
#pragma unroll
      for (int k = count.value - 1; k >= 0; k--) {
        const int slot = (t0 + k) * stride;
        const float* factor = factors + slot;
        const float mu_d = factor[0], mu_s = factor[P], lambda_s = factor[2 * P], lambda_d = factor[3 * P];
        float total[4] = {}, grad_v_d[V];
        if (grad_v_s_seq) load_add(grad_v_s_seq + row + k * N, G_m);
#pragma unroll
        for (int i = 0; i < V; i++) {
          float m = lambda_s * v_s_before[k][i] + lambda_d * v_d[i];
          float slope = peak - steepness * fabsf(m - th);
          G_m[i] += (slope < 0 ? 0 : slope) * grad[k][i];
          G_d[i] += lambda_d * G_m[i];
          grad_v_d[i] = G_d[i];
          total[0] += G_d[i] * v_d_before[k][i];
          total[1] += G_d[i] * v_s_before[k][i];
          total[2] += G_m[i] * v_s_before[k][i];
          total[3] += G_m[i] * v_d[i];
          G_m[i] = temporal_grad ? lambda_s * G_m[i] + mu_s * G_d[i] : 0;
          G_d[i] = temporal_grad ? mu_d * G_d[i] : 0;
          v_d[i] = v_d_before[k][i];
        }
        store(grad_x + row + k * N, grad_v_d);
#pragma unroll
        for (int i = 0; i < 4; i++) add_to_slot(sums, i * P + slot, total[i]);
      }
    };
    if (grad_v_d_last) load(grad_v_d_last + n, G_d);
    if (grad_v_s_last) load(grad_v_s_last + n, G_m);
    load(v_d_seq + (T - 1) * N + n, v_d);
    int t = T;
#pragma unroll 1
    while (t % 2) steps(Count<1>(), --t);
#pragma unroll 1
    while (t) steps(Count<2>(), t -= 2);
    store(grad_v_d0 + n, G_d);
    store(grad_v_s0 + n, G_m);
  }
  reduce_slots(sums, 4 * P, partial);
}
