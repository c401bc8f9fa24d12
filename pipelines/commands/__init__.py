"""The commands of `spinstream`, one file each."""
