// One intrinsic of each feature that ggml's kernels use: a compiler may know a flag and lack these.
#include <arm_neon.h>
#ifdef __ARM_FEATURE_DOTPROD
int32x4_t dot(int32x4_t a, int8x16_t b, int8x16_t c) { return vdotq_s32(a, b, c); }
#endif
#ifdef __ARM_FEATURE_FP16_VECTOR_ARITHMETIC
float16x8_t fma(float16x8_t a, float16x8_t b, float16x8_t c) { return vfmaq_f16(a, b, c); }
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
int32x4_t mmla(int32x4_t a, int8x16_t b, int8x16_t c) { return vmmlaq_s32(a, b, c); }
#endif
#ifdef __ARM_FEATURE_SVE
#include <arm_sve.h>
svint32_t sve_dot(svint32_t a, svint8_t b, svint8_t c) { return svdot_s32(a, b, c); }
#endif
#ifdef __ARM_FEATURE_SVE_MATMUL_INT8
svint32_t sve_mmla(svint32_t a, svint8_t b, svint8_t c) { return svmmla_s32(a, b, c); }
#endif
