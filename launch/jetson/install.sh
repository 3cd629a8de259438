#!/usr/bin/env bash
# Installs trimvla on a Jetson, with the TensorRT that JetPack brought, and its services. Run it from a checkout, as root.
#   sudo launch/jetson/install.sh [--dry-run] [--prefix /opt/trimvla] [--user robot]
# It asks for nothing else and changes nothing but the prefix, /etc/trimvla, /var/lib/trimvla and
# /etc/systemd/system/trimvla*.
set -euo pipefail
cd "$(dirname "$0")/../.."

prefix=/opt/trimvla user=${SUDO_USER:-root} run=
while [ $# -gt 0 ]; do
	case "$1" in
	--dry-run) run='echo' ;;
	--prefix) prefix=${2:?--prefix needs a folder}; shift ;;
	--user) user=${2:?--user needs a name}; shift ;;
	*) echo "error: expected --dry-run, --prefix or --user, got $1" >&2; exit 2 ;;
	esac
	shift
done
fail() { echo "error: $1" >&2; exit 1; }

[ -n "$run" ] || [ "$(id -u)" = 0 ] || fail "expected root, got $(id -un): run it with sudo"
[ -n "$run" ] || [ -e "${TEGRA_RELEASE:-/etc/nv_tegra_release}" ] || fail "expected a Jetson (/etc/nv_tegra_release), found none"
id "$user" >/dev/null 2>&1 || fail "expected an existing user for --user, got $user"
python3 -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || fail "expected Python 3.10 to 3.13"
[ -n "$run" ] || python3 -c 'import tensorrt' 2>/dev/null || fail "expected JetPack's TensorRT: apt-get install nvidia-jetpack python3-libnvinfer"

# --system-site-packages: the TensorRT module is JetPack's, it is in no package index for this machine.
$run python3 -m venv --system-site-packages "$prefix"
$run "$prefix/bin/pip" install --quiet '.[camera]'
# JetPack 6 (L4T 36) has a driver for CUDA 12, JetPack 7 (L4T 38 and 39) one for CUDA 13.
release=$(sed -n 's/^# R\([0-9]*\) .*/\1/p' "${TEGRA_RELEASE:-/etc/nv_tegra_release}" 2>/dev/null || true)
if [ "${release:-36}" -ge 38 ]; then cuda='cuda-bindings>=13,<14'; else cuda='cuda-bindings>=12.8,<13'; fi
$run "$prefix/bin/pip" install --quiet "$cuda"
$run install -d /etc/trimvla
[ -e /etc/trimvla/robot.toml ] || $run install -m 644 launch/jetson/robot.toml /etc/trimvla/robot.toml
for unit in launch/jetson/systemd/*.service launch/jetson/systemd/*.target; do
	$run install -m 644 "$unit" "/etc/systemd/system/$(basename "$unit")"
done
for extra in launch/jetson/systemd/*.d; do
	$run install -D -m 644 "$extra/priority.conf" "/etc/systemd/system/$(basename "$extra")/priority.conf"
done
$run install -d /etc/systemd/system/trimvla@.service.d
if [ -n "$run" ]; then
	echo "write /etc/systemd/system/trimvla@.service.d/install.conf: PREFIX=$prefix, User=$user"
else
	printf '[Service]\nUser=%s\nExecStart=\nExecStart=%s/bin/trimvla process %%i --system /etc/trimvla/robot.toml --run-dir /run/trimvla\n' \
		"$user" "$prefix" >/etc/systemd/system/trimvla@.service.d/install.conf
fi
$run systemctl daemon-reload
$run install -d -o "$user" /var/lib/trimvla/engines
$run "$prefix/bin/trimvla" doctor
# Engines are built here, once, for this board; as the user who will read them.
$run runuser -u "$user" -- "$prefix/bin/trimvla" build tabletop-trimmed --backend tensorrt --out /var/lib/trimvla/engines
echo "next: set the camera and your robot's limits in /etc/trimvla/robot.toml, then systemctl enable --now trimvla.target"
