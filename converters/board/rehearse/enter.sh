#!/bin/sh
# Enter the board's system; runs in namespaces of its own.
# $1 root, $2 work folder, $3 folder with cpuinfo, meminfo and sys; then the command. The namespace
# is ours alone: nothing of it is seen or left outside, and the shared root stays as it is.
set -eu
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
mount --rbind /dev "$1/dev"
mount --rbind /proc "$1/proc"
mount --bind "$3/cpuinfo" "$1/proc/cpuinfo"
mount --bind "$3/meminfo" "$1/proc/meminfo"
mount --bind "$3/sys" "$1/sys"
mount -t tmpfs tmpfs "$1/tmp"
mount -t tmpfs tmpfs "$1/opt"
mkdir "$1/opt/boardfit"
mount --bind "$2" "$1/opt/boardfit"
root=$1
shift 3
exec chroot "$root" "$@"
