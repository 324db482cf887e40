# Serves again what was served before, if anything was.
if [ "$(id -u)" = 0 ]; then r=; else r="sudo -n"; fi
back() {
  if [ -f "$1.before" ]; then $r mv "$1.before" "$1"; else $r rm -f "$1" "$1.new"; fi
}
had=; [ ! -f @UNIT@.before ] || had=yes
$r systemctl stop @SERVICE@
[ "$had" ] || $r systemctl disable @SERVICE@
back @UNIT@
back @AVAHI@/boardfit.service
$r systemctl daemon-reload
[ -z "$had" ] || $r systemctl restart @SERVICE@
