// stats_writer.cuh - how a forward kernel writes its statistics and updates the running ones.
#pragma once

// Parameters of a kernel that writes statistics. mean_kind and var_kind are the dtypes of running_mean and running_var: 0
// float16, 1 bfloat16, 2 float32, 3 float64. `flags`: bits of row_reduce.cuh's Flags; an array that is missing there is
// neither read nor written.
#define STATS_PARAMS \
  double *means, double *rstds, void *running_mean, void *running_var, int flags, int mean_kind, int var_kind, double eps, \
      double momentum
#define STATS_WRITER \
  StatsWriter { means, rstds, running_mean, running_var, flags, mean_kind, var_kind, momentum }

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

struct StatsWriter {
  double *means, *rstds;
  void *running_mean, *running_var;
  int flags, mean_kind, var_kind;
  double momentum;

  // Writes the statistics of row i, which has `cells` elements. Called by one thread a row.
  __device__ __forceinline__ void operator()(long long i, double cells, double mean, double var, double rstd) const {
    if (flags & CENTRED) means[i] = mean;
    rstds[i] = rstd;
    if (!(flags & RUNNING)) return;
    update_running(running_mean, mean_kind, i, mean);
    update_running(running_var, var_kind, i, flags & UNBIASED && cells > 1.0 ? var * (cells / (cells - 1.0)) : var);
  }
  __device__ __forceinline__ void update_running(void* p, int kind, long long i, double value) const {
    write_any(p, kind, i, (1.0 - momentum) * read_any(p, kind, i) + momentum * value);
  }
};
