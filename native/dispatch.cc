// Picks the instruction set's table and splits the work over threads; how it is split never changes a result.
#include "engine_steps.h"
#include "split.h"

// LC_ISAS comes from CMakeLists.txt: X(scalar) X(avx2) X(avx512), the plainest first.
#define X(name) extern const lc_table lc_table_##name;
LC_ISAS
#undef X

namespace {

const lc_table* const kTables[] = {
#define X(name) &lc_table_##name,
    LC_ISAS
#undef X
};
const int kIsas = sizeof kTables / sizeof *kTables;

#if defined(__x86_64__) || defined(__i386__)
bool runs_scalar() { return true; }
[[maybe_unused]] bool runs_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
[[maybe_unused]] bool runs_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && runs_avx2();
}
#else
bool runs_scalar() { return true; }
[[maybe_unused]] bool runs_neon() { return true; }  // part of every 64-bit Arm processor
#endif

bool (*const kRuns[])() = {
#define X(name) runs_##name,
    LC_ISAS
#undef X
};

int32_t check(const lc_mask* m, int64_t most) {
  if (const int32_t bad = check_head(m)) return bad;
  int64_t all;
  const bool fits = m->rows >= 0 && m->elements >= 0 && m->elements <= INT64_MAX - 7 &&
                    !__builtin_mul_overflow(m->rows, m->elements + 7, &all);
  return fits && m->limit >= 0 && m->limit <= most ? LC_OK : LC_BAD_ARGUMENT;
}

enum { kElementsPerPart = 1 << 16 };  // about 10 microseconds of work: what waking a thread is worth

}  // namespace

const lc_table& lc_table_of(int32_t isa) { return *kTables[isa]; }

int32_t lc_abi(void) { return LC_ABI; }

const char* lc_isas(void) {
#define X(name) "," #name
  return &LC_ISAS[1];
#undef X
}

int32_t lc_supported(int32_t isa) { return isa >= 0 && isa < kIsas && kRuns[isa](); }

int32_t lc_keep_mask(const lc_mask* m) {
  if (const int32_t bad = check(m, 65535)) return bad;
  if (m->rows == 0 || m->elements == 0) return LC_OK;
  const lc_table& table = lc_table_of(m->isa);
  const int64_t blocks = m->rows * ((m->elements + 7) / 8);
  if (const int32_t bad = split(m, table.mask_blocks, blocks, kElementsPerPart / 8)) return bad;
  table.mask_revive(*m, 0, m->rows);  // looks at one element of most rows
  return LC_OK;
}

int32_t lc_keep_exact(const lc_mask* m) {
  if (const int32_t bad = check(m, m->elements)) return bad;
  if (m->rows == 0 || m->elements == 0) return LC_OK;
  const int64_t rows = kElementsPerPart / m->elements;
  return split(m, lc_table_of(m->isa).exact_rows, m->rows, rows > 1 ? rows : 1);
}

int32_t lc_peak(lc_burst* burst) {
  if (const int32_t bad = check_head(burst)) return bad;
  if (burst->turns < 0 || burst->turns > ((int64_t)1 << 40) || !burst->out) return LC_BAD_ARGUMENT;
  if (burst->path != -1 && !lc_path_supported(burst->path)) return LC_BAD_ISA;
  const lc_runs& runs = burst->path == -1 ? lc_table_of(burst->isa).engine : lc_bytes_of(burst->path);
  runs.peak(*burst, 0, burst->turns);
  burst->count = burst->turns * runs.peak_width();
  return LC_OK;
}
