# Takes the lock, prints `held`, and keeps it until its standard input ends or falls silent.
# `flock` where there is one, else a folder that names its owner.
{ [ ! -L @ROOT@ ] && cd @ROOT@; } || exit 70
free() { [ ! -L @LOCK@.d ] && rm -f @LOCK@.d/owner && rmdir @LOCK@.d; }
if command -v flock >/dev/null 2>&1; then
  [ ! -L @LOCK@ ] && { [ ! -e @LOCK@ ] || [ -f @LOCK@ ]; } || {
    echo '@LOCK@: is a link' >&2; exit 71
  }
  exec 9>>@LOCK@ || exit 71
  flock -n 9 || exit @BUSY@
else
  me="$$ $(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
  until mkdir @LOCK@.d 2>/dev/null; do
    [ -d @LOCK@.d ] && [ ! -L @LOCK@.d ] || { echo '@LOCK@.d: is a link' >&2; exit 71; }
    was=$(cat @LOCK@.d/owner 2>/dev/null) || { sleep 1; was=$(cat @LOCK@.d/owner 2>/dev/null); }
    [ "${was#* }" = "${me#* }" ] && kill -0 "${was%% *}" 2>/dev/null && exit @BUSY@
    free || { echo '@LOCK@.d: boardfit did not make this folder' >&2; exit 71; }
  done
  trap free EXIT
  trap 'exit 1' HUP INT TERM PIPE
  echo "$me" > @LOCK@.d/owner
fi
echo held
if timeout 1 true 2>/dev/null; then
  while timeout @SILENCE_S@ sh -c 'IFS= read -r beat'; do :; done
else
  cat >/dev/null
fi
exit 0
