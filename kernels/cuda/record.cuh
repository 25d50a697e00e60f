// record.cuh - where a forward's statistics are kept, and how running ones follow them.
#pragma once

// Parameters of a kernel that keeps statistics. The kinds of running_mean and running_var count float16, bfloat16, float32,
// float64. `given`: bits of rows.cuh's Given; an array
// that is not there is not touched.
#define KEPT double *means, double *rstds, void *running_mean, void *running_var, int given, int mean_kind, int var_kind, \
    double eps, double momentum
#define KEEP Keep{means, rstds, running_mean, running_var, given, mean_kind, var_kind, momentum}

__device__ __forceinline__ double read_any(const void* p, int kind, long long i) {
  switch (kind) {
    case 0: return __half2float(static_cast<const __half*>(p)[i]);
    case 1: return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
    case 2: return static_cast<const float*>(p)[i];
    default: return static_cast<const double*>(p)[i];
  }
}

__device__ __forceinline__ void write_any(void* p, int kind, long long i, double v) {
  switch (kind) {
    case 0: static_cast<__half*>(p)[i] = __float2half(float(v)); break;
    case 1: static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16(float(v)); break;
    case 2: static_cast<float*>(p)[i] = float(v); break;
    default: static_cast<double*>(p)[i] = v;
  }
}

struct Keep {
  double *means, *rstds;
  void *running_mean, *running_var;
  int given, mean_kind, var_kind;
  double momentum;

  // The statistics of row i, of so many cells: one thread's business.
  __device__ __forceinline__ void operator()(long long i, double cells, double mean, double var, double rstd) const {
    if (given & CENTRED) means[i] = mean;
    rstds[i] = rstd;
    if (!(given & RUNNING)) return;
    follow(running_mean, mean_kind, i, mean);
    follow(running_var, var_kind, i, given & UNBIASED && cells > 1.0 ? var * (cells / (cells - 1.0)) : var);
  }
  __device__ __forceinline__ void follow(void* p, int kind, long long i, double value) const {
    write_any(p, kind, i, (1.0 - momentum) * read_any(p, kind, i) + momentum * value);
  }
};
