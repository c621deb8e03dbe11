#!/bin/bash
# A minimal Debian bookworm as the image perennial-standin/bookworm:local, from the mirror that apt uses here. Needs root and debootstrap.
set -euo pipefail

mirror=$(apt-get indextargets --format '$(SITE)' | grep --max-count=1 'debian$')
root=$(mktemp --directory)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$mirror"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"  # a mirror's own authority, where there is one
printf 'deb %s bookworm main\ndeb %s bookworm-updates main\n' "$mirror" "$mirror" > "$root/etc/apt/sources.list"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar --directory "$root" --create . | docker import --change 'CMD ["bash"]' - perennial-standin/bookworm:local
