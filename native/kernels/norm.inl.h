// Batch normalisation with the activation after it. Memory is rows of `width` elements: whole pixels with their channels
// side by side, one or several to a row (dispatcher: norm.cc), so a column of it has one channel.
//
// z = (x - mean) a + b with a = gamma / sqrt(var + eps), b = beta - rest a: the mean is a float32 and what rounding left
// of it, so a mean of 1e4 costs no digits. y = act(z). Nothing but x is kept: z is computed again in the backward pass.
//
// Statistics: tiles of kNormTile rows, which lie in the first-level cache, are shifted by their own mean, so nothing cancels.
// Tiles are merged in float64 (Chan, Golub, LeVeque 1983), chunks of rows too, in an order that knows nothing of threads.

enum { kNormTile = 16, kNormRun = 8, kNormStrip = 1024 };  // rows at a time: few, so that rounding stays small

// act(z), and dy times its derivative; comparisons are such that not a number passes, as in torch.
template <int act>
LC_INLINE vf activated(vf z) {
  const vf zero = splat_f(0.0f);
  if (act == kRelu) return select(z <= zero, zero, z);
  if (act == kRelu6) return select(z <= zero, zero, select(z >= splat_f(6.0f), splat_f(6.0f), z));
  if (act == kHardswish) {
    const vf t = z + 3.0f, open = select(t <= zero, zero, select(t >= splat_f(6.0f), splat_f(6.0f), t));
    return z * open * (1.0f / 6);
  }
  if (act == kSilu) return z / (exp_f(-z) + 1.0f);
  return z;
}

template <int act>
LC_INLINE vf passed(vf z, vf dy) {
  const vf zero = splat_f(0.0f);
  if (act == kRelu) return select(z <= zero, zero, dy);
  if (act == kRelu6) return select((z <= zero) | (z >= splat_f(6.0f)), zero, dy);
  if (act == kHardswish)
    return select(z <= splat_f(-3.0f), zero, select(z < splat_f(3.0f), dy * (z * (1.0f / 3) + 0.5f), dy));
  if (act == kSilu) {
    const vf s = splat_f(1.0f) / (exp_f(-z) + 1.0f);
    return dy * s * (z * (splat_f(1.0f) - s) + 1.0f);
  }
  return dy;
}

// --- forward ------------------------------------------------------------------------------------------------------

struct Tally {  // of one vector of columns
  vd mean, m2;
};

LC_INLINE void merge(Tally& t, double before, double each, double share, vf shift, vf s1, vf s2) {
  const vd sum = widen(s1), delta = widen(shift) + sum * each - t.mean;
  t.m2 = t.m2 + widen(s2) - sum * sum * each + delta * delta * (before * share);
  t.mean = t.mean + delta * share;
}

// Sums of a vector of columns, of the first `part` of them alone where that is not 0.
LC_INLINE vd load_sums(const double* p, int64_t part) {
  vd v = {};
  part ? __builtin_memcpy(&v, p, (size_t)part * sizeof *p) : __builtin_memcpy(&v, p, sizeof v);
  return v;
}
LC_INLINE void store_sums(double* p, vd v, int64_t part) {
  part ? __builtin_memcpy(p, &v, (size_t)part * sizeof *p) : __builtin_memcpy(p, &v, sizeof v);
}

// `count` rows of a strip of at most kNormStrip columns, `before` rows after the first of its chunk, merged into `mean` and
// `m2`. Rows are read one after the other, as memory lies: sums wait in the first-level cache.
template <typename T>
LC_INLINE void tally(const T* x, int64_t width, int64_t strip, int64_t count, int64_t before, double* mean,
                     double* m2) {
  float shift[kNormStrip], s1[kNormStrip], s2[kNormStrip];
  const vf zero = {};
  columns<1>(strip, [&](int64_t c, int64_t) {
    store(shift + c, zero), store(s1 + c, zero), store(s2 + c, zero);
  });
  for (int64_t i = 0; i < count; ++i)
    columns<LC_UNROLL>(strip, [&](int64_t c, int64_t part) {
      store(shift + c, load(shift + c) + some(x + i * width + c, part));
    });
  const vf mean_of = splat_f(1.0f / (float)count);
  columns<1>(strip, [&](int64_t c, int64_t) { store(shift + c, load(shift + c) * mean_of); });
  for (int64_t i = 0; i < count; ++i)
    columns<LC_UNROLL>(strip, [&](int64_t c, int64_t part) {
      const vf d = some(x + i * width + c, part) - load(shift + c);
      store(s1 + c, load(s1 + c) + d);
      store(s2 + c, load(s2 + c) + d * d);
    });
  const double each = count == kNormTile ? 1.0 / kNormTile : 1 / (double)count, share = (double)count / (double)(before + count);
  columns<1>(strip, [&](int64_t c, int64_t part) {
    Tally t = {};
    if (before) t.mean = load_sums(mean + c, part), t.m2 = load_sums(m2 + c, part);
    merge(t, (double)before, each, share, load(shift + c), load(s1 + c), load(s2 + c));
    store_sums(mean + c, t.mean, part);
    store_sums(m2 + c, t.m2, part);
  });
}

// Calls f(row, count, column, strip, before, chunk) for every strip of every `tile` rows of the chunks [begin, end).
template <typename F>
LC_INLINE void each_tile(const lc_norm& n, int64_t begin, int64_t end, int64_t tile, F f) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * n.plan.per_chunk;
    const int64_t rows = n.plan.rows - first < n.plan.per_chunk ? n.plan.rows - first : n.plan.per_chunk;
    for (int64_t from = 0; from < rows; from += tile)
      for (int64_t c = 0; c < n.plan.width; c += kNormStrip)
        f(first + from, rows - from < tile ? rows - from : tile, c,
          n.plan.width - c < kNormStrip ? n.plan.width - c : (int64_t)kNormStrip, from, n.plan.sums + chunk * 2 * n.plan.width);
  }
}

template <typename T>
static void stats_of(const lc_norm& n, int64_t begin, int64_t end) {
  const int64_t width = n.plan.width;
  each_tile(n, begin, end, kNormTile,
            [&](int64_t row, int64_t count, int64_t c, int64_t strip, int64_t before, double* sums) {
              const T* x = (const T*)n.x + row * width + c;
              tally<T>(x, width, strip, count, before, sums + c, sums + width + c);
            });
}

static void norm_stats(const lc_norm& n, int64_t begin, int64_t end) {
  n.dtype == LC_BF16 ? stats_of<bf16>(n, begin, end) : stats_of<float>(n, begin, end);
}

// Columns [begin, end): the chunks, merged into the first of them.
static void norm_merge(const lc_norm& n, int64_t begin, int64_t end) {
  double *mean = n.plan.sums, *m2 = mean + n.plan.width;
  for (int64_t chunk = 1; chunk < n.plan.chunks; ++chunk) {
    const int64_t from = chunk * n.plan.per_chunk;
    const int64_t rows = n.plan.rows - from < n.plan.per_chunk ? n.plan.rows - from : n.plan.per_chunk;
    const double share = (double)rows / (double)(from + rows), both = (double)from * share;
    const double *other = mean + chunk * 2 * n.plan.width, *other2 = other + n.plan.width;
    for (int64_t c = begin; c < end; ++c) {
      const double delta = other[c] - mean[c];
      m2[c] += other2[c] + delta * delta * both;
      mean[c] += delta * share;
    }
  }
}

// Channels [begin, end): the pixels of a row become one mean and variance.
static void norm_settle(const lc_norm& n, int64_t begin, int64_t end) {
  const double *means = n.plan.sums, *m2s = means + n.plan.width;
  for (int64_t c = begin; c < end; ++c) {
    double mean = means[c], m2 = m2s[c], before = 1;
    for (int64_t at = c + n.channels; at < n.plan.width; at += n.channels, ++before) {
      const double delta = means[at] - mean;
      m2 += m2s[at] + delta * delta * ((double)n.plan.rows * before / (before + 1));
      mean += delta / (before + 1);
    }
    n.mean[c] = (float)mean;
    n.rest[c] = (float)(mean - (double)n.mean[c]);
    const double var = m2 / (double)n.rows;
    n.var[c] = var < 0 ? 0.0f : (float)var;
  }
}

// What each column is multiplied with and what is added: a and b above, and the mean, all `width` long.
static void norm_factors(const lc_norm& n, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    const double gamma = n.gamma ? n.gamma[c] : 1.0, beta = n.beta ? n.beta[c] : 0.0;
    const double a = gamma / __builtin_sqrt((double)n.var[c] + n.eps);
    for (int64_t at = c; at < n.plan.width; at += n.channels) {
      n.plan.shift[at] = n.mean[c];
      n.plan.a[at] = (float)a;
      n.plan.b[at] = (float)(beta - (double)n.rest[c] * a);
    }
  }
}

template <typename T, int act>
static void apply_of(const lc_norm& n, int64_t begin, int64_t end) {
  const int64_t width = n.plan.width;
  const float *shift = n.plan.shift, *a = n.plan.a, *b = n.plan.b;  // as long as whole vectors are
  for (int64_t row = begin; row < end; ++row) {
    const T* x = (const T*)n.x + row * width;
    T* y = (T*)n.y + row * width;
    columns<2>(width, [&](int64_t c, int64_t part) {
      const vf z = (some(x + c, part) - load(shift + c)) * load(a + c) + load(b + c);
      write(y + c, activated<act>(z), part);
    });
  }
}

// --- backward -----------------------------------------------------------------------------------------------------

// Sums over the rows of each chunk of g and of g (x - mean), g = dy act'(z).
template <typename T, int act>
static void sums_of(const lc_norm& n, int64_t begin, int64_t end) {
  const int64_t width = n.plan.width;
  each_tile(n, begin, end, kNormRun,
            [&](int64_t row, int64_t count, int64_t from, int64_t strip, int64_t before, double* sums) {
              const T* x = (const T*)n.x + row * width + from;
              const T* dy = (const T*)n.dy + row * width + from;
              const float *shift = n.plan.shift + from, *a = n.plan.a + from, *b = n.plan.b + from;
              float s[kNormStrip], d[kNormStrip];
              columns<1>(strip, [&](int64_t c, int64_t) { store(s + c, vf{}), store(d + c, vf{}); });
              for (int64_t i = 0; i < count; ++i, x += width, dy += width)
                columns<LC_UNROLL>(strip, [&](int64_t c, int64_t part) {
                  const vf t = some(x + c, part) - load(shift + c);
                  const vf g = passed<act>(t * load(a + c) + load(b + c), some(dy + c, part));
                  store(s + c, load(s + c) + g);
                  store(d + c, load(d + c) + g * t);
                });
              double *sum = sums + from, *dot = sum + width;
              for (int64_t c = 0; c < strip; ++c) {
                sum[c] = before ? sum[c] + (double)s[c] : (double)s[c];
                dot[c] = before ? dot[c] + (double)d[c] : (double)d[c];
              }
            });
}

// Columns [begin, end): the chunks, added to the first of them.
static void norm_add(const lc_norm& n, int64_t begin, int64_t end) {
  double *sum = n.plan.sums, *dot = sum + n.plan.width;
  for (int64_t chunk = 1; chunk < n.plan.chunks; ++chunk) {
    const double *other = sum + chunk * 2 * n.plan.width, *other2 = other + n.plan.width;
    for (int64_t c = begin; c < end; ++c) sum[c] += other[c], dot[c] += other2[c];
  }
}

// Channels [begin, end): the gradients of beta and gamma, and what dx = a g + k (x - mean) + c needs.
static void norm_slopes(const lc_norm& n, int64_t begin, int64_t end) {
  const double each = 1 / (double)n.rows, *sums = n.plan.sums;
  for (int64_t c = begin; c < end; ++c) {
    double sum = 0, dot = 0;
    for (int64_t at = c; at < n.plan.width; at += n.channels) sum += sums[at], dot += sums[n.plan.width + at];
    const double inverse = 1 / __builtin_sqrt((double)n.var[c] + n.eps), rest = n.rest[c];
    const double dgamma = (dot - rest * sum) * inverse, a = (n.gamma ? n.gamma[c] : 1.0) * inverse;
    n.dbeta[c] = (float)sum;
    n.dgamma[c] = (float)dgamma;
    const double k = n.given ? 0 : -a * inverse * dgamma * each;
    for (int64_t at = c; at < n.plan.width; at += n.channels) {
      n.plan.k[at] = (float)k;
      n.plan.c[at] = n.given ? 0.0f : (float)(-a * sum * each - k * rest);
    }
  }
}

template <typename T, int act>
static void gradient_of(const lc_norm& n, int64_t begin, int64_t end) {
  const int64_t width = n.plan.width;
  const float *shift = n.plan.shift, *a = n.plan.a, *b = n.plan.b, *k = n.plan.k, *add = n.plan.c;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = (const T*)n.x + row * width;
    const T* dy = (const T*)n.dy + row * width;
    T* dx = (T*)n.dx + row * width;
    columns<2>(width, [&](int64_t c, int64_t part) {
      const vf t = some(x + c, part) - load(shift + c), scale = load(a + c);
      const vf g = passed<act>(t * scale + load(b + c), some(dy + c, part));
      write(dx + c, g * scale + (t * load(k + c) + load(add + c)), part);
    });
  }
}

// dx = a g + k (x - mean) + c once more, from the gradients of gamma and beta.
static void norm_regain(const lc_norm& n, int64_t begin, int64_t end) {
  const double each = 1 / (double)n.rows;
  for (int64_t c = begin; c < end; ++c) {
    const double inverse = 1 / __builtin_sqrt((double)n.var[c] + n.eps), a = (n.gamma ? n.gamma[c] : 1.0) * inverse;
    const double k = n.given ? 0 : -a * inverse * (double)n.dgamma[c] * each;
    n.plan.k[c] = (float)k;
    n.plan.c[c] = n.given ? 0.0f : (float)(-a * (double)n.dbeta[c] * each - k * (double)n.rest[c]);
  }
}

// One function per type and activation, chosen once a call.
#define LC_BY_ACT(result, act, of, T, ...)                        \
  switch (act) {                                                  \
    case kRelu: result of<T, kRelu> __VA_ARGS__; break;           \
    case kRelu6: result of<T, kRelu6> __VA_ARGS__; break;         \
    case kHardswish: result of<T, kHardswish> __VA_ARGS__; break; \
    case kSilu: result of<T, kSilu> __VA_ARGS__; break;           \
    default: result of<T, kNone> __VA_ARGS__;                     \
  }
#define LC_NORM_CHOICE(name, of)                                                                 \
  template <typename T>                                                                          \
  static void name##_typed(const lc_norm& n, int64_t begin, int64_t end) {                       \
    LC_BY_ACT(, n.act, of, T, (n, begin, end))                                                   \
  }                                                                                              \
  static void name(const lc_norm& n, int64_t begin, int64_t end) {                               \
    n.dtype == LC_BF16 ? name##_typed<bf16>(n, begin, end) : name##_typed<float>(n, begin, end); \
  }
LC_NORM_CHOICE(norm_apply, apply_of)
LC_NORM_CHOICE(norm_sums, sums_of)
LC_NORM_CHOICE(norm_gradient, gradient_of)
#undef LC_NORM_CHOICE
