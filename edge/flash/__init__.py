"""Put bundles on boards: one protocol, `boardfit.edge.flash.board.Board`, over a folder, ssh and
adb.

    edge flash BUNDLE dir:/media/card            edge flash BUNDLE ssh://pi@kitchen/opt/boardfit
    edge flash BUNDLE adb://SERIAL               edge rollback TARGET

The use of the files once they are there (releases, the switch, the health gate) is the room
`boardfit.edge.slots`.
"""
