"""What `zoo bench` runs: one file a block, and the committed table of results.

Everything here runs with torch, triton and numpy alone: `python -m zoo.benchmarks NAME`.
"""
