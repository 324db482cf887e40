"""Disk images and cards: put a bundle into an operating system that does not run yet.

`partitions` and `filesystem` read and change bytes (pure), `source` unpacks, `ext4` works on the
root file system without mounting it, `image` puts it together; `cards` finds removable disks,
`writer` writes, reads back and finds false capacities, `card` asks before it erases.
"""
