cd @ROOT@ || exit 0
id=$(readlink @CURRENT@) || exit 0
id=${id#@RELEASES@/}
echo $id | grep -qE "^[0-9a-f]{64}$" || exit 0
rm -f @RELEASES@/$id/@FILE@
