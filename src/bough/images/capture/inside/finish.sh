# In the capture machine: make the copy at $new bootable here, neutral in its network, and quiet.
# bough sets: running_kernel, parameters, quiet, scrub. Lines with @ tell bough what was done.
# What is replaced is kept below $aside, at its path.
set -eu
new=/run/bough-capture/new
aside=/var/lib/bough-capture
root=$(findmnt -no SOURCE "$new")
root_uuid=$(blkid -o value -s UUID "$root")
disk=$(lsblk -no pkname "$root")
in_copy() { chroot "$new" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@"; }
put_aside() { # paths in the copy
    for path in "$@"; do
        [ -e "$new$path" ] || [ -L "$new$path" ] || continue
        mkdir -p "$new$aside$(dirname "$path")"
        mv -f "$new$path" "$new$aside$path"
        echo "@aside $path"
    done
}
matches() { (cd "$new" && for path in $1; do [ ! -e "$path" ] || echo "/$path"; done); }

for place in proc sys dev run; do mkdir -p "$new/$place"; done
mkdir -p "$new/tmp" "$new$aside"
chmod 1777 "$new/tmp"
chmod 700 "$new$aside"

# The table of file systems: one root. Other lines stay as comments, for whoever wants to know.
if [ -f "$new/etc/fstab" ]; then cp -p "$new/etc/fstab" "$new$aside/fstab"; fi
{
    echo "UUID=$root_uuid / ext4 errors=remount-ro 0 1"
    awk '/^[ \t]*(#|$)/ { print; next }
        $3 ~ /^(tmpfs|proc|sysfs|devpts)$/ { print; next }
        { print "# of the captured host: " $0 }' "$new$aside/fstab" 2> /dev/null || :
} > "$new/etc/fstab.new"
mv "$new/etc/fstab.new" "$new/etc/fstab"
put_aside /etc/crypttab /etc/mdadm/mdadm.conf /etc/initramfs-tools/conf.d/resume

# The network: addresses by DHCP, from whatever manages it.
put_aside /etc/udev/rules.d/70-persistent-net.rules
put_aside $(matches 'etc/netplan/*.y*ml') $(matches 'etc/systemd/network/*.network') \
    $(matches 'etc/systemd/network/*.netdev') $(matches 'etc/systemd/network/*.link') \
    $(matches 'etc/NetworkManager/system-connections/*') $(matches 'etc/sysconfig/network-scripts/ifcfg-e*')
if [ -d "$new/etc/netplan" ]; then
    printf 'network:\n  version: 2\n  ethernets:\n    all:\n      match: {name: "e*"}\n      dhcp4: true\n' \
        > "$new/etc/netplan/50-bough.yaml"
    chmod 600 "$new/etc/netplan/50-bough.yaml"
elif [ -e "$new/etc/systemd/system/multi-user.target.wants/systemd-networkd.service" ]; then
    mkdir -p "$new/etc/systemd/network"
    printf '[Match]\nType=ether\n[Network]\nDHCP=yes\n' > "$new/etc/systemd/network/50-bough.network"
fi
if [ -f "$new/etc/network/interfaces" ]; then
    put_aside /etc/network/interfaces $(matches 'etc/network/interfaces.d/*')
    printf 'auto lo\niface lo inet loopback\nauto /e*=eth\niface eth inet dhcp\n' > "$new/etc/network/interfaces"
fi

# Mail and periodic commands are held back: a copy of production must not act as production.
if [ "$quiet" = yes ]; then
    echo "bough-speak removes this file, and starts mail and periodic commands at the next boot." > "$new/etc/bough-quiet"
    for unit in $(cd "$new" && ls -d lib/systemd/system/*.service usr/lib/systemd/system/*.service \
        etc/systemd/system/*.service etc/systemd/system/timers.target.wants/*.timer 2> /dev/null); do
        name=${unit##*/}
        case $name in
            postfix.service | postfix@*.service | exim*.service | sendmail.service | opensmtpd.service | \
                nullmailer.service | msmtpd.service | cron.service | crond.service | cronie.service | \
                anacron.service | atd.service | fcron.service | fetchmail.service | *.timer)
                mkdir -p "$new/etc/systemd/system/$name.d"
                printf '[Unit]\nConditionPathExists=!/etc/bough-quiet\n' > "$new/etc/systemd/system/$name.d/bough-quiet.conf"
                echo "@quiet $name"
                ;;
        esac
    done
    for link in $(cd "$new" && ls -d etc/rc[2-5].d/S[0-9]* etc/runlevels/*/* 2> /dev/null); do
        case ${link##*/} in
            *postfix | *exim4 | *exim | *sendmail | *nullmailer | *opensmtpd | *cron | *crond | *cronie | *anacron | *atd | *fcron)
                mkdir -p "$new$aside/$(dirname "$link")"
                mv -f "$new/$link" "$new$aside/$link"
                echo "$link" >> "$new$aside/held"
                echo "@quiet ${link##*/}"
                ;;
        esac
    done
    mkdir -p "$new/usr/local/sbin"
    cat > "$new/usr/local/sbin/bough-speak" <<'END'
#!/bin/sh
# Let this copy of a host send mail and run its periodic commands, from the next boot on.
set -eu
aside=/var/lib/bough-capture
if [ -f "$aside/held" ]; then
    while read -r link; do mv "$aside/$link" "/$link"; done < "$aside/held"
    rm "$aside/held"
fi
rm -f /etc/bough-quiet
echo "mail and periodic commands start at the next boot"
END
    chmod 755 "$new/usr/local/sbin/bough-speak"
fi

# Secrets, if the user asked: keys and passwords of people and of programs.
if [ "$scrub" = yes ]; then
    cd "$new"
    find root home etc var/lib/postgresql var/lib/mysql -xdev -type f \( \
        -path '*/.ssh/id_*' ! -name '*.pub' -o -path '*/.aws/credentials' -o -path '*/.docker/config.json' \
        -o -path '*/.kube/config' -o -path '*/.config/gcloud/*' -o -name .netrc -o -name .pgpass -o -name .my.cnf \
        -o -name .git-credentials -o -name '.*_history' -o -path 'etc/ssh/ssh_host_*_key' -o -path 'etc/ssl/private/*' \
        -o -path 'etc/letsencrypt/*privkey*' -o -path 'etc/wireguard/*' -o -name '*.keytab' \) -print 2> /dev/null |
        while read -r path; do rm -f "$path" && echo "@scrubbed /$path"; done
    if [ -f etc/shadow ]; then
        awk -F: -v OFS=: '{ if ($2 != "" && $2 !~ /^[!*]/) $2 = "!"; print }' etc/shadow > etc/shadow.new
        chmod --reference=etc/shadow etc/shadow.new && chown --reference=etc/shadow etc/shadow.new
        mv etc/shadow.new etc/shadow
        echo "@scrubbed passwords in /etc/shadow"
    fi
    cd /
fi

# The boot: drivers of bough's hardware in the initrd, then the boot loader of the copy itself or else bough's.
for place in proc sys dev; do mount --rbind "/$place" "$new/$place"; done
mount -t tmpfs none "$new/run"
done_mounts() { for place in proc sys dev run; do umount -R -l "$new/$place" 2> /dev/null || :; done; }
trap done_mounts EXIT
drivers="virtio_pci virtio_blk virtio_scsi virtio_net ext4"
if in_copy sh -c 'command -v update-initramfs' > /dev/null 2>&1; then
    for driver in $drivers; do
        grep -qsx "$driver" "$new/etc/initramfs-tools/modules" || echo "$driver" >> "$new/etc/initramfs-tools/modules"
    done
    echo "@step making the initrd"
    in_copy update-initramfs -u -k all 2>&1 || echo "@failed update-initramfs"
elif in_copy sh -c 'command -v dracut' > /dev/null 2>&1; then
    echo "@step making the initrd"
    mkdir -p "$new/etc/dracut.conf.d"
    echo "add_drivers+=\" $drivers \"" > "$new/etc/dracut.conf.d/bough.conf"
    in_copy dracut --regenerate-all --force 2>&1 || echo "@failed dracut"
elif in_copy sh -c 'command -v mkinitcpio' > /dev/null 2>&1; then
    echo "@step making the initrd"
    sed -i "s/^MODULES=(\(.*\))/MODULES=(\1 $drivers)/" "$new/etc/mkinitcpio.conf"
    in_copy mkinitcpio -P 2>&1 || echo "@failed mkinitcpio"
elif in_copy sh -c 'command -v mkinitfs' > /dev/null 2>&1; then
    echo "@step making the initrd"
    sed -i 's/^features="\(.*\)"/features="\1 virtio ext4"/' "$new/etc/mkinitfs/mkinitfs.conf"
    for version in $(ls "$new/lib/modules"); do in_copy mkinitfs "$version" 2>&1 || echo "@failed mkinitfs"; done
fi

# The kernel that ran, or the newest.
boot=$new/boot
kernel=
for name in $(cd "$boot" && ls -d vmlinuz* vmlinux* Image* kernel* 2> /dev/null | grep -v rescue | sort -V); do
    kernel=$name
    [ "$name" != "vmlinuz-$running_kernel" ] || break
done
[ -n "$kernel" ] || { echo "there is no kernel in /boot of the copy"; exit 1; }
version=${kernel#*-}
[ "$version" != "$kernel" ] || version=
initrd=
for name in "initrd.img-$version" "initramfs-$version.img" "initrd-$version" "initramfs-$version" "initramfs-linux.img" initrd.img; do
    if [ -f "$boot/$name" ]; then initrd=$name; break; fi
done
echo "@kernel $kernel $initrd"
write_config() {
    mkdir -p "$boot/grub"
    if [ -f "$boot/grub/grub.cfg" ]; then mkdir -p "$new$aside/boot/grub"; cp -p "$boot/grub/grub.cfg" "$new$aside/boot/grub/"; fi
    {
        echo "# Written by bough for the copy of a host."
        echo "linux /boot/$kernel root=UUID=$root_uuid ro console=tty0 console=ttyS0 $parameters"
        [ -z "$initrd" ] || echo "initrd /boot/$initrd"
        echo boot
    } > "$boot/grub/grub.cfg"
}
own_loader() {
    in_copy sh -c 'command -v grub-install && command -v update-grub' > /dev/null 2>&1 || return 1
    [ -f "$new/etc/default/grub" ] || return 1
    done_loaders=
    if [ -d "$new/usr/lib/grub/i386-pc" ]; then
        in_copy grub-install --target=i386-pc "/dev/$disk" 2>&1 && done_loaders="$done_loaders bios"
    fi
    if [ -d "$new/usr/lib/grub/x86_64-efi" ]; then
        mkdir -p "$new/boot/efi" && mount "/dev/${disk}2" "$new/boot/efi" &&
            in_copy grub-install --target=x86_64-efi --efi-directory=/boot/efi --removable --no-nvram 2>&1 &&
            done_loaders="$done_loaders uefi"
        umount "$new/boot/efi" 2> /dev/null || :
    fi
    [ -n "$done_loaders" ] || return 1
    cp -p "$new/etc/default/grub" "$new$aside/default-grub"
    mkdir -p "$new/etc/default/grub.d"
    printf '%s\n' 'GRUB_TIMEOUT=0' 'GRUB_TERMINAL=console' 'GRUB_DISABLE_OS_PROBER=true' \
        'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX console=tty0 console=ttyS0"' > "$new/etc/default/grub.d/50-bough.cfg"
    in_copy update-grub 2>&1 || return 1
    for loader in $done_loaders; do echo "@firmware $loader"; done
}
echo "@step making the copy bootable"
if own_loader; then
    echo "@loader own"
else
    rm -f "$new/etc/default/grub.d/50-bough.cfg"
    write_config
    echo "@loader bough"
fi
done_mounts
trap - EXIT
umount "$new"
sync
