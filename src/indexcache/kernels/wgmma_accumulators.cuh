// The accumulators of a wgmma as operands of its assembly: d[0], d[1], ... in order.
#pragma once

#define INDEXCACHE_ACC_8(d, i)                                                                \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define INDEXCACHE_ACC_32(d, i)                                                    \
  INDEXCACHE_ACC_8(d, i), INDEXCACHE_ACC_8(d, i + 8), INDEXCACHE_ACC_8(d, i + 16), \
      INDEXCACHE_ACC_8(d, i + 24)
#define INDEXCACHE_ACC_16(d) INDEXCACHE_ACC_8(d, 0), INDEXCACHE_ACC_8(d, 8)
#define INDEXCACHE_ACC_64(d) INDEXCACHE_ACC_32(d, 0), INDEXCACHE_ACC_32(d, 32)
#define INDEXCACHE_ACC_128(d)                                                  \
  INDEXCACHE_ACC_32(d, 0), INDEXCACHE_ACC_32(d, 32), INDEXCACHE_ACC_32(d, 64), \
      INDEXCACHE_ACC_32(d, 96)
