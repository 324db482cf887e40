# The archive comes on stdin. `exec` would skip the removal.
cd / || exit 81
d=$(mktemp -d) || exit 81
trap 'rm -rf "$d"' EXIT
trap 'exit 82' HUP INT TERM
cat > "$d/probe.zip" || exit 81
p=
e=$(command -v edge 2>/dev/null) && p=$(head -n 1 "$e" 2>/dev/null | sed -n 's/^#! *//p')
for c in "$p" python3 python; do
  [ -n "$c" ] || continue
  "$c" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' </dev/null >/dev/null 2>&1 ||
    continue
  "$c" -E -B "$d/probe.zip" @MARK@ @ASKED@ </dev/null
  exit $?
done
exit 80
