#!/bin/bash
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
# Makes the test guest: a Debian kernel and an initramfs with busybox, network drivers and the service.
#
#   scripts/guest-image.sh [--flavour cloud|generic] [--with servers|disk] [--service FILE]
#
# Leaves vmlinuz and initrd.gz in build/guest-image (cloud) or build/guest-image/generic. The cloud kernel
# has no e1000 driver: guests with an e1000 need the generic one. --with servers adds Debian's redis and
# lighttpd, in build/guest-image/servers; remusd.servers=kv,web on the kernel's command line starts them.
# --with disk adds disk.raw, in build/guest-image/disk: an ext4 root file system with busybox, the service and
# Debian's sqlite3, for remusd.root=/dev/vda. It is sparse: copy it with cp --sparse=always.
# Made again only when something changed. Nothing is installed on this machine. What was unpacked from
# packages is kept in build/guest-image/cache.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

flavour=cloud extra=
service=build/release/tests/guest_service/guest_service
while [ $# -gt 0 ]; do
  case $1 in
    --flavour) flavour=${2:-}; shift 2 || usage_error "--flavour needs a value" ;;
    --with) extra=${2:-}; shift 2 || usage_error "--with needs a value" ;;
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
case $extra in
  "") ;;
  servers) out=build/guest-image/servers ;;
  disk) out=build/guest-image/disk modules="$modules virtio_blk ext4" ;;
  *) usage_error "--with takes 'servers' or 'disk'" ;;
esac
[ -z "$extra" ] || [ "$flavour" = cloud ] || usage_error "--with $extra goes with the cloud flavour"
[ -x "$service" ] || die "$service is not built: cmake --build --preset release --target guest_service"

cache=build/guest-image/cache
mkdir -p "$out" "$cache"
exec 9>"$cache/lock"
flock 9

inputs=$(cat scripts/guest-image.sh tests/guest_service/init "$service" /bin/busybox | sha256sum)
made_of=$(cat "$out/inputs" 2>/dev/null || true)
if [ -s "$out/vmlinuz" ] && [ -s "$out/initrd.gz" ] && [ "$made_of" = "$inputs" ] &&
  { [ "$extra" != disk ] || [ -s "$out/disk.raw" ]; }; then
  exit 0
fi
rm -f "$out/inputs"

fetch() { (cd "$cache" && rm -f "$1"_*.deb && apt_get -o APT::Sandbox::User=root download "$1"); }

# The kernel, unpacked from its package.
tree=$cache/$flavour
if [ ! -e "$tree/complete" ]; then
  package() { apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }'; }
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

# unpack TREE PACKAGE...: the packages' files, once.
unpack() {
  local tree=$1 name
  shift
  [ ! -e "$tree/complete" ] || return 0
  rm -rf "$tree"
  mkdir "$tree"
  for name; do
    fetch "$name" || { apt_get update && fetch "$name"; } || die "cannot download $name"
    dpkg-deb -x "$cache/$name"_*.deb "$tree"
    rm -f "$cache/$name"_*.deb
  done
  touch "$tree/complete"
}

# The servers, with those of their libraries that not every Debian has.
server_packages="redis-tools lighttpd libatomic1 libjemalloc2 liblzf1 libhiredis0.14 liblua5.1-0 lua-bitop
                 lua-cjson libsystemd0 libnettle8 libpcre2-8-0 libxxhash0 libcrypt1 libssl3"
[ "$extra" != servers ] || unpack "$cache/servers" $server_packages
[ "$extra" != disk ] || unpack "$cache/sqlite" sqlite3 libsqlite3-0 libreadline8 libtinfo6 zlib1g

# add_program TREE SOURCE TARGET: a dynamic program and the libraries that it names, from TREE or, like the C
# library, from this machine.
add_program() {
  local tree=$1 waiting=("$2") file name found
  local loader=ld-linux-x86-64.so.2 libraries=lib/x86_64-linux-gnu
  install -D "$2" "$root$3"
  while [ "${#waiting[@]}" -gt 0 ]; do
    file=${waiting[0]}
    waiting=("${waiting[@]:1}")
    for name in $(readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p') "$loader"; do
      [ ! -e "$root/$libraries/$name" ] || continue
      found=
      for found in {"$tree",}{/usr,}/"$libraries/$name" {/usr,}/lib64/"$name" ""; do
        [ -z "$found" ] || [ ! -e "$found" ] || break
      done
      [ -n "$found" ] || die "no library $name, which $file needs"
      install -D "$(readlink -f "$found")" "$root/$libraries/$name"
      waiting+=("$root/$libraries/$name")
    done
  done
  install -D "$root/$libraries/$loader" "$root/lib64/$loader"
}

# The servers' configuration: all in memory, nothing logged, as few timers as they allow.
add_servers() {
  local tree=$cache/servers module
  # Debian's redis-server is redis-check-rdb under another name.
  add_program "$tree" "$tree/usr/bin/redis-check-rdb" /usr/bin/redis-server
  add_program "$tree" "$tree/usr/sbin/lighttpd" /usr/sbin/lighttpd
  for module in mod_indexfile mod_staticfile; do
    [ ! -e "$tree/usr/lib/lighttpd/$module.so" ] ||
      add_program "$tree" "$tree/usr/lib/lighttpd/$module.so" "/usr/lib/lighttpd/$module.so"
  done
  mkdir -p "$root/etc" "$root/srv" "$root/tmp" "$root/var/tmp"
  printf '%s\n' 'bind 0.0.0.0' 'port 6379' 'protected-mode no' 'save ""' 'appendonly no' 'hz 1' \
    'dynamic-hz no' 'dir /tmp' 'logfile ""' 'maxmemory 96mb' >"$root/etc/redis.conf"
  printf '%s\n' 'server.document-root = "/srv"' 'server.port = 80' 'server.max-keep-alive-requests = 65535' \
    'server.max-keep-alive-idle = 60' 'index-file.names = ("index.html")' \
    'mimetype.assign = ("" => "text/html")' >"$root/etc/lighttpd.conf"
  # A page of 8 KiB, of words rather than of zeros.
  seq 1 1900 | tr '\n' ' ' >"$root/srv/index.html"
  printf 'root:x:0:0::/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\n' >"$root/etc/group"
}

# The initramfs. Modules are plain or xz-compressed, as Debian's release has it; `order` lists them.
root=$(mktemp -d)
trap 'rm -rf "${initrd:-$root}"' EXIT
mkdir -p "$root/bin" "$root/modules"
cp /bin/busybox "$service" "$root/bin/"
cp tests/guest_service/init "$root/init"
[ "$extra" != servers ] || add_servers
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
initrd=$root
(cd "$initrd" && find . -print0 | LC_ALL=C sort -z | cpio --null -o -H newc --quiet -R 0:0) |
  gzip -n -6 >"$out/initrd.gz.part"
cp "$tree/boot/vmlinuz-$version" "$out/vmlinuz.part"

# The root file system, filled without mounting it. Nothing is left for the guest's kernel to initialize.
if [ "$extra" = disk ]; then
  root=$initrd/disk
  mkdir -p "$root"/{bin,data,dev,proc,sbin,sys,tmp}
  cp /bin/busybox "$service" "$root/bin/"
  ln -s busybox "$root/bin/sh"
  cp tests/guest_service/init "$root/sbin/init"
  add_program "$cache/sqlite" "$cache/sqlite/usr/bin/sqlite3" /usr/bin/sqlite3
  rm -f "$out/disk.raw.part"
  mke2fs -q -t ext4 -L remusd-root -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 \
    -d "$root" "$out/disk.raw.part" 256M >/dev/null || die "mke2fs failed"
  mv "$out/disk.raw.part" "$out/disk.raw"
fi
mv "$out/initrd.gz.part" "$out/initrd.gz"
mv "$out/vmlinuz.part" "$out/vmlinuz"
printf '%s\n' "$inputs" >"$out/inputs"
say "guest image: Linux $version ($flavour${extra:+, $extra})," \
  "$(du -h "$out/initrd.gz" | cut -f1) initramfs in $out"
