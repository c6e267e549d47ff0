"""`reproduce table=lra`: two tasks of Long Range Arena for every attention of this project.

listops   generates ListOps by the arena's grammar
examples  the two tasks as token ids
model     the paper's two layers with mean pooling
training  one cell: task × attention × seed, resumed and kept by itself
table     all cells, the page and the learning curves
"""

from nystromformer.reproduce.lra.table import lra

__all__ = ["lra"]
