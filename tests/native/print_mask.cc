// Prints masks of the native library as rows of 0 and 1, for processors that are emulated and have no Python.
// Arguments: any number of groups OP ISA KEY SAMPLE ROWS ELEMENTS LIMIT; OP is mask or exact, KEY unsigned.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../native/leanconv.h"

static int32_t number_of(const char* isa) {
  int32_t number = 0;
  char names[64];
  strncpy(names, lc_isas(), sizeof names - 1);
  names[sizeof names - 1] = 0;
  for (char* name = strtok(names, ","); name; name = strtok(nullptr, ","), ++number)
    if (!strcmp(name, isa)) return number;
  return -1;
}

int main(int argc, char** argv) {
  for (int i = 1; i + 6 < argc; i += 7) {
    lc_mask m = {sizeof(lc_mask), number_of(argv[i + 1]), strtoull(argv[i + 2], nullptr, 10),
                 strtoull(argv[i + 3], nullptr, 10), atoll(argv[i + 4]), atoll(argv[i + 5]), atoll(argv[i + 6]),
                 nullptr, nullptr};
    m.out = (uint8_t*)malloc((size_t)(m.rows * m.elements));
    const int32_t failure = strcmp(argv[i], "mask") ? lc_keep_exact(&m) : lc_keep_mask(&m);
    if (failure) return failure;
    for (int64_t e = 0; e < m.rows * m.elements; ++e) putchar('0' + m.out[e]);
    putchar('\n');
    free(m.out);
  }
  return 0;
}
