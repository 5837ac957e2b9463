// As many multiply-adds as this processor can do, from registers alone: what other kernels are measured against.
enum { kChains = 12 };  // more than latency times units on any processor, few enough for 16 registers

// The values stay near 1, so that no product is ever slow.
void peak_turns(const lc_burst& burst, int64_t begin, int64_t end) {
  vf sum[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) sum[i] = held(vf{} + 1.0f);
  const vf factor = held(vf{} + 0.5f), more = held(vf{} + 0.5f);
  for (int64_t turn = begin; turn < end; ++turn) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = held(sum[i] * factor + more);
  }
  vf all = {};
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) all += sum[i];
  *burst.out = all[0];
}

int64_t peak_width() { return kChains * kFloats; }  // multiply-adds of a turn
