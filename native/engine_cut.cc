// How a step over a batch is cut into tasks. Rows of pixels where there are enough of them for all threads: each then reads
// what it wrote. Panels of output channels where there are few pixels; what is made before the product is shared then.
#include "engine_steps.h"

namespace {

enum {
  kTasks = 4,          // for each thread: more than one, so that a late thread's are taken by others
  kFewestPixels = 49,  // of a task that reads all weights
  kFewestFloats = 16384,  // of a task that computes little
  kFewestRows = 7,     // of a task that makes what the rows between two tasks need twice
};

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Cut {
 public:
  Cut(lc_prepared* s, const lc_runners& runners, int64_t images, int64_t threads)
      : s_(*s), runs_(runners.of(s->layers[0])), images_(images), threads_(threads), room_{} {}

  bool run(lc_room* room, int64_t* steps) {
    *steps = 1;
    s_.phases_count = s_.first = 0;
    for (int64_t i = 0; i < s_.chain; ++i)
      for (const lc_layer& l : (&s_)[i].layers)
        if (!fits(l)) return false;
    if (s_.chain > 1 && whole(s_.chain)) {
      *steps = s_.chain;
      chain(&s_, s_.chain);
    } else if (s_.parts == 3) {
      triple();
    } else if (s_.parts == 2) {
      pair(s_.layers, s_.x, s_.layers[0].channels, 0);
    } else if (s_.op == LC_CONV || s_.op == LC_LINEAR) {
      convolution();
    } else {
      simple();
    }
    for (int64_t i = 0; i < s_.phases_count; ++i) {
      lc_phase& p = s_.phases[i];
      p.tasks = p.work.down * p.work.across;
      p.work.scratch_size = runs_.scratch(p.work);
      room_.scratch = most(room_.scratch, p.work.scratch_size);
    }
    *room = room_;
    return !too_large_;
  }

 private:
  bool fits(const lc_layer& l) const {
    int64_t size;
    const int64_t in = l.height * l.width * l.channels, out = l.out_height * l.out_width * l.out_channels;
    return !__builtin_mul_overflow(most(in, out), images_, &size) && size <= kLcMost;
  }
  // Numbers shared by threads: a map of all images.
  void share(int64_t height, int64_t width, int64_t pixel) {
    int64_t size;
    too_large_ |= __builtin_mul_overflow(height * width, pixel, &size) || __builtin_mul_overflow(size, images_, &size) || size > kLcMost;
    if (!too_large_) room_.shared += ceil_div(size, s_.layers[0].quantized ? 64 : 16) * 16;
  }

  lc_phase& phase(const lc_layer* layer, int64_t parts, int64_t x, int64_t x_pixel, int64_t y, int64_t y_pixel, int64_t rows) {
    lc_phase& p = s_.phases[s_.phases_count++];
    p = {};
    p.work.layer = layer, p.work.images = images_, p.work.rows = rows, p.work.down = p.work.across = 1;
    p.work.x_pixel = x_pixel, p.work.y_pixel = y_pixel;
    for (int64_t i = 0; i < parts; ++i) p.work.stages[i] = layer + i;
    p.work.stages_count = parts;
    p.x = x, p.y = y, p.second = -1;
    p.task = runs_.task(p.work);
    return p;
  }

  // As many tasks as there are threads, or some for each, of at least so many rows.
  int64_t tasks(int64_t rows, int64_t fewest) const {
    if (threads_ == 1) return 1;
    const int64_t count = most(1, least(threads_ * kTasks, rows / most(1, fewest)));
    return count > threads_ ? count / threads_ * threads_ : count;
  }
  int64_t rows_of(const lc_layer& l) const { return l.flat ? images_ * l.out_height * l.out_width : images_ * l.out_height; }
  int64_t fewest_rows(const lc_layer& l) const { return l.flat ? (int64_t)kFewestPixels : ceil_div(kFewestPixels, l.out_width); }
  bool by_rows(const lc_layer& l) const { return threads_ == 1 || tasks(rows_of(l), fewest_rows(l)) >= threads_; }

  // A product that is cut in both directions.
  void grid(const lc_layer& l, lc_phase& p) const {
    p.work.across = least(runs_.panels(l), threads_ * kTasks);
    const int64_t wanted = ceil_div(threads_ * kTasks, p.work.across);
    p.work.down = p.work.across % threads_ == 0 ? 1 : most(1, least(wanted, p.work.rows / (l.flat ? 14 : 1)));
  }

  void convolution() {
    const lc_layer& l = s_.layers[0];
    if (by_rows(l)) {
      lc_phase& p = phase(&l, 1, s_.x, l.channels, s_.y, l.out_channels, rows_of(l));
      p.second = s_.second;
      p.work.down = tasks(p.work.rows, fewest_rows(l));
      return;
    }
    int64_t x = s_.x, pixel = l.channels;
    if (l.copied && !l.flat) {
      const int64_t height = runs_.copy_height(l);
      lc_phase& p = phase(&l, 1, x, pixel, LC_SHARED, l.pixel, images_ * height);
      p.work.copies = 1;
      p.task = runs_.task(p.work);
      p.work.down = tasks(p.work.rows, ceil_div(kFewestFloats, l.wide * l.pixel));
      share(height, l.wide, l.pixel);
      x = LC_SHARED, pixel = l.pixel;
    }
    lc_phase& p = phase(&l, 1, x, pixel, s_.y, l.out_channels, rows_of(l));
    p.second = s_.second;
    p.work.prepared = x == LC_SHARED;
    grid(l, p);
  }

  // Depthwise, 1x1. `before`: floats of shared memory that are taken.
  void pair(const lc_layer* layers, int64_t x, int64_t x_pixel, int64_t before) {
    const lc_layer &d = layers[0], &l = layers[1];
    const int64_t rows = images_ * d.out_height, fewest = ceil_div(kFewestPixels, d.out_width);
    if (threads_ == 1 || tasks(rows, fewest) >= threads_) {
      lc_phase& p = phase(layers, 2, x, x_pixel, s_.y, l.out_channels, rows);
      p.second = s_.second;
      p.work.down = tasks(rows, fewest);
      return;
    }
    const int64_t between = before ? (int64_t)LC_SHARED_TOO : (int64_t)LC_SHARED;
    s_.first = before;
    share(d.out_height, d.out_width, l.pixel);
    lc_phase& first = phase(layers, 1, x, x_pixel, between, l.pixel, rows);
    first.work.down = tasks(rows, 1);
    lc_phase& p = phase(&l, 1, between, l.pixel, s_.y, l.out_channels, rows_of(l));
    p.second = s_.second;
    p.work.prepared = 1;
    grid(l, p);
  }

  // Whether threads find rows enough where some are made twice between two tasks.
  bool whole(int64_t count) const {
    const lc_prepared& last = (&s_)[count - 1];
    const int64_t rows = images_ * last.layers[last.parts - 1].out_height;
    return threads_ == 1 || rows / threads_ >= kFewestRows || images_ % threads_ == 0;
  }
  void chain(const lc_prepared* steps, int64_t count) {
    const lc_prepared& end = steps[count - 1];
    const lc_layer& last = end.layers[end.parts - 1];
    lc_phase& p = phase(s_.layers, 1, s_.x, s_.layers[0].channels, end.y, last.out_channels, images_ * last.out_height);
    p.work.stages_count = 0;
    p.joined = count > 1;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < steps[i].parts; ++j) p.work.stages[p.work.stages_count++] = steps[i].layers + j;
    p.second = end.second;
    p.task = runs_.task(p.work);
    p.work.down = threads_ == 1 ? 1 : images_ >= 2 * threads_ ? least(images_, threads_ * kTasks) : least(p.work.rows, threads_);
  }

  // 1x1, depthwise, 1x1.
  void triple() {
    const lc_layer &e = s_.layers[0], &d = s_.layers[1];
    if (whole(1)) return chain(&s_, 1);
    share(e.out_height, e.out_width, d.pixel);
    lc_phase& first = phase(&e, 1, s_.x, e.channels, LC_SHARED, d.pixel, rows_of(e));
    if (by_rows(e))
      first.work.down = tasks(first.work.rows, fewest_rows(e));
    else
      grid(e, first);
    pair(s_.layers + 1, LC_SHARED, d.pixel, room_.shared);
  }

  void simple() {
    const lc_layer& l = s_.layers[0];
    const bool rows = l.op == LC_DEPTHWISE || l.op == LC_MAX_POOL || l.op == LC_AVG_POOL;
    const int64_t pixels = l.out_height * l.out_width;
    lc_phase& p = phase(&l, 1, s_.x, l.channels, s_.y, l.out_channels, images_ * (rows ? l.out_height : pixels));
    const int64_t row = (rows ? l.out_width : 1) * (l.op == LC_MEAN ? l.height * l.width : 1) * l.out_channels;
    p.work.down = tasks(p.work.rows, ceil_div(kFewestFloats, row));
    p.second = s_.second;
    p.work.spread = &s_.spread;
    p.work.inputs = s_.maps, p.work.channels = s_.channels, p.work.count = s_.count;
    p.work.operands = s_.operands;
  }

  lc_prepared& s_;
  const lc_runs& runs_;
  const int64_t images_, threads_;
  lc_room room_;
  bool too_large_ = false;
};

}  // namespace

bool lc_cut_step(lc_prepared* step, const lc_runners& runners, int64_t images, int64_t threads, lc_room* room, int64_t* steps) {
  return Cut(step, runners, images, threads).run(room, steps);
}
