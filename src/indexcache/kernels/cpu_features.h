// CPU features beyond Highway's targets.
#pragma once

namespace indexcache {

// Whether kernels with AVX512-BF16 instructions may run: the CPU has them, and Highway's choice of
// targets (which tests narrow) reaches the newest AVX-512.
bool cpu_has_avx512_bf16();

}  // namespace indexcache
