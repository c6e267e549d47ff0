"""Nyström attention on an NVIDIA GPU: Triton kernels for the equations of `nystrom`, both directions.

Shapes: B rows, H heads, N positions, D head width, M landmarks, S parts of the positions.

    tiles.py      what they share; which position belongs to which segment, where there is padding
    landmarks.py  Q̃, K̃: means of segments
    gather.py     B̃ V, its positions shared out over S programs     and its backward pass
    mix.py        Z ≈ Ã⁺ and X = Z B̃ V, a head's matrices on chip    and its backward pass
    products.py   the same by PyTorch's products, for more landmarks than fit on chip
    spread.py     F̃ X + convolution(V)                              and its backward pass
    plan.py       how large their blocks are, over how many programs they are spread, how each is compiled
    launch.py     the order of the kernels
    operator.py   the operators that PyTorch sees of them
    far.py        with exact neighbours: what the tokens of a block share, and its backward pass
    near.py       … exact neighbours and the far part, token by token, and their backward pass
    neighbours.py … the order of those, and their operator

No factor is ever written to memory: the backward pass computes F̃ and B̃ again, tile by tile. Nothing is
added atomically, so that the same inputs give the same bits.

A row with at most M real tokens needs no kernel of its own: each landmark is then one token, so that
F̃ with X = V is exact attention. `mix` puts V in the place of X there.

Importing a submodule needs the package `triton`; importing this one does not.
"""
