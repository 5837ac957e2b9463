/* Hides instruction sets beyond AVX2 from a program that asks the processor what it has (Linux, x86-64, a processor
 * that can refuse CPUID: /proc/cpuinfo says cpuid_fault). Loaded by LD_PRELOAD; benchmarks/contending.py compiles it.
 * CPUID then raises SIGSEGV, and the handler answers in its place. A program's own handler of SIGSEGV is not installed. */

#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))

static void allow(long on) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, on); }

static void hide(unsigned leaf, unsigned part, unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
  if (leaf == 7 && part == 0) {
    *b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* AVX-512 */
    *c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));                               /* its extensions */
    *d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));            /* and AMX */
  }
  if (leaf == 7 && part == 1) {
    *a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));             /* AVX-VNNI, bfloat16, AMX float16, AVX-IFMA */
    *d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19)); /* AVX-VNNI-INT8 and 16, AVX10 */
  }
  if (leaf == 0xd && part == 0) *a &= ~(BIT(5) | BIT(6) | BIT(7) | BIT(17) | BIT(18)); /* their registers */
}

typedef int set_action(int, const struct sigaction *, struct sigaction *);
typedef void (*handler)(int);

static set_action *set(void) {
  static set_action *found;
  if (!found) *(void **)&found = dlsym(RTLD_NEXT, "sigaction");
  return found;
}

int sigaction(int number, const struct sigaction *wanted, struct sigaction *before) {
  return set()(number, number == SIGSEGV ? NULL : wanted, before);
}

handler signal(int number, handler wanted) {
  struct sigaction action = {.sa_handler = wanted, .sa_flags = SA_RESTART}, before;
  return sigaction(number, &action, &before) ? SIG_ERR : before.sa_handler;
}

static void answer(int number, siginfo_t *about, void *given) {
  greg_t *r = ((ucontext_t *)given)->uc_mcontext.gregs;
  const unsigned char *code = (const unsigned char *)r[REG_RIP];
  (void)about;
  if (code[0] != 0x0f || code[1] != 0xa2) { /* not CPUID: a fault as any other */
    struct sigaction action = {.sa_handler = SIG_DFL};
    set()(number, &action, NULL);
    return;
  }
  unsigned leaf = (unsigned)r[REG_RAX], part = (unsigned)r[REG_RCX], a, b, c, d;
  allow(1);
  __cpuid_count(leaf, part, a, b, c, d);
  allow(0);
  hide(leaf, part, &a, &b, &c, &d);
  r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
  r[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
  if (set()(SIGSEGV, &action, NULL) || syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
    fputs("cpuid: this processor or system cannot refuse CPUID\n", stderr);
    _exit(70);
  }
}
