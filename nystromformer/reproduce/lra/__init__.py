"""`reproduce table=lra`: the tasks of Long Range Arena for every attention of this project.

task      a task as token ids
listops   generates ListOps by the arena's grammar
released  reads the tasks of the arena's release, and CIFAR-10
examples  opens each task by its name
model     the paper's two layers with mean pooling
training  one cell: task × attention × seed, resumed and kept by itself
table     all cells, the page and the learning curves
"""
