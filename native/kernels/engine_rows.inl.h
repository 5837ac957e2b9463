// What products over floats and over bytes share: rows of pixels, weights fetched ahead, and the order of tiles.

// Rows of pixels: `lines` of `count`; in x and y a line and a pixel are so many numbers apart.
struct Pixels {
  const Number* x;
  int64_t x_line, step;
  float* y;
  const float* second;
  int64_t y_line, y_row;
  int64_t lines, count;
};

// Weights [from, to) of a panel's successors, fetched from afar while tiles are multiplied.
struct Fetch {
  const char *at, *end;
  LC_INLINE_MEMBER const char* take(int64_t lines, int64_t* stride) {
    const bool some = at < end;
    const char* from = at;
    at += some ? lines * kLine : 0;
    *stride = some ? (int64_t)kLine : 0;
    return from;
  }
};

// Packed weights: `groups` times `wide` channels of `channel` bytes, of which `out` exist.
struct Packed {
  const char* at;
  int64_t channel, groups, wide, out;
};

// tile(group, channel, line, pixel, count, fetch) for panels [begin, end) of all rows: with few weights all panels of some
// pixels first, else all pixels of a panel, while the next panel is fetched.
template <typename Tile>
LC_INLINE void each_tile(const Pixels& r, const Packed& w, int64_t begin, int64_t end, bool few, Tile tile) {
  const int64_t per_group = panels_of(w.out), group = begin / per_group, first = begin % per_group * kPanel;
  if (few) {
    Fetch fetch = {w.at, w.at};
    for (int64_t line = 0; line < r.lines; ++line)
      each_height<kTall>(r.count, [&](int64_t from, int count) {
        for (int64_t left = end - begin, g = group, n = first; left > 0; --left) {
          tile(g, n, line, from, count, fetch);
          n += kPanel;
          if (n >= w.out) n = 0, ++g;
        }
      });
    return;
  }
  const char* last = w.at + w.groups * w.wide * w.channel;
  for (int64_t left = end - begin, g = group, n = first; left > 0; --left) {
    const char* next = w.at + (g * w.wide + n + kPanel) * w.channel;
    Fetch fetch = {next, next + w.channel * kPanel};
    if (fetch.end > last) fetch.end = last;
    for (int64_t line = 0; line < r.lines; ++line)
      each_height<kTall>(r.count, [&](int64_t from, int count) { tile(g, n, line, from, count, fetch); });
    n += kPanel;
    if (n >= w.out) n = 0, ++g;
  }
}
