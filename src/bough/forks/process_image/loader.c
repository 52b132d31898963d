/*
 * Become a captured process: carry out the program that lies in the file of the descriptor that the first argument
 * names, and go on where that process stood. Written by program.py. The other arguments are for those who look at
 * the list of processes, and are left where the kernel finds them.
 *
 * x86-64, Linux, no library: nothing of it may lie where the other process had something. It and what it reads
 * are in 1 GiB from BASE on, where no kernel puts anything by itself; the little that stays mapped does nothing.
 * Built by scripts/make_loader.py into loader_x86_64.py.
 */
#include <asm/sigcontext.h>
#include <asm/signal.h>
#include <asm/ucontext.h>
#include <asm/unistd.h>

typedef unsigned long u64;
typedef unsigned int u32;
typedef long i64;

#define BASE 0x10000000000UL
#define PROGRAM (BASE + 0x10000000UL)
#define SCRATCH (BASE + 0x20000000UL)
#define ASIDE (BASE + 0x30000000UL)
#define END (BASE + 0x40000000UL)
#define LOWEST 0x10000UL
#define HIGHEST 0x7ffffffff000UL
#define PAGE 4096UL
/* For this program's own stack. */
#define STACK (16 * PAGE)

#define MAGIC 0x3177616874UL
#define CLOEXEC 02000000

enum {
    MAP = 1,       /* address, length, protection, flags, descriptor, offset */
    COPY,          /* descriptor, new number, flags */
    CLOSE,         /* first, last */
    OPEN,          /* number, path, flags */
    EVENTFD,       /* number, flags */
    SIGNALFD,      /* number, mask, flags */
    EPOLL,         /* number, flags */
    WATCH,         /* epoll, descriptor, events, data */
    STATUS,        /* descriptor, flags */
    LOCK,          /* descriptor, type, start, length */
    ACTION,        /* signal, struct kernel_sigaction */
    WRITE,         /* address, bytes, how many */
    FILTER,        /* struct sock_filter[], how many */
    KERNEL_ASIDE,  /* distance from the vdso, length, distance in ASIDE */
    KERNEL_BACK,   /* distance in ASIDE, length, address */
    CLEAR,         /* unmap all that is not ours, but for the arguments */
    BOUND,         /* number, struct sockaddr_un, size, flags */
};

struct step {
    u64 kind, a[6];
};

struct thread {
    u64 tid, fs, robust, robust_size, rseq, rseq_size, rseq_signature, mask;
    char name[16];
    u64 registers[27];
};

struct program {
    u64 magic, steps, step_count, threads, thread_count;
    u64 arguments, arguments_end; /* put there by ourselves */
};

/* struct user_regs_struct. */
enum { R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI, ORIG_RAX, RIP, CS, EFLAGS, RSP };

static inline i64 call(u64 number, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
    i64 result;
    register u64 r10 __asm__("r10") = d;
    register u64 r8 __asm__("r8") = e;
    register u64 r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static void say(const char *text)
{
    u64 length = 0;
    while (text[length])
        length++;
    call(__NR_write, 2, (u64)text, length, 0, 0, 0);
}

static void say_number(u64 value)
{
    char digits[20];
    int at = 20;
    do {
        digits[--at] = '0' + value % 10;
        value /= 10;
    } while (value);
    call(__NR_write, 2, (u64)(digits + at), 20 - at, 0, 0, 0);
}

static __attribute__((noreturn)) void fail(u64 step, u64 kind, i64 error)
{
    say("bough-loader: step ");
    say_number(step);
    say(" (kind ");
    say_number(kind);
    say(") failed with error ");
    say_number(-error);
    say("\n");
    for (;;)
        call(__NR_exit_group, 71, 0, 0, 0, 0, 0);
}

/* A descriptor that was just made, to that number. */
static i64 put(i64 made, u64 number, u64 flags)
{
    if (made < 0 || (u64)made == number)
        return made;
    i64 result = call(__NR_dup3, made, number, flags & CLOEXEC, 0, 0, 0);
    call(__NR_close, made, 0, 0, 0, 0, 0);
    return result;
}

static i64 exactly(i64 got, u64 wanted)
{
    return (u64)got == wanted ? 0 : got < 0 ? got : -17;
}

static i64 carry_out(struct program *p, u64 kind, u64 *a, u64 vdso)
{
    u64 base = (u64)p;
    switch (kind) {
    case MAP:
        return exactly(call(__NR_mmap, a[0], a[1], a[2], a[3], a[4], a[5]), a[0]);
    case COPY:
        return call(__NR_dup3, a[0], a[1], a[2], 0, 0, 0);
    case CLOSE:
        return call(__NR_close_range, a[0], a[1], 0, 0, 0, 0);
    case OPEN:
        return put(call(__NR_openat, (u64)-100, base + a[1], a[2], 0, 0, 0), a[0], a[2]);
    case EVENTFD:
        return put(call(__NR_eventfd2, 0, a[1], 0, 0, 0, 0), a[0], a[1]);
    case SIGNALFD:
        return put(call(__NR_signalfd4, (u64)-1, (u64)&a[1], 8, a[2], 0, 0), a[0], a[2]);
    case EPOLL:
        return put(call(__NR_epoll_create1, a[1], 0, 0, 0, 0, 0), a[0], a[1]);
    case WATCH: {
        struct {
            u32 events;
            u64 data;
        } __attribute__((packed)) event = {a[2], a[3]};
        return call(__NR_epoll_ctl, a[0], 1, a[1], (u64)&event, 0, 0);
    }
    case STATUS:
        return call(__NR_fcntl, a[0], 4, a[1], 0, 0, 0);
    case LOCK: {
        struct {
            short type, whence;
            int padding;
            u64 start, length;
            int pid;
        } lock = {a[1], 0, 0, a[2], a[3], 0};
        return call(__NR_fcntl, a[0], 37, (u64)&lock, 0, 0, 0);
    }
    case ACTION:
        return call(__NR_rt_sigaction, a[0], base + a[1], 0, 8, 0, 0);
    case WRITE:
        for (u64 at = 0; at < a[2]; at++)
            ((volatile char *)a[0])[at] = ((char *)base + a[1])[at];
        return 0;
    case FILTER: {
        struct {
            unsigned short length;
            u64 steps;
        } filter = {a[1], base + a[0]};
        call(__NR_prctl, 38, 1, 0, 0, 0, 0); /* PR_SET_NO_NEW_PRIVS, as a rule set already */
        return call(__NR_seccomp, 1, 0, (u64)&filter, 0, 0, 0);
    }
    case KERNEL_ASIDE:
        return exactly(call(__NR_mremap, vdso + a[0], a[1], a[1], 3, ASIDE + a[2], 0), ASIDE + a[2]);
    case KERNEL_BACK:
        return exactly(call(__NR_mremap, ASIDE + a[0], a[1], a[1], 3, a[2], 0), a[2]);
    case BOUND: {
        i64 made = call(__NR_socket, 1, 2 | a[3], 0, 0, 0, 0); /* AF_UNIX, SOCK_DGRAM */
        i64 result = made < 0 ? made : call(__NR_bind, made, base + a[1], a[2], 0, 0, 0);
        return result < 0 ? result : put(made, a[0], a[3]);
    }
    case CLEAR: {
        i64 result = call(__NR_munmap, LOWEST, BASE - LOWEST, 0, 0, 0, 0);
        if (result >= 0)
            result = call(__NR_munmap, END, p->arguments - END, 0, 0, 0, 0);
        if (result >= 0)
            result = call(__NR_munmap, p->arguments_end, HIGHEST - p->arguments_end, 0, 0, 0, 0);
        return result;
    }
    }
    return -38;
}

/* As that thread, in the call that it waited in. What its processor's extended registers held, no call of the
   kernel's keeps for its caller. */
static __attribute__((noreturn)) void go_on(struct thread *t, struct ucontext *frame)
{
    u64 *r = t->registers;
    if (t->name[0])
        call(__NR_prctl, 15, (u64)t->name, 0, 0, 0, 0);
    call(__NR_set_robust_list, t->robust, t->robust_size, 0, 0, 0, 0);
    if (t->rseq)
        call(__NR_rseq, t->rseq, t->rseq_size, 0, t->rseq_signature, 0, 0);
    struct sigcontext *c = (struct sigcontext *)&frame->uc_mcontext;
    c->r8 = r[R8];
    c->r9 = r[R9];
    c->r10 = r[R10];
    c->r11 = r[R11];
    c->r12 = r[R12];
    c->r13 = r[R13];
    c->r14 = r[R14];
    c->r15 = r[R15];
    c->rdi = r[RDI];
    c->rsi = r[RSI];
    c->rbp = r[RBP];
    c->rbx = r[RBX];
    c->rdx = r[RDX];
    c->rax = r[RAX];
    c->rcx = r[RCX];
    c->rsp = r[RSP];
    c->rip = r[RIP];
    c->eflags = r[EFLAGS];
    c->cs = 0x33;
    c->ss = 0x2b;
    c->fpstate = 0;
    frame->uc_flags = UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
    frame->uc_stack.ss_flags = 2; /* SS_DISABLE */
    frame->uc_sigmask = t->mask;
    __asm__ volatile("mov %0, %%rsp; mov %1, %%eax; syscall; ud2" ::"r"(frame), "i"(__NR_rt_sigreturn) : "memory");
    __builtin_unreachable();
}

/* What pthread_create asks for: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID. */
#define NEW_THREAD 0x3d0f00UL

static i64 begin(struct thread *t, struct ucontext *frame, u64 stack)
{
    u64 *top = (u64 *)stack;
    *--top = (u64)frame;
    *--top = (u64)t;
    *--top = (u64)go_on;
    i64 result;
    register u64 r10 __asm__("r10") = t->tid;
    register u64 r8 __asm__("r8") = t->fs;
    __asm__ volatile("syscall; test %%rax, %%rax; jnz 1f; pop %%rax; pop %%rdi; pop %%rsi; call *%%rax; 1:"
                     : "=a"(result)
                     : "a"(__NR_clone), "D"(NEW_THREAD), "S"(top), "d"(t->tid), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

static __attribute__((noreturn)) void become(struct program *p, u64 vdso)
{
    struct step *steps = (struct step *)((u64)p + p->steps);
    struct thread *threads = (struct thread *)((u64)p + p->threads);
    for (u64 at = 0; at < p->step_count; at++) {
        i64 result = carry_out(p, steps[at].kind, steps[at].a, vdso);
        if (result < 0)
            fail(at, steps[at].kind, result);
    }
    u64 page = SCRATCH;
    for (u64 at = 1; at < p->thread_count; at++, page += PAGE) {
        i64 result = begin(threads + at, (struct ucontext *)page, page + PAGE);
        if (result < 0)
            fail(at, 100, result);
    }
    *(int *)threads->tid = call(__NR_set_tid_address, threads->tid, 0, 0, 0, 0, 0);
    call(__NR_arch_prctl, 0x1002, threads->fs, 0, 0, 0, 0); /* ARCH_SET_FS */
    go_on(threads, (struct ucontext *)page);
}

__attribute__((used, noreturn)) static void start(u64 *words)
{
    u64 count = words[0], *auxiliary = words + 1 + count + 1, vdso = 0, descriptor = 0;
    char *number = (char *)words[2], status[256];
    if (count < 2)
        fail(0, 0, -22);
    char *last = (char *)words[count];
    while (*last)
        last++;
    while (*auxiliary)
        auxiliary++;
    for (auxiliary++; *auxiliary; auxiliary += 2)
        if (*auxiliary == 33) /* AT_SYSINFO_EHDR */
            vdso = auxiliary[1];
    while (*number)
        descriptor = descriptor * 10 + *number++ - '0';
    i64 result = call(__NR_fstat, descriptor, (u64)status, 0, 0, 0, 0);
    if (result < 0)
        fail(0, 101, result);
    struct program *p = (struct program *)PROGRAM;
    result = call(__NR_mmap, PROGRAM, *(u64 *)(status + 48), 3, 0x12, descriptor, 0);
    if (result < 0 || p->magic != MAGIC)
        fail(0, 102, result < 0 ? result : -8);
    p->arguments = words[1] & ~(PAGE - 1);
    p->arguments_end = ((u64)last + PAGE) & ~(PAGE - 1);
    u64 length = p->thread_count * PAGE + STACK;
    result = call(__NR_mmap, SCRATCH, length, 3, 0x32, (u64)-1, 0);
    if (result < 0)
        fail(0, 103, result);
    call(__NR_close, descriptor, 0, 0, 0, 0, 0);
    __asm__ volatile("mov %0, %%rsp; xor %%ebp, %%ebp; call *%1; ud2" ::"r"(SCRATCH + length), "r"(become), "D"(p),
                     "S"(vdso)
                     : "memory");
    __builtin_unreachable();
}

__asm__(".globl _start\n_start: mov %rsp, %rdi; and $-16, %rsp; call start; ud2");
