/* Counts, for each row, how many of its values lie below and not above each of a few limits.
 *
 * rows:   n rows of g values, `stride` apart
 * limits: (n, m); of row q the first many[q] are looked at
 * below, up_to: (n, m) results; bad: (n,) whether the row has a NaN
 *
 * A row is taken in blocks that stay in the first cache while four limits at a time pass over it.
 * Each limit has two counters of its own, which compilers turn into vector comparisons.
 */
#include <stdint.h>

#define BLOCK 2048

#define STEP(K) lt##K += value < t##K; le##K += value <= t##K;
#define KEEP(K) below[j + K] += lt##K; up_to[j + K] += le##K;

#define DEFINE(REAL, COUNT)                                                                       \
    static void block_##REAL(const REAL *values, COUNT size, const REAL *limits, int64_t many,    \
                             int64_t *below, int64_t *up_to) {                                    \
        int64_t j = 0;                                                                            \
        for (; j + 4 <= many; j += 4) {                                                           \
            const REAL t0 = limits[j], t1 = limits[j + 1], t2 = limits[j + 2], t3 = limits[j + 3];\
            COUNT lt0 = 0, lt1 = 0, lt2 = 0, lt3 = 0, le0 = 0, le1 = 0, le2 = 0, le3 = 0;         \
            for (COUNT i = 0; i < size; i++) {                                                    \
                const REAL value = values[i];                                                     \
                STEP(0) STEP(1) STEP(2) STEP(3)                                                   \
            }                                                                                     \
            KEEP(0) KEEP(1) KEEP(2) KEEP(3)                                                       \
        }                                                                                         \
        for (; j < many; j++) {                                                                   \
            const REAL t0 = limits[j];                                                            \
            COUNT lt0 = 0, le0 = 0;                                                               \
            for (COUNT i = 0; i < size; i++) {                                                    \
                const REAL value = values[i];                                                     \
                STEP(0)                                                                           \
            }                                                                                     \
            KEEP(0)                                                                               \
        }                                                                                         \
    }                                                                                             \
                                                                                                  \
    void count_##REAL(const REAL *rows, int64_t n, int64_t g, int64_t stride, const REAL *limits, \
                      const int64_t *many, int64_t m, int64_t *below, int64_t *up_to,             \
                      uint8_t *bad) {                                                             \
        for (int64_t q = 0; q < n; q++) {                                                         \
            const REAL *row = rows + q * stride;                                                  \
            COUNT odd = 0;                                                                        \
            for (int64_t j = 0; j < m; j++) below[q * m + j] = up_to[q * m + j] = 0;              \
            for (int64_t begin = 0; begin < g; begin += BLOCK) {                                  \
                const COUNT size = (COUNT)(g - begin < BLOCK ? g - begin : BLOCK);                \
                for (COUNT i = 0; i < size; i++) odd |= row[begin + i] != row[begin + i];         \
                block_##REAL(row + begin, size, limits + q * m, many[q], below + q * m,           \
                             up_to + q * m);                                                      \
            }                                                                                     \
            bad[q] = odd != 0;                                                                    \
        }                                                                                         \
    }

DEFINE(float, int32_t)
DEFINE(double, int64_t)
