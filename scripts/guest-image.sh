#!/bin/bash
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
# Makes the test guest: a Debian kernel and an initramfs with busybox, network drivers and the service.
#
#   scripts/guest-image.sh [--flavour cloud|generic] [--service FILE]
#
# Leaves vmlinuz and initrd.gz in build/guest-image (cloud) or build/guest-image/generic. The cloud kernel
# has no e1000 driver: guests with an e1000 need the generic one. Made again only when something changed.
# Nothing is installed on this machine. The kernel's package is kept in build/guest-image/cache.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

flavour=cloud
service=build/release/tests/guest_service/guest_service
while [ $# -gt 0 ]; do
  case $1 in
    --flavour) flavour=${2:-}; shift 2 || usage_error "--flavour needs a value" ;;
    --service) service=${2:-}; shift 2 || usage_error "--service needs a file" ;;
    -h | --help) print_help; exit 0 ;;
    *) usage_error "unknown argument '$1'" ;;
  esac
done
case $flavour in
  cloud) meta=linux-image-cloud-amd64 modules="virtio_pci virtio_net" out=build/guest-image ;;
  generic) meta=linux-image-amd64 modules="virtio_pci virtio_net e1000" out=build/guest-image/generic ;;
  *) usage_error "unknown flavour '$flavour'" ;;
esac
[ -x "$service" ] || die "$service is not built: cmake --build --preset release --target guest_service"

cache=build/guest-image/cache
mkdir -p "$out" "$cache"
exec 9>"$cache/lock"
flock 9

inputs=$(cat scripts/guest-image.sh tests/guest_service/init "$service" /bin/busybox | sha256sum)
made_of=$(cat "$out/inputs" 2>/dev/null || true)
if [ -s "$out/vmlinuz" ] && [ -s "$out/initrd.gz" ] && [ "$made_of" = "$inputs" ]; then exit 0; fi
rm -f "$out/inputs"

# The kernel, unpacked from its package.
tree=$cache/$flavour
if [ ! -e "$tree/complete" ]; then
  package() { apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }'; }
  fetch() { (cd "$cache" && rm -f "$1"_*.deb && apt_get -o APT::Sandbox::User=root download "$1"); }
  name=$(package)
  if [ -z "$name" ] || ! fetch "$name"; then
    apt_get update || die "apt-get update failed"
    name=$(package)
    [ -n "$name" ] || die "no package $meta in the package lists"
    fetch "$name" || die "cannot download $name"
  fi
  rm -rf "$tree"
  mkdir "$tree"
  dpkg-deb -x "$cache/$name"_*.deb "$tree"
  rm -f "$cache/$name"_*.deb
  version=$(basename "$tree"/lib/modules/*)
  depmod -b "$tree" "$version"
  echo "$version" >"$tree/complete"
fi
version=$(cat "$tree/complete")

# The initramfs. Modules are plain or xz-compressed, as Debian's release has it; `order` lists them.
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/modules"
cp /bin/busybox "$service" "$root/bin/"
cp tests/guest_service/init "$root/init"
for module in $modules; do
  modprobe -d "$tree" -S "$version" --show-depends "$module" || die "no module $module in $version"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$root/list"
while read -r path; do
  case $path in
    *.xz) xz -dc "$path" >"$root/modules/$(basename "$path" .xz)" ;;
    *) cp "$path" "$root/modules/" ;;
  esac
  basename "$path" .xz >>"$root/modules/order"
done <"$root/list"
rm "$root/list"
(cd "$root" && find . -print0 | LC_ALL=C sort -z | cpio --null -o -H newc --quiet -R 0:0) |
  gzip -n -6 >"$out/initrd.gz.part"
cp "$tree/boot/vmlinuz-$version" "$out/vmlinuz.part"
mv "$out/initrd.gz.part" "$out/initrd.gz"
mv "$out/vmlinuz.part" "$out/vmlinuz"
printf '%s\n' "$inputs" >"$out/inputs"
say "guest image: Linux $version ($flavour), $(du -h "$out/initrd.gz" | cut -f1) initramfs in $out"
