# Prints every file and command output that a probe can use, each behind a line with the mark. Only
# reads. `head -c` bounds each text; toybox, busybox and coreutils all have it.
# The device tree's texts end in NUL, which a shell variable cannot hold.
M=@MARK@
f() {
  for p in "$@"; do
    [ -f "$p" ] && [ -r "$p" ] || continue
    t=$(head -c 262144 "$p" 2>/dev/null | tr '\000' '\n') || continue
    printf '%s file %s\n%s\n\n' "$M" "$p" "$t"
  done
}
o() {
  n=$1; shift
  command -v "$1" >/dev/null 2>&1 || return 0
  t=$("$@" 2>/dev/null </dev/null | head -c 262144) || return 0
  printf '%s output %s\n%s\n\n' "$M" "$n" "$t"
}
f /proc/cpuinfo /proc/meminfo /proc/device-tree/model /proc/self/mountinfo /proc/self/cgroup
f /etc/os-release /sys/firmware/devicetree/base/model
f /proc/device-tree/compatible /sys/firmware/devicetree/base/compatible
f /sys/devices/system/cpu/online /sys/devices/system/cpu/present
f /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq
f /sys/devices/system/cpu/cpu0/cache/index*/size
f /sys/class/thermal/thermal_zone*/type /sys/class/thermal/thermal_zone*/temp
f /sys/class/hwmon/hwmon*/name /sys/class/hwmon/hwmon*/*_label
f /sys/class/hwmon/hwmon*/in*_input /sys/class/hwmon/hwmon*/curr*_input
f /sys/class/hwmon/hwmon*/power*_input
f /sys/class/powercap/intel-rapl:*/name
f /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name /sys/class/dmi/id/board_name
f /sys/block/*/device/type /sys/block/*/queue/rotational
while IFS=: read -r _ c g; do
  case "$c" in
    '') r=/sys/fs/cgroup ;;
    memory|memory,*|*,memory|*,memory,*) r=/sys/fs/cgroup/memory ;;
    *) continue ;;
  esac
  n=0
  while [ $n -lt 32 ]; do
    g=${g%/}
    f "$r$g/memory.max" "$r$g/memory.current" "$r$g/memory.stat"
    f "$r$g/memory.limit_in_bytes" "$r$g/memory.usage_in_bytes"
    [ -n "$g" ] || break
    g=${g%/*}
    n=$((n + 1))
  done
done < /proc/self/cgroup
o throttled vcgencmd get_throttled
o temp vcgencmd measure_temp
o pmic vcgencmd pmic_read_adc
o getprop getprop
command -v tegrastats >/dev/null 2>&1 &&
  o tegrastats sh -c 'timeout 3 tegrastats --interval 500 | head -n 1'
o uname uname -srm
o hostname uname -n
o libc getconf GNU_LIBC_VERSION
o python python3 --version
o long_bit getconf LONG_BIT
o elf_class od -An -tu1 -j4 -N1 /proc/self/exe
printf '%s end\n' "$M"
