"""From documents to batches: read → prepare → store → pairs → order → load.

    text_files, parquet     files, the hub
      │  corpora            … as sources with weights and limits
      ▼
    documents               "He arrived late.\\nNobody had waited. So he left."
      │  reading            cleaned, duplicates dropped; in blocks, each one later a shard
      │                     (a hash of its text sends a document to the training or the validation split)
      │  segmentation       ["He arrived late.", "Nobody had waited.", "So he left."]
      │  tokenizer          [[2002, 3369, 2397, 1012], [6343, 2018, 4741, 1012], [2061, 2002, 2187, 1012]]
      │  segmentation       chunks of whole sentences up to max_length - 3 tokens, unmasked
      ▼
    storage                 Arrow shards: input_ids [2002 3369 … 1012]  sentence_lengths [4 4 4]
    ══════════════════════  on disk, once for each combination of settings (`nystromformer prepare`)
      │  pairs              [CLS] so he left . [SEP] he arrived late . nobody had waited . [SEP]   label 1
      │                     cut at a random sentence boundary, swapped with probability 1/2
      │                     [CLS] so he [MASK] . [SEP] he arrived late . nobody had waited . [SEP]
      ▼
    examples                the rows of one batch, drawn when they are asked for by number
      │  order              which rows each batch has: those of like length together
      │  layout             the places that are predicted, and widths that are few
      ▼
    loader                  batches of int64 tensors, drawn ahead by processes

Above the double line a document is touched once. `prepare` does it or finds that it was done: `plan` names
the folder by all that its files depend on, `unfinished` holds what is whole of it, `workers` are what the
`processes` do, and `preparation_report` tells what came of it. Several machines can share it, and what is
killed goes on. Below it, everything is a pure function of (seed, epoch, example index): see
`stateless_random`.

Importing this package costs nothing; take each name from its module, for instance
`from nystromformer.data.prepare import prepare`.
"""
