# As probe_guest.S, for processors without long mode: real mode, protected mode, paging with pages of
# 4 MiB, a check of that, a sign, 40 million instructions, its token, and off.
#
#   as --32 -o guest.o probe_guest_i386.S
#   ld -m elf_i386 -N -Ttext 0xffff0000 --oformat binary -o guest.bin guest.o

.set DIRECTORY, 0x1000

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
        movl $DIRECTORY, %edi           # an empty directory
        xorl %eax, %eax
        movl $1024, %ecx
        rep stosl
        movl $0x00000083, DIRECTORY     # 0 .. 4 MiB, where it is
        movl $0x00000083, DIRECTORY + 256 * 4   # and at 1 GiB
        movl $0xffc00083, DIRECTORY + 1023 * 4  # the last 4 MiB: this code
        movl %cr4, %eax
        orl $0x10, %eax                 # PSE
        movl %eax, %cr4
        movl $DIRECTORY, %eax
        movl %eax, %cr3
        movl %cr0, %eax
        orl $0x80000000, %eax           # PG
        movl %eax, %cr0
        jmp 1f
1:      movl $0x62060001, 0x200000      # written here
        movl $0x40200000, %ebx
        cmpl $0x62060001, (%ebx)        # read there
        jne failed
        movb $'.', %al                  # it runs: from here on its own speed counts
        outb %al, $0xe9
        movl $20000000, %ecx
1:      decl %ecx
        jnz 1b
        movl $token, %esi
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
gdt_register:
        .word gdt_register - gdt - 1
        .long gdt

.org 0xfff0
.code16
        jmp real_mode
.org 0x10000
