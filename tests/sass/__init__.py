"""The kernels' machine code, run on the CPU: how fast a launch can be, told without a GPU.

NVRTC compiles a kernel for sm_90, nvdisasm lists its instructions (SASS), and an interpreter runs them for some warps
of a launch of the library's own launchers. Counted are the instructions issued, the busiest pipe, the bytes of loads
under way and the cycles that a warp takes; they give the greatest share of a copy's bandwidth that the launch can reach
(`bound`) and a guess at the share that it will reach (`guess`). Results are compared with the emulator's
(tests/test_sass.py).

    device.py      devices, pipe rates and latencies: one table, to be corrected by the first measurement on a chip
    listing.py     nvdisasm's listing as instructions with their control words
    operands.py    registers, constants, predicates, addresses
    operations.py  what an instruction does to a warp's registers
    memory.py      global and shared memory
    warp.py        a warp, lane by lane: control flow, memory accesses, counts
    launches.py    the launches of a call, as the library's launchers make them; compiling
    verdict.py     bounds and guess of a launch
    table.py       `make kernels`: a row a launch, and the predictions that a GPU's benchmark is held to

All figures are predictions. Not modelled: caches across warps, bank conflicts, instruction fetch, launch latency, DRAM
pages, lower clocks under load.
"""
