"""The independent meter with the other AlgorithmID of the field, 60857406080300: run it as gurux_meter.py."""

import gurux_meter  # type: ignore[import-not-found] # is beside this file and runs in the peer environment only

gurux_meter.AES_GCM_128 = bytes.fromhex("60857406080300")
gurux_meter.main()
