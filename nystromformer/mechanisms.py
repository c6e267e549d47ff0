"""The attention mechanisms: a line for each. docs/adding_a_mechanism.md shows how a new one is made.

A mechanism is one file with a dataclass `Settings`, whose fields become `model.…` of every command and keys
of `config.json`, and a subclass of `attention.mechanism.Mechanism`, which this names.
"""

MECHANISMS = {
    "nystrom": "nystromformer.attention.nystrom:NystromAttention",
    "softmax": "nystromformer.attention.softmax:SoftmaxAttention",
    "linformer": "nystromformer.attention.linformer:LinformerAttention",
    "longformer": "nystromformer.attention.longformer:LongformerAttention",
    "performer": "nystromformer.attention.performer:PerformerAttention",
}
"""What `model.attention` can be, and the module and class that compute it; a new one is its file and a line
here."""
