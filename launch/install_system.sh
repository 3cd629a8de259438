#!/bin/sh
# Installs the Debian packages named as arguments where that is possible; says in one line what to do where it is not.
# Rendering needs EGL or OSMesa, not both, so a package that a release no longer has is no error.
set -u

missing=""
for package in "$@"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "note: no apt here; headless rendering needs EGL or OSMesa (Debian's$missing)" >&2
    exit 0
fi
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif sudo -n true 2>/dev/null; then
    as_root="sudo"
else
    echo "note: not root; for headless rendering run: sudo apt-get install$missing" >&2
    exit 0
fi

echo "installing$missing"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
for package in $missing; do
    $as_root apt-get install -y -qq --no-install-recommends "$package" >/dev/null ||
        echo "note: apt could not install $package" >&2
done
exit 0
