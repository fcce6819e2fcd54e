"""The smallest changes of pictures that lead a network astray, from calibration images: what detection reports, and what ours unlearns.

`kinds.search` runs every search; each kind of change is a file.  Known triggers and hold-out images have no way in here.
"""
