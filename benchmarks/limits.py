"""Limits under which others chose cells of NAS-Bench-201, in milliseconds by device.

HELP's (Lee et al., 2021; its README, table 4).
"""

LIMITS = {
    "titan_rtx_256": (18.0, 21.0, 25.0),
    "gold_6226": (8.0, 11.0, 14.0),
    "pixel2": (14.0, 18.0, 22.0),
    "eyeriss": (5.0, 7.0, 9.0),
    "fpga": (4.0, 5.0, 6.0),
}
