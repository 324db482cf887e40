cd @ROOT@ || exit 0
id=$(readlink @CURRENT@) || exit 0
id=${id#@RELEASES@/}
echo $id | grep -qE "^[0-9a-f]{64}$" || exit 0
number() { head -c 2 @RELEASES@/$1/@FILE@ 2>/dev/null | grep -oE "^[1-9]" || echo 0; }
n=$(number $id)
to=
if [ $n -ge @MOST@ ]; then
 for i in $(sed "/]/q" @STATE@ | grep -oE "[0-9a-f]{64}"); do
  if [ $i = $id ]; then break; fi
  if [ -d @RELEASES@/$i/bundle ] && [ $(number $i) -lt @MOST@ ]; then to=$i; fi
 done
fi
if [ -n "$to" ]; then
 ln -sfn @RELEASES@/$to .@CURRENT@.boot && mv -T .@CURRENT@.boot @CURRENT@ && sync || exit 1
 echo "release $id failed $n starts: release $to is current now"
 id=$to
 n=$(number $id)
fi
if [ $n -lt 9 ]; then n=$((n + 1)); fi
echo $n > @RELEASES@/$id/.@FILE@ && mv -f @RELEASES@/$id/.@FILE@ @RELEASES@/$id/@FILE@
sync
