// quotients.cuh - many sums over one divisor.
#pragma once

// Sums over the divisor, to the last bit. For 16-bit types launchers check that the divisor is an integer below 2**16: then
// __half's sums, 0 or not small, times the reciprocal are corrected by what the product leaves, and __nv_bfloat16's are
// multiplied in double, which rounds to the right float, since no quotient is near the middle of two floats.
template <typename T> struct Quotients {
  using A = typename Sum<T>::type;
  static constexpr bool Half = sizeof(T) == 2 && Infinity<T>::value == 0x7c00;
  A divisor, reciprocal;
  double wide;

  __device__ __forceinline__ explicit Quotients(A divisor)
      : divisor(divisor), reciprocal(quotient(A(1), divisor)), wide(1.0 / divisor) {}
  __device__ __forceinline__ A operator()(A sum) const {
    if constexpr (Half) {
      const A near = sum * reciprocal, rest = fmaxf(__fmaf_rn(-near, divisor, sum), -3e38f);  // not NaN, where near is infinite
      return __fmaf_rn(rest, reciprocal, near);
    } else if constexpr (sizeof(T) == 2) {
      return __double2float_rn(double(sum) * wide);
    } else {
      return divisor == A(1) ? sum : quotient(sum, divisor);
    }
  }
};
