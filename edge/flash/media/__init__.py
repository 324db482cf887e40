"""Disk images and cards: put a bundle into an operating system that does not run yet.

`partitions` reads and changes the table, `source` unpacks, `ext4` works on the root file system
without mounting it, `image` puts it together; `cards` finds removable disks, `card` asks before it
erases, writes, reads back and finds false capacities.
"""
