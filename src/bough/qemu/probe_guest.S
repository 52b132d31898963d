# A guest that proves an accelerator: 64 KiB of firmware that goes from real mode through protected mode
# to long mode with paging, checks that paging does what it should, says so on the debug port (0xe9),
# runs 40 million instructions, says so, and powers off through isa-debug-exit (0xf4).
#
# A KVM that emulates every instruction (no hardware virtualization below it) gets as far as the first
# modes and then needs a minute for what takes 20 ms: the time given to the guest tells.
#
#   as --64 -o guest.o probe_guest.S && ld -N -Ttext 0xffff0000 --oformat binary -o guest.bin guest.o

.set PML4, 0x1000
.set PDPT, 0x2000
.set LOW, 0x3000                        # 0 .. 4 MiB, where it is
.set ALIAS, 0x4000                      # 1 GiB .. 1 GiB + 2 MiB, onto 2 MiB .. 4 MiB
.set HIGH, 0x5000                       # the last 2 MiB below 4 GiB: this code

.text
.globl _start
_start:
.code16
real_mode:
        cli
        lgdtl %cs:gdt_register - _start
        movl %cr0, %eax
        orl $1, %eax
        movl %eax, %cr0
        ljmpl $0x08, $protected_mode

.code32
protected_mode:
        movw $0x10, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        cld
        movl $PML4, %edi                # five empty tables
        xorl %eax, %eax
        movl $(5 * 4096 / 4), %ecx
        rep stosl
        movl $(PDPT + 3), PML4
        movl $(LOW + 3), PDPT
        movl $(ALIAS + 3), PDPT + 8
        movl $(HIGH + 3), PDPT + 24
        movl $0x00000083, LOW           # pages of 2 MiB
        movl $0x00200083, LOW + 8
        movl $0x00200083, ALIAS
        movl $0xffe00083, HIGH + 511 * 8
        movl %cr4, %eax
        orl $0x20, %eax                 # PAE
        movl %eax, %cr4
        movl $PML4, %eax
        movl %eax, %cr3
        movl $0xc0000080, %ecx          # EFER.LME
        rdmsr
        orl $0x100, %eax
        wrmsr
        movl %cr0, %eax
        orl $0x80000000, %eax           # PG
        movl %eax, %cr0
        ljmpl $0x18, $long_mode

.code64
long_mode:
        movl $0x62060001, 0x200000      # written here
        movl $0x40000000, %ebx
        cmpl $0x62060001, (%rbx)        # read there
        jne failed
        movb $'.', %al                  # it runs: from here on its own speed counts
        outb %al, $0xe9
        movl $20000000, %ecx
1:      decl %ecx
        jnz 1b
        leaq token(%rip), %rsi
2:      lodsb
        testb %al, %al
        jz done
        outb %al, $0xe9
        jmp 2b
done:   movb $0x10, %al                 # exit status 33
        outb %al, $0xf4
failed: hlt
        jmp failed

token:  .asciz "bough-probe-ok\n"

.balign 8
gdt:    .quad 0
        .quad 0x00cf9b000000ffff        # 0x08: code, 32 bits
        .quad 0x00cf93000000ffff        # 0x10: data
        .quad 0x00af9b000000ffff        # 0x18: code, 64 bits
gdt_register:
        .word gdt_register - gdt - 1
        .long gdt

.org 0xfff0
.code16
        jmp real_mode
.org 0x10000
