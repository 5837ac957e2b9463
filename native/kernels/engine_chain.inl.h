// Several layers at once, row by row: what lies between two of them waits in a ring of as many rows as the next one reads
// for a few of its own. A row is made when it is asked for, so that all rings stay in the second-level cache.

// What is between two layers, and before the first and behind the last one.
struct Ring {
  const lc_layer* layer;  // that makes it
  Number* at;
  int64_t slots, row, pixel;
  int64_t made;  // rows before this one are there, or no longer needed
  Number* copy;  // of what the layer reads, where it reads copies
};

struct Chain {
  Ring rings[LC_STAGES + 1];  // the first one is x, whole
  int64_t count;
  const float* second;  // where y begins too
  const Number** table;
};

LC_INLINE bool reads_copies(const lc_layer& l) { return l.op == LC_CONV && !l.flat; }

// Rows of y that are made at a time; fewer where chains are long, as every row more is several of the first maps.
static int64_t chain_lines(const lc_work& w) {
  const lc_layer &last = *w.stages[w.stages_count - 1], &before = *w.stages[w.stages_count - 2];
  if (w.stages_count > LC_PARTS) return 1;
  const int64_t by_ring = held_bytes(last) / (before.stride_height * before.width * before.pixel * (int64_t)sizeof(Number) + 1);
  return most(1, least(by_ring, held_rows(last, last.width * last.pixel, last.out_height)));
}

// Places all rings in scratch memory from `at` on; returns its end. With null it counts.
static int64_t place_rings(const lc_work& w, Chain& chain, float* scratch) {
  int64_t at = 0, lines = chain_lines(w);
  const auto take = [&](int64_t numbers) {
    Number* from = scratch ? (Number*)(scratch + at) : nullptr;
    at += floats_of(numbers);
    return from;
  };
  chain.count = w.stages_count;
  for (int64_t i = w.stages_count - 1; i >= 0; --i) {
    const lc_layer& l = *w.stages[i];
    Ring &out = chain.rings[i + 1], &in = chain.rings[i];
    out.layer = &l;
    if (i + 1 == w.stages_count) out.slots = INT64_MAX, out.pixel = w.y_pixel, out.row = l.out_width * w.y_pixel;
    out.copy = reads_copies(l) ? take(copied_rows(l, lines) * l.wide * l.pixel) : nullptr;
    if (i == 0) break;
    lines = least(l.height, copied_rows(l, lines));
    in.slots = lines, in.pixel = l.pixel, in.row = l.width * l.pixel;
    in.at = take(lines * in.row);
  }
  Ring& x = chain.rings[0];
  x.slots = INT64_MAX, x.pixel = w.x_pixel, x.row = w.layer->width * w.x_pixel;
  int64_t table = 0;
  for (int64_t i = 0; i < w.stages_count; ++i) table = most(table, table_size(*w.stages[i]));
  chain.table = scratch ? (const Number**)(scratch + at) : nullptr;
  return at + table;
}

// Rows [row, row + count) of what layer i makes; they lie one behind the other.
static void make_rows(const Chain& chain, int64_t i, int64_t row, int64_t count) {
  const Ring &in = chain.rings[i], &out = chain.rings[i + 1];
  const lc_layer& l = *out.layer;
  float* const to = moved(l, (float*)out.at, row % out.slots * out.row);
  const float* second = i + 1 == chain.count ? moved(l, chain.second, row * out.row) : nullptr;
  if (l.op == LC_DEPTHWISE) {
    channels_rows(l, in.at, in.row, in.pixel, in.slots, row, count, (Number*)to, out.row, out.pixel, chain.table);
  } else if (l.flat) {
    for (int64_t r = 0; r < count;) {
      const int64_t slot = (row + r) % in.slots, run = least(count - r, in.slots - slot), zero = 0, behind = r * out.row;
      multiply_rows(l, {in.at + slot * in.row, 0, in.pixel, moved(l, to, behind), moved(l, second, behind), 0, out.pixel, 1,
                        run * l.out_width}, &zero, 0, engine_panels(l));
      r += run;
    }
  } else {
    const int64_t first = row * l.stride_height, line = l.wide * l.pixel;
    copy_rows(l, in.at, in.row, in.pixel, in.slots, first, first + copied_rows(l, count), out.copy);
    multiply_rows(l, {out.copy, l.stride_height * line, l.stride_width * l.pixel, to, second, out.row, out.pixel, count, l.out_width},
                  l.offsets + l.taps, 0, engine_panels(l));
  }
}

// Makes sure of the rows of ring i before `end`.
static void need_rows(Chain& chain, int64_t i, int64_t end) {
  Ring& out = chain.rings[i];
  while (i > 0 && out.made < end) {
    const lc_layer& l = *out.layer;
    const int64_t count = least(end - out.made, out.slots - out.made % out.slots);
    const int64_t first = out.made * l.stride_height - l.pad_top;
    Ring& in = chain.rings[i - 1];
    in.made = most(in.made, first);
    need_rows(chain, i - 1, least(l.height, first + copied_rows(l, count)));
    make_rows(chain, i - 1, out.made, count);
    out.made += count;
  }
}

static void engine_chain(const lc_work& w, int64_t task, float* scratch) {
  const lc_layer &first = *w.layer, &last = *w.stages[w.stages_count - 1];
  const Cut cut = cut_of(w, task, 1);
  const int64_t lines = chain_lines(w);
  Chain chain = {};
  place_rings(w, chain, scratch);
  Ring& y = chain.rings[chain.count];
  for (int64_t at = cut.begin; at < cut.end;) {
    const int64_t image = at / last.out_height, end = least(cut.end, (image + 1) * last.out_height), before = image * last.out_height;
    for (int64_t i = 0; i <= chain.count; ++i) chain.rings[i].made = 0;
    chain.rings[0].at = (Number*)w.x + image * first.height * first.width * w.x_pixel;
    y.at = (Number*)moved(last, w.y, before * y.row);
    chain.second = moved(last, w.second, before * y.row);
    for (y.made = at - before; at < end; at = least(at + lines, end)) need_rows(chain, chain.count, least(at + lines, end) - before);
  }
}

LC_INLINE bool is_pair(const lc_work& w) {
  return w.stages_count == 2 && w.layer->op == LC_DEPTHWISE && w.stages[1]->op == LC_CONV && w.stages[1]->flat;
}

// Floats of scratch memory that a thread needs.
static int64_t engine_scratch(const lc_work& w) {
  const lc_layer& a = *w.layer;
  Chain chain = {};
  if (is_pair(w))
    return table_size(a) + floats_of(rows_between(*w.stages[1], a, w.rows) * a.out_width * w.stages[1]->pixel);
  if (w.stages_count > 1) return place_rings(w, chain, nullptr);
  if (a.op == LC_DEPTHWISE) return table_size(a);
  if (!a.copied || w.prepared) return 0;
  return floats_of(a.flat ? pixels_held(a) * a.pixel : copied_rows(a, lines_held(a)) * a.wide * a.pixel);
}
