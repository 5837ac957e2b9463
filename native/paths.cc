// Ways over bytes: those that were compiled, and which of them this processor and the system run.
#include "engine_steps.h"
#include "split.h"
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// LC_PATHS comes from CMakeLists.txt: X(scalar, scalar) X(avx2, avx2) X(avxvnni, avx2), the plainest first, each with the
// instruction set that it belongs to.
#define X(name, isa) extern const lc_runs lc_bytes_##name;
LC_PATHS
#undef X

namespace {

const lc_runs* const kRuns[] = {
#define X(name, isa) &lc_bytes_##name,
    LC_PATHS
#undef X
};
const int kPaths = sizeof kRuns / sizeof *kRuns;

bool runs_scalar() { return true; }
#if defined(__x86_64__)
struct Registers {
  unsigned a, b, c, d;
};
Registers features(unsigned part) {  // leaf 7
  Registers r = {};
  if (!__get_cpuid_count(7, part, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}
bool is_set(unsigned word, int bit) { return word >> bit & 1; }
[[maybe_unused]] bool runs_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
[[maybe_unused]] bool runs_avxvnni() { return runs_avx2() && features(0).a >= 1 && is_set(features(1).a, 4); }
[[maybe_unused]] bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
[[maybe_unused]] bool runs_vnni() { return runs_avx512() && is_set(features(0).c, 11); }

// Linux saves the tiles of processes that asked for it; threads inherit that. It says no where a signal stack is too small.
[[maybe_unused]] bool tiles_allowed() {
#if defined(__linux__)
  enum { kRequest = 0x1023, kTileData = 18 };  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
[[maybe_unused]] bool runs_amx() {
  const unsigned d = features(0).d;
  return runs_vnni() && is_set(d, 24) && is_set(d, 25) && tiles_allowed();
}
#endif

bool (*const kSupported[])() = {
#define X(name, isa) runs_##name,
    LC_PATHS
#undef X
};
const char* const kNames[] = {
#define X(name, isa) #isa,
    LC_PATHS
#undef X
};

// Place of an instruction set in lc_isas(), by its name.
int32_t place_of(const char* name) {
  int32_t place = 0;
  for (const char* at = lc_isas();; ++place) {
    size_t n = 0;
    while (name[n] && at[n] == name[n]) ++n;
    if (!name[n] && (!at[n] || at[n] == ',')) return place;
    while (*at && *at != ',') ++at;
    if (!*at++) return -1;
  }
}

}  // namespace

const lc_runs& lc_bytes_of(int32_t path) { return *kRuns[path]; }

const char* lc_paths(void) {
#define X(name, isa) "," #name
  return &LC_PATHS[1];
#undef X
}

int32_t lc_path_supported(int32_t path) { return path >= 0 && path < kPaths && kSupported[path](); }

int32_t lc_path_of(int32_t isa) {
  int32_t path = kPaths - 1;
  while (path > 0 && (place_of(kNames[path]) > isa || !lc_path_supported(path))) --path;
  return path;
}
