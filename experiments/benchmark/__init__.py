"""How fast: one layer or one model under every peer, on this machine, interleaved.

config     what is measured            timing     how: rounds, order, ratios
machine    what the machine can do     layers     one layer under each peer; in_torch: torch's half
shared     what all peers are given
models     whole training steps        autotune   every implementation of every face
run        the run and its folder      summary    means and counts        report     pictures and tables
"""
