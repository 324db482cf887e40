export LC_ALL=C
umask 022
flush() {
  e=$(sync "$@" 2>&1) && return
  case $e in *"nput/output"*|*"No space"*|*"quota"*) echo "$e" >&2; return 1 ;; esac
  sync
}
digest() {
  [ -f "$1" ] && [ ! -L "$1" ] || { echo -; return; }
  if command -v openssl >/dev/null 2>&1; then
    h=$(openssl dgst -sha256 -r < "$1" 2>/dev/null) && [ -n "$h" ] && { echo "${h%% *}"; return; }
  fi
  command -v sha256sum >/dev/null 2>&1 || { echo 'no sha256sum and no openssl' >&2; exit 1; }
  h=$(sha256sum < "$1" 2>/dev/null) || h=-
  echo "${h%% *}"
}
real() {  # none of these may be a link: another user of the board may have put it there
  for f in "$@"; do
    [ ! -L "$f" ] || { echo "$f: is a link" >&2; exit 1; }
  done
}
ours() { [ -f "$1/@MARKER@" ] && [ ! -L "$1/@MARKER@" ]; }
foreign() { echo "$1: boardfit did not make this folder" >&2; exit 1; }
mark() {
  real "$1"
  if ours "$1"; then return; fi
  [ -z "$(ls -A "$1")" ] || foreign "$1"
  printf %s '@MARKER_TEXT@' > "$1/@MARKER@"
}
away() {  # the path, then the folders of which one must be ours if the path is a folder
  p=$1
  if [ ! -d "$p" ] || [ -L "$p" ]; then rm -f -- "$p"; return; fi
  for f in "$@"; do
    ours "$f" || continue
    # The marker last: what an interrupted removal leaves must still be ours.
    find "$p" -mindepth 1 -maxdepth 1 ! -name '@MARKER@' -exec rm -rf -- {} +
    rm -rf -- "$p"
    return
  done
  foreign "$p"
}
