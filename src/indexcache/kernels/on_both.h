// Marks functions that both the host's code and kernels call; for compilers without CUDA they are plain ones.
#pragma once

#ifdef __CUDACC__
#define INDEXCACHE_ON_BOTH __host__ __device__
#else
#define INDEXCACHE_ON_BOTH
#endif
