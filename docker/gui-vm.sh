#!/usr/bin/env bash
# A virtual machine's disk with a desktop, frozen when it is ready, in DIR: docker/gui-vm.sh DIR [ROOTFS.tar]
# Needs root to extract the root filesystem. Without ROOTFS.tar one is made with mmdebstrap.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
dir=${1:?a folder is missing}
mkdir -p "$dir"; dir=$(cd "$dir" && pwd)
work=$(mktemp -d "${TMPDIR:-/var/tmp}/claw-vm-XXXXXX"); trap 'rm -rf "$work"' EXIT

for pair in qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils mke2fs:e2fsprogs; do
  command -v "${pair%%:*}" >/dev/null || { apt-get update -qq; apt-get install -y -qq --no-install-recommends "${pair##*:}"; } >&2 </dev/null
done
tar=${2:-$work/rootfs.tar}
[ -s "$tar" ] || "$here/gui.sh" rootfs systemd-sysv,linux-image-amd64,udev,kmod >"$tar"

root=$work/root
mkdir "$root"
tar -C "$root" --numeric-owner -xf "$tar"
cp "$(ls "$root"/boot/vmlinuz-* | tail -n1)" "$dir/vmlinuz"
cp "$(ls "$root"/boot/initrd.img-* | tail -n1)" "$dir/initrd.img"
rm -rf "$root"/boot/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
head -c 24 /dev/urandom | base64 | tr -d '/+=\n' >"$dir/token"; chmod 600 "$dir/token"
install -o 1000 -g 1000 -m 600 "$dir/token" "$root/etc/claw-token"
"$python" -c 'import sys; from claw_envs.gui.bundle import bundle; sys.stdout.buffer.write(bundle())' >"$root/usr/local/lib/claw-guest.pyz"
mkdir -p "$root/workspace" "$root/home/agent"
chown -R 1000:1000 "$root/workspace" "$root/home/agent"
echo claw-desktop >"$root/etc/hostname"
echo /dev/vda / ext4 defaults,noatime 0 1 >"$root/etc/fstab"
cat >"$root/etc/systemd/network/20-wired.network" <<'UNIT'
[Match]
Name=eth0
[Network]
Address=10.0.2.15/24
UNIT
cat >"$root/etc/systemd/system/claw-guest.service" <<'UNIT'
[Unit]
Description=The desktop and what answers for it
[Service]
User=agent
WorkingDirectory=/workspace
Environment=HOME=/home/agent LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin
ExecStart=/usr/bin/python3 /usr/local/lib/claw-guest.pyz serve --alone --bind 0.0.0.0:5000 --token-file /etc/claw-token --workdir /workspace
[Install]
WantedBy=multi-user.target
UNIT
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf ../claw-guest.service "$root/etc/systemd/system/multi-user.target.wants/claw-guest.service"
ln -sf /lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer systemd-timesyncd.service getty@tty1.service \
  systemd-networkd-wait-online.service; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done

mke2fs -q -t ext4 -d "$root" "$work/disk.raw" 2G
rm -rf "$root"
qemu-img convert -f raw -O qcow2 "$work/disk.raw" "$dir/disk.qcow2"
rm "$work/disk.raw"
"$python" -m claw_envs.gui.vm freeze "$dir"
