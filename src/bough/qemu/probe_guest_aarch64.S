# As probe_guest.S, for QEMU's "virt" machine of this processor: from flash, without paging. 40 million
# instructions, its token on the PL011, and off by PSCI (Arm DEN 0022): exit status 0.
#
#   aarch64-linux-gnu-as -o guest.o probe_guest_aarch64.S
#   aarch64-linux-gnu-ld -N -Ttext 0 -o guest.elf guest.o
#   aarch64-linux-gnu-objcopy -O binary -j .text guest.elf guest.bin

.text
.globl _start
_start: ldr     w0, =20000000
1:      subs    w0, w0, #1
        b.ne    1b
        mov     x1, #0x09000000
        mov     w2, #0x301              // UARTCR: enabled, to send and to receive
        str     w2, [x1, #0x30]
        adr     x3, token
2:      ldrb    w2, [x3], #1
        cbz     w2, 3f
        str     w2, [x1]
        b       2b
3:      ldr     w0, =0x84000008         // SYSTEM_OFF
        hvc     #0
4:      wfi
        b       4b

token:  .asciz "bough-probe-ok\n"
.balign 8
.ltorg
