# Writes unit, key and announcement of the server. What was there is kept beside until it answers.
if [ "$(id -u)" = 0 ]; then r=; else r="sudo -n"; fi
put() {  # a text, and its path
  if [ -f "$2" ]; then $r cp -p "$2" "$2.before"; else $r rm -f "$2.before"; fi &&
    printf %s "$1" | $r tee "$2.new" >/dev/null && $r mv "$2.new" "$2"
}
$r mkdir -p @KEY_FOLDER@ && if ! $r test -s @KEY@; then
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n' |
    $r sh -c 'umask 077; cat > @KEY@.new && mv @KEY@.new @KEY@'
fi &&
  put @UNIT_TEXT@ @UNIT@ &&
  if [ -d @AVAHI@ ]; then put @AVAHI_TEXT@ @AVAHI@/boardfit.service; fi &&
  $r systemctl daemon-reload
