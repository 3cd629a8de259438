#!/bin/sh
# Installs a software Vulkan driver (Mesa's lavapipe), with which ManiSkill renders where there is no GPU.
# Debian 12's own Mesa 22.3 does not do ("Failed to find a supported physical device"): there it comes from backports.
set -u

packages="mesa-vulkan-drivers libvulkan1"
dpkg --compare-versions "$(dpkg-query -W -f '${Version}' mesa-vulkan-drivers 2>/dev/null || echo 0)" ge 24 &&
    dpkg -s libvulkan1 >/dev/null 2>&1 && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "note: no apt here; ManiSkill needs a Vulkan driver (Mesa 24 or later has a software one)" >&2
    exit 0
fi
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif sudo -n true 2>/dev/null; then
    as_root="sudo"
else
    echo "note: not root; for ManiSkill's rendering install $packages (on Debian 12 from bookworm-backports)" >&2
    exit 0
fi

echo "installing $packages"
export DEBIAN_FRONTEND=noninteractive
release="$(. /etc/os-release && echo "${VERSION_CODENAME:-}")"
target=""
if [ "$release" = bookworm ]; then
    mirror="$(apt-cache policy | sed -n 's|.* \(http[^ ]*/debian\) bookworm/main .*|\1|p' | head -n 1)"
    echo "deb ${mirror:-http://deb.debian.org/debian} bookworm-backports main" |
        $as_root tee /etc/apt/sources.list.d/trimvla-backports.list >/dev/null
    target="-t bookworm-backports"
fi
$as_root apt-get update -qq
$as_root apt-get -o DPkg::Lock::Timeout=120 install -y -qq --no-install-recommends $target mesa-vulkan-drivers libvulkan1 >/dev/null ||
    echo "note: apt could not install $packages" >&2
exit 0
