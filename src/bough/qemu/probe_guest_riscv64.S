# As probe_guest.S, for QEMU's "virt" machine of this processor: in machine mode, without paging. 40 million
# instructions, its token on the 16550, and off by the test device: exit status 0.
#
#   riscv64-linux-gnu-as -o guest.o probe_guest_riscv64.S
#   riscv64-linux-gnu-ld -N -Ttext 0x80000000 -o guest.elf guest.o
#   riscv64-linux-gnu-objcopy -O binary -j .text guest.elf guest.bin

.option norelax
.text
.globl _start
_start: csrr    t0, mhartid
        bnez    t0, 4f
        li      t0, 20000000
1:      addi    t0, t0, -1
        bnez    t0, 1b
        li      t1, 0x10000000
        la      t2, token
2:      lbu     t0, 0(t2)
        beqz    t0, 3f
        sb      t0, 0(t1)
        addi    t2, t2, 1
        j       2b
3:      li      t1, 0x100000
        li      t0, 0x5555
        sw      t0, 0(t1)
4:      wfi
        j       4b

token:  .asciz "bough-probe-ok\n"
.balign 8
